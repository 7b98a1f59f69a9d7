"""CUDA graphs: warm-up, capture and replay of each kind of work, failed captures, and numbers that change."""

import contextlib
from contextlib import nullcontext

import pytest
import torch

from fastgan.runs.graphs import WARM_UPS, Captured, CudaRecorder, Graphs, Numbers


class Canned:
    """A recorder of one result."""

    runs_work = False

    def __init__(self, error=None):
        self.error, self.forgotten, self.captured = error, 0, 0

    def warm_up(self, work):
        return "run", work()

    def capture(self, work):
        if self.error:
            raise self.error
        self.captured += 1
        self.work = work
        return Captured(work, ("replayed", work()))

    def clear(self):
        self.forgotten += 1


def test_a_kind_runs_a_few_times_then_is_captured_and_replayed():
    recorder = Canned()
    run = Graphs(lambda kind, x: (kind, x), recorder)
    for number in range(WARM_UPS):
        state, (kind, x) = run("a", torch.full((2,), float(number)))
        assert (state, kind, x.tolist()) == ("run", "a", [number] * 2)
    for number in (7, 8):
        value = torch.full((2,), float(number))
        state, (_, held) = run("a", value)
        assert state == "replayed" and held is not value and held.tolist() == [number] * 2
    assert recorder.captured == 1


@pytest.mark.parametrize(
    "kind, x",
    [
        ("b", torch.zeros(2, 3, 4, 4)),
        ("a", torch.zeros(3, 3, 4, 4)),
        ("a", torch.zeros(2, 3, 4, 4, dtype=torch.float64)),
        ("a", torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        ("a", None),
    ],
)
def test_another_kind_or_input_metadata_has_its_own_graph(kind, x):
    run = Graphs(lambda kind, x: x, Canned())
    for _ in range(WARM_UPS + 1):
        run("a", torch.zeros(2, 3, 4, 4))
    state, held = run(kind, x)
    assert state == "run"
    assert held is None if x is None else (held.stride() == x.stride() and held.dtype == x.dtype)
    for _ in range(WARM_UPS):
        state, _ = run(kind, x)
    assert state == "replayed"


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError("operation not permitted\nmore"), "a step cannot be captured: operation not permitted"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), "memory does not suffice for them"),
    ],
)
def test_steps_run_eagerly_after_a_failed_capture_with_the_reason_printed_once(capsys, error, reason):
    recorder = Canned()
    run = Graphs(lambda kind: kind, recorder)
    for _ in range(WARM_UPS + 1):
        assert run("a")
    recorder.error = error
    for _ in range(WARM_UPS + 3):
        assert run("b") == ("run", "b")
    assert run("a") == ("run", "a")  # its memory is free again
    assert recorder.forgotten == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 and reason in printed[0] and "more" not in printed[0]


def test_the_printed_reason_is_the_first_error_of_a_capture():
    def capture(work):
        try:
            try:
                raise ValueError("another form is tried")  # as penalties do
            except ValueError:
                raise RuntimeError("what failed") from None
        finally:
            raise RuntimeError("capture invalidated")

    recorder = Canned()
    recorder.capture = capture
    run = Graphs(lambda kind: kind, recorder)
    for _ in range(WARM_UPS + 1):
        run("a")
    assert run.failure == "a step cannot be captured: what failed"


class Cuda:
    """Replaces the graph functions of `torch.cuda`, and records the calls."""

    def __init__(self, monkeypatch, broken=False):
        self.calls, self.current, self.random, self.broken = [], "default", "random", broken
        note = lambda name: lambda *args, **options: self.calls.append(name)
        cuda = self

        class Stream:
            def __init__(self, device):
                assert device == torch.device("cuda", 0)

            def wait_stream(self, other):
                cuda.calls.append("side waits")

        class Graph:
            def capture_begin(self, pool, capture_error_mode):
                assert cuda.current != "default" and pool == cuda.pool and capture_error_mode == "thread_local"
                cuda.calls.append("begin")

            def capture_end(self):
                cuda.calls.append("end")
                if cuda.broken:
                    raise RuntimeError("capture invalidated")

            replay = note("replay")

        class Generator:
            clone_state = lambda self: cuda.random
            graphsafe_set_state = lambda self, state: cuda.calls.append(f"state {state}")

        class Current:
            wait_stream = note("current waits")

        @contextlib.contextmanager
        def stream(side):
            self.current = side
            try:
                yield
            finally:
                self.current = "default"

        def handle():
            self.pool = object()
            return self.pool

        replaced = {
            "Stream": Stream, "CUDAGraph": Graph, "stream": stream, "graph_pool_handle": handle,
            "current_device": lambda: 0, "current_stream": lambda device: Current(), "synchronize": note("synchronize"),
            "empty_cache": note("empty"), "default_generators": (Generator(),), "device": lambda device: nullcontext(),
        }  # fmt: skip
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            given_back = lambda device, pool, name=name: (
                self.calls.append(name) if (device, pool) == (0, self.pool) else 0
            )
            monkeypatch.setattr(torch._C, name, given_back, raising=False)


def test_a_gpu_warms_up_and_captures_on_one_stream_of_its_own(monkeypatch):
    cuda = Cuda(monkeypatch)
    recorder = CudaRecorder(torch.device("cuda"))
    assert recorder.warm_up(lambda: cuda.calls.append("work") or cuda.current) is recorder._stream
    assert cuda.calls == ["side waits", "work", "current waits"]
    cuda.calls.clear()
    replay, result, *_ = recorder.capture(lambda: cuda.calls.append("work") or cuda.current)
    assert result is recorder._stream and cuda.current == "default"
    replay()
    assert cuda.calls == ["synchronize", "empty", "begin", "work", "end", "replay"]
    before = cuda.pool
    recorder.clear()
    assert cuda.pool is not before


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_failed_capture_restores_stream_and_rng_state(monkeypatch, fails, broken):
    """Whether the work or ending the capture fails; if both do, the work's error is the reason."""
    cuda = Cuda(monkeypatch, broken)

    def work(kind):
        if fails and cuda.calls[-1] == "begin":
            raise RuntimeError("what failed")

    run = Graphs(work, CudaRecorder(torch.device("cuda:0")))
    for _ in range(WARM_UPS + 1):
        run("a")
    assert cuda.current == "default"
    reason = "what failed" if fails else "capture invalidated" if broken else None
    assert run.failure == (reason and f"a step cannot be captured: {reason}")
    assert ("state random" in cuda.calls) == (fails or broken)
    assert ("_cuda_endAllocateToPool" in cuda.calls) == ("_cuda_releasePool" in cuda.calls) == broken
    assert ("replay" in cuda.calls) == (run.failure is None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_steps_are_captured_again_after_graphs_are_cleared():
    recorder = CudaRecorder(torch.device("cuda"))
    total = torch.zeros((), device="cuda")

    def add(kind, x):
        total.add_(x.sum())

    run = Graphs(add, recorder)
    for _ in range(2):
        for _ in range(6):
            run("a", torch.ones(4, device="cuda"))
        assert run.failure is None
        run.clear()
    assert total.item() == 48


def test_numbers_are_floats_or_tensors_written_in_place():
    plain, held = Numbers(None), Numbers(torch.device("cpu"))
    assert plain.set("lr", 0.25) == plain["lr"] == 0.25
    tensor = held.set("lr", 0.25)
    assert held.set("lr", 0.5) is tensor is held["lr"]
    assert tensor.item() == 0.5 and tensor.dtype == torch.float32 and tensor.dim() == 0
    assert held.set("beta2", 0.99, torch.float64).item() == 0.99
