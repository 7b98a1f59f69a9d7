"""lerp_samples: what its table of cases, test_small_operations.py, does not show."""

import torch

from fastgan import ops
from tests.ops.test_small_operations import Case, make, textbook_lerp_samples
from tests.support import backends


@backends.one_instruction_set
def test_lerp_samples_of_two_memory_formats_has_the_first(backend):
    case = Case("lerp_samples", (4, 3, 5, 7), "nhwc")
    tensors = make(case, torch.float64, backends.device(backend))
    expected = textbook_lerp_samples(**tensors)
    tensors["b"] = tensors["b"].contiguous()
    y = ops.lerp_samples(*tensors.values())
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected)
