"""Steps of training as CUDA graphs: recorded once for each kind of step, and then replayed as a whole.

A step of a GAN is thousands of small kernels, and a replayed graph launches them all at once. It does again what was
recorded, on the very memory that it was recorded with: the Python around it does not run. So

- whatever Python decides by must be part of the kind of a step, and each kind has a graph of its own;
- what changes from step to step is in tensors that are written before a replay: the batch, and `Numbers`;
- random numbers come from the default generator of the device, which graphs advance as if they were drawn one by one;
- nothing waits for the device: capturing would fail.

Nothing of this is known about networks or losses here.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastgan.runs import memory

WARM_UPS = 2  # steps of each kind before it is captured: kernels are built, plans made, moments of optimizers created


class Numbers:
    """Numbers that are another at every step, by name: learning rates, weights of losses.

    Args:
        device: where steps are captured they are 0-dim tensors on it, which `set` writes in place without waiting for
            the device. None: plain floats.
    """

    def __init__(self, device: torch.device | None):
        self._device = device
        self._given: dict[str, float] = {}
        self._tensors: dict[str, Tensor] = {}

    def set(self, name: str, value: float, dtype: torch.dtype = torch.float32) -> float | Tensor:
        """Say what a number is at the coming step; returns what stands for it. `dtype` counts at the first time."""
        known = self._given.get(name)
        self._given[name] = value
        if self._device is None:
            return value
        if known is None:
            self._tensors[name] = torch.full((), value, dtype=dtype, device=self._device)
        elif known != value:
            self._tensors[name].fill_(value)
        return self._tensors[name]

    def __getitem__(self, name: str) -> float | Tensor:
        return self._given[name] if self._device is None else self._tensors[name]


class Recorder(Protocol):
    """What records work on a device and does it again."""

    def warm_up(self, work: Callable[[], Any]) -> Any:
        """Do it, where and as it will be captured, and return its result."""

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What does it again, whenever called, and its result; nothing has been done yet. RuntimeError if it fails."""

    def clear(self) -> None:
        """Nothing that was captured will be done again: returns when all of it is done, and it can be dropped."""


class _Captured(NamedTuple):
    replay: Callable[[], None]
    result: Any


class Graphs:
    """`graphs(kind, *inputs)` is `run(kind, *inputs)`, captured once for each kind and form of inputs, then replayed.

    The first `WARM_UPS` calls of a kind run as they are. If capturing fails, for want of memory or because something
    cannot be captured, the reason is printed, and everything runs as it is from there on.

    Args:
        run: of a kind, and tensors or None. Its result must hang on the kind alone, and hold nothing of the device.
            What it writes must be there before, and stay where it is.
        recorder: of the device.
    """

    def __init__(self, run: Callable[..., Any], recorder: Recorder):
        self._run, self._recorder = run, recorder
        self._captured: dict[Hashable, _Captured] = {}
        self._runs: Counter[Hashable] = Counter()
        self._inputs: dict[Hashable, Tensor] = {}
        self.failure: str | None = None

    def __call__(self, kind: Hashable, *inputs: Tensor | None) -> Any:
        forms = tuple(map(_form, inputs))
        held = [self._held(i, form, tensor) for i, (form, tensor) in enumerate(zip(forms, inputs, strict=True))]
        work = lambda: self._run(kind, *held)
        key = kind, forms
        if self.failure is None and key not in self._captured and self._runs[key] >= WARM_UPS:
            self._capture(key, work)
        captured = self._captured.get(key)
        if captured is None:
            self._runs[key] += 1
            return self._recorder.warm_up(work)
        captured.replay()
        return captured.result

    def clear(self) -> None:
        """Drop all graphs and their memory: none of the kinds so far will come again, or tensors have moved."""
        if self._captured:
            self._recorder.clear()
        for each in (self._captured, self._runs, self._inputs):
            each.clear()

    def _held(self, index: int, form: Hashable, tensor: Tensor | None) -> Tensor | None:
        """The tensor's contents, in the memory that graphs read."""
        if tensor is None:
            return None
        if (index, form) not in self._inputs:
            self._inputs[index, form] = torch.empty_like(tensor)
        return self._inputs[index, form].copy_(tensor)

    def _capture(self, key: Hashable, work: Callable[[], Any]) -> None:
        try:
            self._captured[key] = _Captured(*self._recorder.capture(work))
        except RuntimeError as error:
            first = error
            while isinstance(first.__context__, RuntimeError):  # what ends a broken capture complains of it once more
                first = first.__context__
            text = str(first).strip().partition("\n")[0]
            short = "memory does not suffice for them" if memory.is_shortage(first) else text
            self.failure = f"a step cannot be captured: {short}"
        if self.failure:
            self._recorder.clear()
            self._captured.clear()  # also those of other kinds: their memory may be what is missing
            print(f"note: no CUDA graphs from here on; {self.failure}", flush=True)


def _form(tensor: Tensor | None) -> Hashable:
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)


class CudaRecorder:
    """`Recorder` of a GPU. All graphs share a pool of memory: one runs at a time, and none leaves anything behind."""

    def __init__(self, device: torch.device):
        self._device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        # One stream for all: what autograd and the allocator know of a stream holds for the capture as well.
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], Any]) -> Any:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        torch.cuda.synchronize(self._device)
        gc.collect()  # nothing of the device may be freed by chance while capturing
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[self._device.index]
        random_state = generator.clone_state()
        # By hand: torch.cuda.graph leaves its stream the current one if the capture cannot be ended.
        with torch.cuda.stream(self._stream):
            # The modes differ in what other threads may do meanwhile: those that read data may allocate memory.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                try:
                    result = work()
                finally:
                    self._end(graph)
            except BaseException:
                # A capture that cannot be ended leaves the generator in the state of one that is captured.
                with contextlib.suppress(RuntimeError):
                    generator.graphsafe_set_state(random_state)
                raise

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay, result

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            # Then torch leaves the pool as it is: nobody else would get its memory, and what other streams have used
            # would never be free again.
            for end in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
                with contextlib.suppress(AttributeError, RuntimeError):
                    getattr(torch._C, end)(self._device.index, self._pool)
            raise

    def clear(self) -> None:
        torch.cuda.synchronize(self._device)
        self._pool = torch.cuda.graph_pool_handle()  # one that has no graphs left cannot be used again
