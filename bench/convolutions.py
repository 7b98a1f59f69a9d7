"""Replays the dense convolutions of a computation, as a lower bound of its time."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fastgan.ops import weight_gradient

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


@dataclass(frozen=True)
class _Metadata:
    """Shape, strides, dtype and device of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def tensor(self) -> Tensor:
        """A random tensor with this metadata."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        numbers = torch.randn(last + 1, device=self.device).to(self.dtype)
        return numbers.as_strided(self.shape, self.stride)  # works for expanded ones too


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: Counter = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in _CONVOLUTIONS:
            self.calls[function, _described(args), _described(tuple((kwargs or {}).items()))] += 1
        return function(*args, **(kwargs or {}))


def _described(value):
    """Arguments made hashable: tensors as metadata, lists as tuples."""
    if isinstance(value, Tensor):
        return _Metadata(tuple(value.shape), value.stride(), value.dtype, value.device)
    return tuple(map(_described, value)) if isinstance(value, (list, tuple)) else value


class Bare:
    """Callable that repeats the dense convolutions, forward and backward, of one call of `work`.

    Shapes, dtypes and strides are those of `work`; values are random. Grouped convolutions, such as low-pass filters of
    single channels, are left out, since other code can do their work.

    Attributes:
        count: number of convolutions.
        flops: floating-point operations; a multiplication and its addition are two.
        bytes_behind: bytes of an elementwise pass after each convolution, or before its backward.
    """

    def __init__(self, work: Callable[[], object]):
        # Our weight gradient kernel is switched off, so that the library's convolution is recorded in its place. Our
        # kernels for few channels stay on: their convolutions, which are little arithmetic, do not count.
        with mock.patch.object(weight_gradient, "is_suited", lambda *of: False), _Recorder() as recorder:
            work()
        self._calls, self.count, self.flops, self.bytes_behind = [], 0, 0, 0
        for (function, args, kwargs), times in recorder.calls.items():
            if _groups(function, args) > 1:
                continue
            tensors = tree_map(lambda each: each.tensor() if isinstance(each, _Metadata) else each, args)
            self._calls.append((function, tensors, dict(kwargs), times))
            self.count += times
            self.flops += times * _flops(function, args)
            self.bytes_behind += times * _bytes_behind(function, args)

    def calls(self) -> Iterator[tuple[str, int, Callable[[], object]]]:
        """Every distinct convolution: a name, its FLOPs, and a function that makes it once."""
        for function, args, kwargs, times in self._calls:
            backward = function is torch.ops.aten.convolution_backward.default
            x, weight = args[1:3] if backward else args[:2]
            mask = args[10][:2] if backward else (False, False)
            needed = [part for part, there in zip(("input", "weight"), mask, strict=True) if there]
            parts = "x".join(map(str, x.shape)), "x".join(map(str, weight.shape))
            options = "transposed " if args[7 if backward else 6] else ""
            options += f"stride {(args[4] if backward else args[3])[0]}"
            kind = f"gradient of {' and '.join(needed)}" if backward else "convolution"
            name = f"{kind}, input {parts[0]}, weight {parts[1]}, {options}, {times} times"
            yield name, _flops(function, args), partial(function, *args, **kwargs)

    def __call__(self) -> None:
        for function, args, kwargs, times in self._calls:
            for _ in range(times):
                function(*args, **kwargs)


def _groups(function, args) -> int:
    return args[8] if function is torch.ops.aten.convolution.default else args[9]


def _flops(function, args) -> int:
    """Operations of one convolution without groups; a backward counts each gradient in its output mask."""
    if function is torch.ops.aten.convolution.default:
        x, weight, transposed, passes = args[0], args[1], args[6], 1
        positions = x.shape if transposed else _output_size(args)
    else:
        gradient, x, weight, transposed = args[0], args[1], args[2], args[7]
        passes = sum(args[10][:2])
        positions = x.shape if transposed else gradient.shape
    return 2 * passes * positions[0] * positions[2] * positions[3] * torch.Size(weight.shape).numel()


def _bytes_behind(function, args) -> int:
    if function is torch.ops.aten.convolution.default:
        x, transposed = args[0], args[6]
        size = _transposed_size(args) if transposed else _output_size(args)
        return 2 * torch.Size(size).numel() * x.dtype.itemsize
    gradient = args[0]
    return 3 * torch.Size(gradient.shape).numel() * gradient.dtype.itemsize


def _transposed_size(args) -> list[int]:
    x, weight, _, stride, padding = args[:5]
    size = [(x.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + weight.shape[2 + i] for i in (0, 1)]
    return [x.shape[0], weight.shape[1], *size]


def _output_size(args) -> list[int]:
    x, weight, _, stride, padding, dilation = args[:6]
    size = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    ]
    return [x.shape[0], weight.shape[0], *size]
