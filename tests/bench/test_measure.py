"""Conditions under which a timing starts."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.measure import L2Eviction


class Written(TorchDispatchMode):
    """Bytes of the tensors that operations return or write into."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.bytes += result.nbytes
        return result


def test_the_l2_is_evicted_without_leaving_dirty_lines():
    evict = L2Eviction(torch.device("cpu"), size=1 << 20)
    with Written() as written:
        evict()
    assert written.bytes == 4
