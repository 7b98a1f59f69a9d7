"""Graphs of work that is repeated: captured once for each kind, then replayed.

A step of a GAN is thousands of small kernels. A replay runs them without the Python code that started them: all at once
as a CUDA graph (`CudaRecorder`), one after the other on a CPU (`fastgan.runs.cpu_graphs`). So

- everything that Python decides by is part of the kind, and each kind has its own graph;
- everything that changes from call to call is in tensors written before a replay: the inputs, and `Numbers`;
- random numbers come from the device's default generator, which a replay advances as eager work would;
- the work never waits for the device, nor reads a tensor for Python, which would make capturing fail.

This module knows nothing about networks or losses.
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

WARM_UPS = 2  # eager calls of a kind before capturing: they build kernels, choose plans and create optimizer state


class Numbers:
    """Numbers that change from step to step, by name: learning rates, weights of losses.

    Args:
        device: keep them as 0-dim tensors there, for captured steps; `set` writes them in place, without waiting for
            the device. None: plain floats.
    """

    def __init__(self, device: torch.device | None):
        self._device = device
        self._given: dict[str, float] = {}
        self._tensors: dict[str, Tensor] = {}

    def set(self, name: str, value: float, dtype: torch.dtype = torch.float32) -> float | Tensor:
        """Set a number for the next step; returns the float or tensor that holds it. The first `dtype` stays."""
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


class Captured(NamedTuple):
    """What became of capturing.

    Attributes:
        replay: runs the captured work; None if it could not be captured.
        result: of the work.
        why_not: why it could not be captured, or None.
    """

    replay: Callable[[], None] | None
    result: Any
    why_not: str | None = None


class Recorder(Protocol):
    """Captures work on a device.

    Attributes:
        runs_work: whether `capture` also runs the work: to its end even if it cannot be captured, raising its errors.
            Otherwise `capture` raises RuntimeError for work that cannot be captured.
    """

    runs_work: bool

    def warm_up(self, work: Callable[[], Any]) -> Any:
        """Run `work` as it will be captured, on the same stream, and return its result."""

    def capture(self, work: Callable[[], Any]) -> Captured:
        """Capture `work`."""

    def clear(self) -> None:
        """Wait for all replays to end, after which captured graphs can be freed."""


class Graphs:
    """`graphs(kind, *inputs)` is `run(kind, *inputs)`, captured once for each kind and input metadata, then replayed.

    The first `WARM_UPS` calls of a kind run eagerly. If capturing fails, for lack of memory or for an operation that
    cannot be captured, the reason is printed, and all later calls run eagerly.

    Args:
        run: function of a kind and of tensors or None. Its result may depend on the kind only, and holds no tensors.
            Tensors that it writes must exist before, and must not move.
        recorder: for the device.
    """

    def __init__(self, run: Callable[..., Any], recorder: Recorder):
        self._run, self._recorder = run, recorder
        self._captured: dict[Hashable, Captured] = {}
        self._runs: Counter[Hashable] = Counter()
        self._inputs: dict[Hashable, Tensor] = {}
        self.failure: str | None = None

    def __call__(self, kind: Hashable, *inputs: Tensor | None) -> Any:
        forms = tuple(map(_metadata, inputs))
        static = [
            self._static_input(i, form, tensor) for i, (form, tensor) in enumerate(zip(forms, inputs, strict=True))
        ]
        work = lambda: self._run(kind, *static)
        key = kind, forms
        if self.failure is None and key not in self._captured and self._runs[key] >= WARM_UPS:
            now = self._capture(key, work)
            if self._recorder.runs_work:
                return now.result
        captured = self._captured.get(key)
        if captured is None or captured.replay is None:
            self._runs[key] += 1
            return self._recorder.warm_up(work)
        captured.replay()
        return captured.result

    def clear(self) -> None:
        """Free all graphs and their memory: their kinds will not come again, or tensors have moved."""
        if self._captured:
            self._recorder.clear()
        for each in (self._captured, self._runs, self._inputs):
            each.clear()

    def _static_input(self, index: int, form: Hashable, tensor: Tensor | None) -> Tensor | None:
        """Copy a tensor into the memory that graphs read."""
        if tensor is None:
            return None
        if (index, form) not in self._inputs:
            self._inputs[index, form] = torch.empty_like(tensor)
        return self._inputs[index, form].copy_(tensor)

    def _capture(self, key: Hashable, work: Callable[[], Any]) -> Captured:
        try:
            captured = self._recorder.capture(work)
        except RuntimeError as error:
            if self._recorder.runs_work:
                raise
            first = error
            while isinstance(first.__context__, RuntimeError):  # ending a broken capture raises once more
                first = first.__context__
            text = str(first).strip().partition("\n")[0]
            why_not = "memory does not suffice for them" if memory.is_out_of_memory(first) else text
            captured = Captured(None, None, why_not)
        if captured.replay is not None:
            self._captured[key] = captured
            return captured
        self.failure = f"a step cannot be captured: {captured.why_not}"
        self._recorder.clear()
        self._captured.clear()  # of all kinds: their memory may be what is missing
        print(f"note: steps are not captured from here on; {self.failure}", flush=True)
        return captured


def _metadata(tensor: Tensor | None) -> Hashable:
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)


class CudaRecorder:
    """`Recorder` of a GPU. All graphs share a memory pool, since only one runs at a time."""

    runs_work = False

    def __init__(self, device: torch.device):
        self._device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        # One stream for warm-up and capture: autograd and the allocator keep state for each stream.
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], Any]) -> Any:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def capture(self, work: Callable[[], Any]) -> Captured:
        torch.cuda.synchronize(self._device)
        gc.collect()  # no tensor may be freed by chance while capturing
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[self._device.index]
        random_state = generator.clone_state()
        # Not torch.cuda.graph, which leaves its stream current if the capture cannot be ended.
        with torch.cuda.stream(self._stream):
            # Thread-local: other threads, such as those that read data, may allocate memory meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                try:
                    result = work()
                finally:
                    self._end(graph)
            except BaseException:
                # A capture that cannot be ended leaves the generator in capturing state.
                with contextlib.suppress(RuntimeError):
                    generator.graphsafe_set_state(random_state)
                raise

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return Captured(replay, result)

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            # torch then leaves the pool open: its memory could not be used again, and memory of other streams would
            # never be freed.
            for end in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
                with contextlib.suppress(AttributeError, RuntimeError):
                    getattr(torch._C, end)(self._device.index, self._pool)
            raise

    def clear(self) -> None:
        torch.cuda.synchronize(self._device)
        self._pool = torch.cuda.graph_pool_handle()  # a pool without graphs cannot be used again
