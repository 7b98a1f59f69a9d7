"""Captured steps train like eager ones: kinds of steps, what changes between replays, replays on a CPU and a GPU."""

import contextlib
from collections import defaultdict
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.runs.cpu_graphs import CpuRecorder
from fastgan.runs.graphs import WARM_UPS, Captured
from fastgan.training.growth import Schedule
from tests.support.tiny_training import TinyTraining, assert_same


class Recorder:
    """Recorder for the CPU. Capture changes nothing. Replay calls the step.

    Replay restores the Python state of the capture, so that a dependence of the step on that state shows.
    """

    training, runs_work = None, False

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

        return Captured(replay, result)

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
        {"r1_gamma": 1.0, "r1_interval": 3, "path_length": 2.0, "path_interval": 2},
        {"arch": "stylegan2", "labels": True},
    ),
    "pixels shuffled": (
        {"r1_gamma": 1.0, "r1_interval": 2},
        {"arch": "stylegan2", "resolution": 16, "network": {"pixel_shuffle": True, "noise": False}},
    ),
    "of a discriminator that is ahead": (
        {"r1_gamma": 1.0, "r1_interval": 2, "path_length": 2.0, "path_interval": 2},
        {"arch": "stylegan2", "discriminator_steps": 2},
    ),
    "all schedules": (
        {"r1_gamma": 1.0, "r2_gamma": 0.5, "final_gamma": 0.1, "augment": "ramp", "augment_p": 0.3},
        {"arch": "r3gan", "images": 200, "final_lr": 0.1, "betas": (0.5, 0.9), "final_beta2": 0.99, "lr_g": 0.003},
    ),
    "several EMAs": ({}, {"arch": "dcgan", "ema_halflife": (0.01, 0.04, 0.005), "ema_rampup": 0.5}),
    "adaptive augmentation": ({"augment": "ada", "ada_kimg": 0.01}, {"arch": "mlp", "loss": "hinge"}),
    "differentiable augmentation": ({"augment": "diffaug", "r1_gamma": 1.0, "r1_interval": 1}, {"arch": "stylegan2"}),
    "projected": (
        {},
        {"arch": "dcgan", "discriminator": "projected", "labels": True, "lr_g": 1e-6, "lr_d": 1e-6},
    ),
    "growing": ({}, {"arch": "pggan", "schedule": GROWING}),
    "growing with styles": ({"r1_gamma": 1.0, "r1_interval": 2}, {"arch": "stylegan", "schedule": GROWING}),
    "wgan": ({}, {"arch": "dcgan", "loss": "wgan", "discriminator_steps": 3}),
    "wgan-gp": ({}, {"arch": "mlp", "loss": "wgan-gp", "discriminator_steps": 2}),
    "pairs of images, self-supervision": ({}, {"arch": "fastgan"}),
    "frozen layers": ({"r1_gamma": 1.0, "r1_interval": 2}, {"arch": "r3gan", "init_from": "x", "freeze_d": 2}),
    "blur that fades, magnitudes": (
        {"r1_gamma": 1.0, "r1_interval": 2, "blur": 1.0, "blur_images": 80},
        {"arch": "stylegan3", "lr_g": 2e-4, "lr_d": 2e-4},
    ),
    "micro-batches": (
        {"r1_gamma": 1.0, "r1_interval": 2},
        {"arch": "r3gan", "batch_gpu": 4, "lr_g": 2e-4, "lr_d": 2e-4},
    ),
}
KINDS = {
    "plain": 1, "lazy R1 and path length": 4, "of a discriminator that is ahead": 3, "all schedules": 1,
    "several EMAs": 1, "adaptive augmentation": 1, "differentiable augmentation": 1, "projected": 1, "growing": 3,
    "growing with styles": 6, "wgan": 2, "wgan-gp": 2, "frozen layers": 2, "micro-batches": 2,
    "pairs of images, self-supervision": 1, "blur that fades, magnitudes": 4, "pixels shuffled": 2,
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)


# Each kind often enough; six steps where there is but one kind.
STEPS = {
    "lazy R1 and path length": 18, "all schedules": 12, "growing": 28, "growing with styles": 28,
    "blur that fades, magnitudes": 20,
}  # fmt: skip
STEPS = {case: 6 if count == 1 else 12 for case, count in KINDS.items()} | STEPS


def train(case, steps=None, **more):
    steps = STEPS[case] if steps is None else steps
    regularization, options = CASES[case]
    return TinyTraining(regularization=regularization, **{**options, **more}).run(steps)


# Kinds ---------------------------------------------------------------------------------------------------------------


def listen(case, **more):
    """Operations of each step of a training, by kind, without warm-up steps."""
    listener = Listener()
    train(case, recorder=listener, **more)
    return {kind: calls[WARM_UPS:] for kind, calls in listener.seen.items()}


@pytest.mark.slow
@every_case
def test_steps_run_the_same_operations_exactly_if_they_are_of_one_kind(case):
    """A number passed from Python would be frozen by capture. Steps must not read tensor values, which waits for the
    device (exceptions on CPUs: RMSprop, and one_hot, which checks labels)."""
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
    steps = STEPS[case] + 3
    replayed = train(case, steps, recorder=recorder)
    assert recorder.captures == KINDS[case] and recorder.replays > 6
    assert_same(replayed, train(case, steps))


class Counting(CpuRecorder):
    """Counts what it captures."""

    captures = 0

    def capture(self, work):
        self.captures += 1
        return super().capture(work)


class NeverCaptures(CpuRecorder):
    """Runs every step, with the numbers of captured ones in tensors."""

    runs_work = False

    def capture(self, work):
        return Captured(work, None)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != "wgan"])  # RMSprop takes its rate from Python
def test_steps_replayed_on_a_cpu_are_the_same_bit_by_bit(case):
    recorder = Counting()
    replayed = train(case, STEPS[case] + 3, recorder=recorder)
    assert replayed.step.failure is None and recorder.captures == KINDS[case]
    eager = train(case, STEPS[case] + 3, recorder=NeverCaptures())
    for name, value in eager.tensors().items():
        assert torch.equal(value, replayed.tensors()[name]), name
    assert replayed.averages.read() == eager.averages.read()


@pytest.mark.parametrize("arch", ["stylegan2", "r3gan"])
def test_steps_in_bf16_replayed_on_a_cpu_are_the_same_bit_by_bit(arch):
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    options = {
        "arch": arch,
        "labels": True,
        "autocast": autocast,
        "regularization": {"r1_gamma": 1.0, "r1_interval": 2},
    }
    recorder = Counting()
    replayed, eager = (TinyTraining(recorder=each, **options).run(9) for each in (recorder, NeverCaptures()))
    assert replayed.step.failure is None and recorder.captures == 2
    for name, value in eager.tensors().items():
        assert torch.equal(value, replayed.tensors()[name]), name


def test_steps_are_captured_on_a_cpu_by_default(capsys):
    training = TinyTraining("mlp", capture_steps="auto").run(4)
    assert training.step.why_not_captured is None and training.step.failure is None
    assert len(training.step._graphs._captured) == 1
    assert capsys.readouterr().out == ""


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
            training = TinyTraining(
                regularization=regularization, capture_steps=choice, autocast=autocast, **{**options, **ON_GPU}
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
        training = TinyTraining(
            regularization=regularization, capture_steps=choice, **{**options, "schedule": None, **ON_GPU}
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
        """The random numbers are those of an eager run."""
        found = []
        for choice in ("on", "off"):
            training = TinyTraining("dcgan", capture_steps=choice, **ON_GPU)
            start = {name: value.clone() for name, value in training.tensors().items()}
            judge = training.step._judge

            def waits(*args, judge=judge):
                verdict = judge(*args)
                verdict.logits.sum().item()
                return verdict

            training.step._judge = waits
            training.run(10)
            found.append((moved(training, start), torch.cuda.get_rng_state()))
        assert "steps are not captured from here on" in capsys.readouterr().out
        for part, vector in found[1][0].items():
            assert (found[0][0][part] - vector).norm() <= 0.01 * vector.norm()
        assert torch.equal(found[0][1], found[1][1])

    def test_memory_of_a_graph_that_does_not_fit_is_freed(self, capsys):
        training = TinyTraining("dcgan", capture_steps="on", **ON_GPU)
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
