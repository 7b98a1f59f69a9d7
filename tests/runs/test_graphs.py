"""CUDA graphs: kinds of steps, what changes between replays, and failed captures."""

import contextlib
import os
import shutil
from collections import defaultdict
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan import models
from fastgan.errors import UserError
from fastgan.runs import config as configuration
from fastgan.runs.graphs import WARM_UPS, CudaRecorder, Graphs, Numbers
from fastgan.training import configure
from fastgan.training.adam import Adam
from fastgan.training.averages import Averages
from fastgan.training.growth import Schedule, stage_at
from fastgan.training.state import new_state, why_not_captured
from fastgan.training.step import Step


class Training:
    """A tiny training on random images, which grows if it is given a schedule."""

    def __init__(
        self, arch="dcgan", regularization=None, labels=False, schedule=None, recorder=None, device="cpu",
        cuda_graphs="off", compile=False, autocast=nullcontext, scaled=False, **options,
    ):  # fmt: skip
        config = configure.resolve(
            configuration.Config(
                network=configuration.NetworkOptions(arch=arch, channel_base=64, channel_max=8, z_dim=8),
                data=configuration.DataOptions(resolution=8, labels=labels),
                training=configuration.TrainingOptions(**{"batch": 8, "ema_halflife": 0.01, **options}),
                regularization=configuration.RegularizationOptions(**(regularization or {})),
                machine=configuration.MachineOptions(cuda_graphs=cuda_graphs, compile=compile),
            )
        )
        model = models.ModelConfig(**vars(config.network), resolution=8, num_classes=4 if labels else 0)
        torch.manual_seed(0)
        self.device, self.schedule, self.averages, self.labels = torch.device(device), schedule, Averages(), labels
        self.state = new_state(model, config, self.device)
        if recorder is not None:
            recorder.training = self
        self.step = Step(self.state, config, 8, autocast, self.averages, recorder, scaled=scaled)
        self.images = torch.Generator().manual_seed(1)

    def run(self, steps):
        for _ in range(steps):
            side, factor = 8, 1.0
            if self.schedule:
                stage = stage_at(self.state.images, self.schedule)
                side, factor = stage.resolution, stage.lr_factor
                for network in (self.state.generator, self.state.discriminator, self.state.ema):
                    network.grow_to(side, stage.alpha)
                if self.state.stage is not None and self.state.stage[0] != side:
                    self.state.optimizer_g.state.clear()
                    self.state.optimizer_d.state.clear()
                self.state.stage = side, stage.alpha
            real = torch.rand(8, 1, side, side, generator=self.images) * 2 - 1
            label = torch.randint(4, (8,), generator=self.images) if self.labels else None
            self.step(real.to(self.device), None if label is None else label.to(self.device), factor)
        return self

    def tensors(self):
        """Everything that a step changes on the device, except averages."""
        found = {}
        for name, module in self.state.modules().items():
            found |= {f"{name}.{key}": value for key, value in module.state_dict(keep_vars=True).items()}
        for name, (optimizer, module) in self.state.optimizers().items():
            for key, parameter in module.named_parameters():
                moments = optimizer.state.get(parameter, {})
                found |= {f"{name}.{key}.{moment}": value for moment, value in moments.items()}
        return {name: value.detach() for name, value in found.items()}


class Recorder:
    """A recorder on the CPU: to replay is to call.

    While a step is captured, nothing changes; and while it is replayed, a training seems to be where it was then, so
    that it shows if a step hangs on that.
    """

    training = None

    def __init__(self):
        self.captures = self.replays = self.forgotten = 0

    def warm_up(self, work):
        return work()

    def capture(self, work):
        self.captures += 1
        state = self.training.state
        then = state.step, state.images
        with self._undone():
            result = work()
        assert (state.step, state.images) == then

        def replay():
            self.replays += 1
            now = state.step, state.images
            state.step, state.images = then
            work()
            state.step, state.images = now

        return replay, result

    def clear(self):
        self.forgotten += 1

    @contextlib.contextmanager
    def _undone(self):
        training = self.training
        changing = {**training.tensors(), **training.averages._sums}
        before, random = {name: value.clone() for name, value in changing.items()}, torch.get_rng_state()
        sums = set(training.averages._sums)
        try:
            yield
        finally:
            torch.set_rng_state(random)
            for name, value in before.items():
                changing[name].copy_(value)
        after = training.tensors()
        assert set(training.averages._sums) == sums, "a sum that begins in a graph would begin anew at every replay"
        assert {**after, **training.averages._sums}.keys() == before.keys(), "a moment that begins in a graph"


class Operations(TorchDispatchMode):
    """Operations called, with all arguments except contents of tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append((str(function), _described(args), _described(kwargs or {})))
        return function(*args, **(kwargs or {}))


def _described(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return tuple((key, _described(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return value if isinstance(value, int | float | str | bool | None) else str(value)


class Listener(Recorder):
    """Records the operations of each step, by kind and input metadata; captures nothing."""

    def __init__(self):
        super().__init__()
        self.seen = defaultdict(list)

    def warm_up(self, work):
        with Operations() as operations:
            result = work()
        self.seen[self.training.step._kind()].append(tuple(operations.calls))
        return result

    def capture(self, work):
        raise RuntimeError("not here")


GROWING = Schedule(4, 8, 64, 64, {4: 8, 8: 8}, {4: 1.0, 8: 2.0})
CASES = {
    "plain": ({}, {"arch": "dcgan"}),
    "lazy R1 and path length": (
        {"r1_gamma": 1.0, "r1_interval": 4, "path_length": 2.0, "path_interval": 3},
        {"arch": "stylegan2", "labels": True},
    ),
    "of a discriminator that is ahead": (
        {"r1_gamma": 1.0, "r1_interval": 2, "path_length": 2.0, "path_interval": 2},
        {"arch": "stylegan2", "discriminator_steps": 2},
    ),
    "all schedules": (
        {"r1_gamma": 1.0, "r2_gamma": 0.5, "final_gamma": 0.1, "augment": "ramp", "augment_p": 0.3},
        {"arch": "r3gan", "images": 200, "final_lr": 0.1, "betas": (0.5, 0.9), "final_beta2": 0.99, "lr_g": 0.003},
    ),
    "adaptive augmentation": ({"augment": "ada", "ada_kimg": 0.01}, {"arch": "mlp", "loss": "hinge"}),
    "growing": ({}, {"arch": "pggan", "schedule": GROWING}),
    "growing with styles": ({"r1_gamma": 1.0, "r1_interval": 2}, {"arch": "stylegan", "schedule": GROWING}),
    "wgan": ({}, {"arch": "dcgan", "loss": "wgan", "discriminator_steps": 3}),
    "wgan-gp": ({}, {"arch": "mlp", "loss": "wgan-gp", "discriminator_steps": 2}),
    "frozen layers": ({"r1_gamma": 1.0, "r1_interval": 2}, {"arch": "r3gan", "init_from": "x", "freeze_d": 2}),
    "micro-batches": (
        {"r1_gamma": 1.0, "r1_interval": 2},
        {"arch": "r3gan", "batch_gpu": 4, "lr_g": 2e-4, "lr_d": 2e-4},
    ),
}
KINDS = {
    "plain": 1, "lazy R1 and path length": 4, "of a discriminator that is ahead": 3, "all schedules": 1,
    "adaptive augmentation": 1, "growing": 3, "growing with styles": 6, "wgan": 2, "wgan-gp": 2, "frozen layers": 2,
    "micro-batches": 2,
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)


def train(case, steps=24, **more):
    regularization, options = CASES[case]
    return Training(regularization=regularization, **{**options, **more}).run(steps)


def assert_same(one, other, rtol=2e-4):
    """Weights, EMA and moments are equal up to rounding."""
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        named = lambda text, name=name: f"{name}: {text}"
        torch.testing.assert_close(value, theirs[name], rtol=rtol, atol=rtol / 20, msg=named)
    means, expected = one.averages.read(), other.averages.read()
    assert means == {name: pytest.approx(value, rel=10 * rtol, abs=rtol) for name, value in expected.items()}


# Kinds ---------------------------------------------------------------------------------------------------------------


def listen(case, **more):
    """Operations of each step of a training, by kind, without warm-up steps."""
    listener = Listener()
    train(case, steps=36 if case == "lazy R1 and path length" else 28, recorder=listener, **more)
    return {kind: calls[WARM_UPS:] for kind, calls in listener.seen.items()}


@pytest.mark.slow
@every_case
def test_steps_run_the_same_operations_exactly_if_they_are_of_one_kind(case):
    """With the same numbers: one that Python hands over would be the same at every replay. And they read nothing for
    Python, all that would wait for the device; but for what does so on CPUs alone: RMSprop, and one_hot, which checks
    labels."""
    done = listen(case)
    assert len(done) == KINDS[case]
    for kind, calls in done.items():
        assert calls, f"{kind} is too rare for this test"
        assert all(len(each) > 50 for each in calls)
        for each in calls[1:]:
            assert [(a, b) for a, b in zip(calls[0], each, strict=True) if a != b] == []
    assert len({calls[0] for calls in done.values()}) == len(done)

    _, options = CASES[case]
    if options.get("labels") or options.get("loss") == "wgan":
        done = listen(case, labels=False, optimizer="adam")
    for calls in done.values():
        for each in calls:
            assert not [name for name, *_ in each if "_local_scalar_dense" in name or "nonzero" in name]


def test_reading_a_tensor_in_python_is_detected():
    """The test above would detect such an operation."""
    with Operations() as operations:
        torch.ones(()).item()
    assert [name for name, *_ in operations.calls] == ["aten.ones.default", "aten._local_scalar_dense.default"]


# Replays -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_case
def test_replayed_steps_train_like_eager_ones(case):
    recorder = Recorder()
    replayed = train(case, steps=27, recorder=recorder)
    assert recorder.captures == KINDS[case] and recorder.replays > 8
    assert_same(replayed, train(case, steps=27))


@pytest.mark.slow
def test_replayed_steps_follow_the_schedules():
    expected = train("all schedules")
    for options in ({"final_lr": 1.0}, {"final_beta2": None}, {"images": 2000}):
        other = train("all schedules", recorder=Recorder(), **options)
        with pytest.raises(AssertionError):
            assert_same(other, expected)


def test_growth_discards_graphs_of_the_stage_before():
    recorder = Recorder()
    training = train("growing", steps=20, recorder=recorder)
    assert recorder.captures == 3
    assert recorder.forgotten == 2
    assert len(training.step._graphs._captured) == 1


class Canned:
    """A recorder of one result."""

    def __init__(self, error=None):
        self.error, self.forgotten, self.captured = error, 0, 0

    def warm_up(self, work):
        return "run", work()

    def capture(self, work):
        if self.error:
            raise self.error
        self.captured += 1
        self.work = work
        return work, ("replayed", work())

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


def test_a_capture_that_fails_half_way_does_not_change_the_training():
    """The discriminator requires gradients again, and nothing was counted."""

    class Broken(Recorder):
        def capture(self, work):
            with self._undone():
                work()
                self.training.state.discriminator.requires_grad_(True)
                discriminator, judge = self.training.state.discriminator, self.training.step._judge

                def fails(*args):
                    if not next(discriminator.parameters()).requires_grad:
                        raise RuntimeError("in the generator's phase")
                    return judge(*args)

                self.training.step._judge = fails
                try:
                    work()
                finally:
                    self.training.step._judge = judge
            raise AssertionError("it did not fail")

    training = train("plain", recorder=Broken(), steps=6)
    assert "generator's phase" in training.step._graphs.failure
    assert all(parameter.requires_grad for parameter in training.state.discriminator.parameters())
    (names,) = training.averages._sums
    counts = dict(zip(names, training.averages._sums[names][2].tolist(), strict=True))
    assert counts["loss_g"] == counts["loss_d"] == 6


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
    replay, result = recorder.capture(lambda: cuda.calls.append("work") or cuda.current)
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


# Numbers and Adam ----------------------------------------------------------------------------------------------------


def test_numbers_are_floats_or_tensors_written_in_place():
    plain, held = Numbers(None), Numbers(torch.device("cpu"))
    assert plain.set("lr", 0.25) == plain["lr"] == 0.25
    tensor = held.set("lr", 0.25)
    assert held.set("lr", 0.5) is tensor is held["lr"]
    assert tensor.item() == 0.5 and tensor.dtype == torch.float32 and tensor.dim() == 0
    assert held.set("beta2", 0.99, torch.float64).item() == 0.99


@pytest.mark.parametrize("betas", [(0.0, 0.9), (0.5, 0.999)])
def test_adam_with_beta2_on_the_device_is_adam(betas):
    """Also for a parameter that is used later, like the levels of growing networks."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(2))]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    adam, torchs = Adam(ours, lr=0.01, betas=betas), torch.optim.Adam(theirs, lr=0.01, betas=betas)
    numbers = Numbers(torch.device("cpu"))
    for number in range(30):
        beta2 = betas[1] + (0.9995 - betas[1]) * number / 30
        adam.param_groups[0]["betas"] = betas[0], numbers.set("beta2", beta2, torch.float64)
        adam.param_groups[0]["lr"] = numbers.set("lr", 0.01 / (1 + number))
        torchs.param_groups[0]["betas"], torchs.param_groups[0]["lr"] = (betas[0], beta2), 0.01 / (1 + number)
        for one, other in zip(ours, theirs, strict=True):
            takes_part = len(one) != 2 or number > 9
            other.grad = torch.randn_like(other) if takes_part else None
            one.grad = other.grad.clone() if takes_part else None
        adam.step()
        torchs.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(adam.state[one], torchs.state[other], rtol=1e-5, atol=1e-7)


def test_averages_count_finished_steps_only():
    averages = Averages()
    for value in (1.0, 3.0):
        with averages.step():
            averages.add(loss=torch.tensor(value))
            averages.add(loss=torch.tensor(value + 1), other=torch.tensor(value))
    with pytest.raises(RuntimeError), averages.step():
        averages.add(loss=torch.tensor(100.0))
        raise RuntimeError("capturing failed")
    assert averages.read() == {"loss": 2.5, "other": 2.0}


# The option ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, device, checkpoint_blocks, reason",
    [
        ("auto", "cuda", False, None),
        ("on", "cuda:1", False, None),
        ("off", "cuda", False, "--cuda-graphs off"),
        ("auto", "cuda", True, "--checkpoint-blocks draws random numbers again, which a graph cannot"),
        ("auto", "cpu", False, "there are none on cpu"),
        ("off", "cpu", True, "--cuda-graphs off"),
    ],
)
def test_cuda_graphs_are_captured_on_gpus_only(option, device, checkpoint_blocks, reason):
    options = configuration.MachineOptions(cuda_graphs=option, checkpoint_blocks=checkpoint_blocks)
    assert why_not_captured(options, torch.device(device)) == reason


def test_cuda_graphs_on_for_a_cpu_is_an_error():
    with pytest.raises(UserError, match="--cuda-graphs on: there are none on cpu; leave it out"):
        Training(cuda_graphs="on")
    with pytest.raises(UserError, match="--cuda-graphs on: --checkpoint-blocks draws"):
        options = configuration.MachineOptions(cuda_graphs="on", checkpoint_blocks=True)
        why_not_captured(options, torch.device("cuda"))


# torch.compile -------------------------------------------------------------------------------------------------------


@pytest.fixture
def same_random_numbers():
    """With compiled code that uses torch's random numbers."""
    from torch._inductor import config

    with config.patch(fallback_random=True):
        torch.compiler.reset()
        yield
        torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="inductor needs a C++ compiler on a CPU")
@pytest.mark.parametrize(
    "options",
    [
        {"arch": "r3gan", "regularization": {"r1_interval": 2}, "labels": True},
        {"arch": "stylegan2", "regularization": {"r1_interval": 2, "path_length": 2.0, "path_interval": 2}},
        {"arch": "pggan", "schedule": Schedule(4, 8, 16, 16, {4: 8, 8: 8}, {4: 1.0, 8: 1.0}), "discriminator_steps": 1},
    ],
)
def test_compiled_networks_train_like_eager_ones(same_random_numbers, options):
    compiled, plain = Training(compile=True, **options), Training(**options)
    for training in (compiled, plain):
        torch.manual_seed(2)
        training.run(6)
    assert compiled.step._generator is not compiled.state.generator
    assert_same(compiled, plain, rtol=1e-3)


def test_compile_without_a_compiler_is_an_error(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no working C++ compiler\nlong trace")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        UserError, match=r"--compile: .* does not work here \(no working C\+\+ compiler\); leave it out"
    ):
        Training(compile=True)


# On a GPU ------------------------------------------------------------------------------------------------------------

ON_GPU = {"device": "cuda", "lr_g": 1e-4, "lr_d": 1e-4}  # small steps: rounding is not to grow


@pytest.fixture
def exactly():
    """Deterministic algorithms, so that results do not depend on the library's choice."""
    flags = [(torch.backends.cudnn, "deterministic"), (torch.backends.cuda.matmul, "allow_tf32"),
             (torch.backends.cudnn, "allow_tf32")]  # fmt: skip
    before = [getattr(place, name) for place, name in flags]
    for (place, name), value in zip(flags, (True, False, False), strict=True):
        setattr(place, name, value)
    yield
    for (place, name), value in zip(flags, before, strict=True):
        setattr(place, name, value)


def moved(training, start):
    """Change of generator, discriminator and EMA since the start, each as one vector."""
    now = training.tensors()
    return {
        part: torch.cat([(now[name] - start[name]).flatten().float() for name in start if name.startswith(f"{part}.")])
        for part in ("generator", "discriminator", "ema")
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
class TestOnGpu:
    @pytest.mark.parametrize("amp", [False, True])
    @every_case
    def test_captured_steps_train_like_eager_ones(self, exactly, case, amp):
        """Same schedules and averages through all kinds of steps, in fp32 and bf16."""
        autocast = (lambda: torch.autocast("cuda", dtype=torch.bfloat16)) if amp else nullcontext
        regularization, options = CASES[case]
        found = []
        for choice in ("on", "off"):
            training = Training(
                regularization=regularization, cuda_graphs=choice, autocast=autocast, **{**options, **ON_GPU}
            )
            start = {name: value.clone() for name, value in training.tensors().items()}
            training.run(40)
            found.append((moved(training, start), training.averages.read()))
            if choice == "on":
                assert training.step._graphs.failure is None
                assert training.step._graphs._captured
        (captured, means), (eager, expected) = found
        for part, vector in eager.items():
            assert (captured[part] - vector).norm() <= (0.05 if amp else 0.01) * vector.norm(), part
        assert means == {name: pytest.approx(value, rel=0.05, abs=0.02) for name, value in expected.items()}

    @pytest.mark.parametrize("choice", ["on", "off"])
    @every_case
    def test_a_step_never_waits_for_the_device(self, case, choice):
        regularization, options = CASES[case]
        training = Training(
            regularization=regularization, cuda_graphs=choice, **{**options, "schedule": None, **ON_GPU}
        )
        training.run(36)  # of every kind so many that it is captured
        real = torch.zeros(8, 1, 8, 8, device="cuda")
        label = torch.zeros(8, dtype=torch.int64, device="cuda") if options.get("labels") else None
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(12):
                training.step(real, label)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_a_step_that_waits_for_the_device_runs_eagerly(self, exactly, capsys):
        """With the random numbers of an eager run."""
        found = []
        for choice in ("on", "off"):
            training = Training("dcgan", cuda_graphs=choice, **ON_GPU)
            start = {name: value.clone() for name, value in training.tensors().items()}
            judge = training.step._judge

            def waits(*args, judge=judge):
                verdict = judge(*args)
                verdict.logits.sum().item()
                return verdict

            training.step._judge = waits
            training.run(10)
            found.append((moved(training, start), torch.cuda.get_rng_state()))
        assert "no CUDA graphs from here on" in capsys.readouterr().out
        for part, vector in found[1][0].items():
            assert (found[0][0][part] - vector).norm() <= 0.01 * vector.norm()
        assert torch.equal(found[0][1], found[1][1])

    def test_memory_of_a_graph_that_does_not_fit_is_freed(self, capsys):
        training = Training("dcgan", cuda_graphs="on", **ON_GPU)
        training.run(WARM_UPS)
        run = training.step._graphs._run

        def large(*args):
            if torch.cuda.is_current_stream_capturing():
                torch.empty(2**50, dtype=torch.uint8, device="cuda")
            return run(*args)

        training.step._graphs._run = large
        training.run(4)
        assert "memory does not suffice" in capsys.readouterr().out
        assert training.state.step == WARM_UPS + 4
        assert all(value.isfinite().all() for value in training.tensors().values() if value.is_floating_point())

    def test_steps_are_captured_again_after_graphs_are_cleared(self):
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
