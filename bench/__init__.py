"""Benchmarks of operations and training steps against eager PyTorch and `torch.compile`; see bench/README.md.

Importing the package sets up the process before torch starts its threads, for every contestant alike: freed memory is
kept, and idle threads sleep instead of taking cores from the next contestant.
"""

import os

from fastgan.runs import process

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
process.keep_freed_memory()
