"""Benchmarks: each operation, and a training step, beside eager PyTorch and `torch.compile` on the device at hand.

    pytest bench/ --benchmark-only           with pytest-benchmark
    python -m bench.run [--json FILE]        without it: the same cases, the same table

Importing the package sets the process up as a training process sets itself up, before torch starts its threads and for
every contestant alike: freed memory is kept, and idle threads sleep instead of stealing the cores of whoever is next.
"""

import os

from fastgan.runs import process

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
process.keep_freed_memory()
