"""The training step: which networks it trains, with which gradients, layouts and memory."""

import math
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.memory import TARGETS, peak, peak_of
from bench.training_step import CASES, Ours, Textbook
from fastgan import models
from fastgan.errors import UserError
from fastgan.layers import BatchNormAct
from fastgan.models.gradient_checkpointing import enable_gradient_checkpointing
from fastgan.ops import convolution
from fastgan.penalties import logits_and_squared_grad, terms
from fastgan.runs import config as configuration
from fastgan.training import configure
from fastgan.training.averages import Averages
from fastgan.training.growth import Schedule
from fastgan.training.joint_batch import JointBatch
from fastgan.training.state import new_state
from fastgan.training.step import MicroBatch, Step, StepKind
from tests.support.tiny_training import TinyTraining, assert_same

SMALL = {"channel_base": 64, "channel_max": 8, "z_dim": 8}


def a_step(arch="dcgan", regularization=None, checkpoint_blocks=False, labels=False, grow_from="auto", **options):
    """Step and state of a tiny training, whose steps are not captured: they leave gradients behind."""
    config = configuration.Config(
        network=configuration.NetworkOptions(arch=arch, **SMALL),
        data=configuration.DataOptions(resolution=8, labels=labels),
        training=configuration.TrainingOptions(**{"batch": 4, **options}),
        regularization=configuration.RegularizationOptions(**(regularization or {})),
        growth=configuration.GrowthOptions(grow_from=grow_from),
        machine=configuration.MachineOptions(checkpoint_blocks=checkpoint_blocks, capture_steps="off"),
    )
    config = configure.resolve(config)
    model = models.ModelConfig(**vars(config.network), resolution=8, num_classes=10 if labels else 0)
    torch.manual_seed(0)
    state = new_state(model, config, torch.device("cpu"))
    return Step(state, config, 8, nullcontext, Averages()), state


@pytest.fixture
def fp64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def images(count, seed=1):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_the_generator_trains_every_discriminator_steps_th_step():
    step, state = a_step(discriminator_steps=3)
    for number in range(1, 7):
        before = [p.clone() for p in (*state.generator.parameters(), *state.ema.parameters())]
        discriminator = [p.clone() for p in state.discriminator.parameters()]
        step(torch.rand(4, 1, 8, 8) * 2 - 1, torch.arange(4))
        after = [*state.generator.parameters(), *state.ema.parameters()]
        moved = not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert moved == (number % 3 == 0)
        assert not all(torch.equal(a, b) for a, b in zip(discriminator, state.discriminator.parameters(), strict=True))
        assert (state.step, state.images) == (number, 4 * number)


def test_learning_rate_and_beta_follow_half_a_cosine():
    step, state = a_step(images=16, lr_g=0.1, lr_d=0.2, betas=(0.0, 0.9), final_lr=0.25, final_beta2=0.99)
    seen = []
    for _ in range(5):
        step(torch.rand(4, 1, 8, 8), torch.arange(4), 2.0)
        seen.append([(g["lr"], g["betas"][1]) for o in (state.optimizer_g, state.optimizer_d) for g in o.param_groups])
    for i, share in enumerate([1, 0.25 + 0.75 * (1 + math.sqrt(0.5)) / 2, 0.625]):
        beta = 0.99 - 0.09 * (share - 0.25) / 0.75
        assert seen[i] == [pytest.approx((0.2 * share, beta)), pytest.approx((0.4 * share, beta))]
    assert seen[4] == [pytest.approx((0.05, 0.99)), pytest.approx((0.1, 0.99))]


def test_penalties_are_due_at_their_intervals():
    step, _ = a_step("stylegan2", {"r1_gamma": 1.0, "r1_interval": 2, "path_length": 2.0, "path_interval": 3})
    for number in range(6):
        step(images(4), None)
        means = step.averages.read()
        assert ("r1_norm2" in means, "path_penalty" in means) == (number % 2 == 0, number % 3 == 0)


def test_a_lazy_path_length_penalty_is_stronger_by_its_interval():
    found = []
    for strength, interval in ((2.0, 1), (1.0, 2)):
        step, state = a_step("stylegan2", {"path_length": strength, "path_interval": interval})
        step(images(4), None)
        found.append(gradients(state.generator))
    torch.testing.assert_close(*found)


def test_random_numbers_of_a_step_follow_from_its_number():
    drawn = []
    for first in (0, 1):
        step, state = a_step("mlp")
        state.step = first
        state.generator.register_forward_pre_hook(lambda _, args: drawn.append(args[0]))
        for _ in range(2):
            step(images(4), None)
    assert torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[2], drawn[3])


# In one pass or in several ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch, labels", [("stylegan2", True), ("r3gan", True), ("pggan", False), ("mlp", False), ("dcgan", True)]
)
def test_a_joint_batch_gives_the_logits_of_separate_batches(fp64, arch, labels):
    _, state = a_step(arch, labels=labels)
    joint = JointBatch(state.discriminator)
    for parameter in state.discriminator.parameters():
        nn.init.normal_(parameter, std=0.3)  # some are zero at first
    fake, real = images(8, 1), images(8, 2)
    label = torch.arange(8) if labels else None
    assert joint.fits(real)
    with joint.separate_statistics():
        both = state.discriminator(joint.join(fake, real), joint.join(label, label) if labels else None)
    for ours, alone in zip(joint.split(both), (fake, real), strict=True):
        torch.testing.assert_close(ours, state.discriminator(alone, label))


def test_batches_are_not_joined_where_samples_of_a_batch_depend_on_each_other():
    _, state = a_step("stylegan2")
    assert not JointBatch(state.discriminator).fits(images(2))  # two alone are a group, four together would be one
    assert not JointBatch(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))).fits(images(8))
    ours = JointBatch(nn.Sequential(nn.Conv2d(1, 4, 3), BatchNormAct(4)))
    assert ours.fits(images(8)) and not ours.fits(images(8), penalized=True)


@pytest.mark.parametrize(
    "arch, regularization, options",
    [
        ("r3gan", {"r1_gamma": 1.0, "r2_gamma": 0.5}, {}),
        ("mlp", {"r1_gamma": 1.0, "r1_interval": 2}, {"loss": "minimax"}),
        ("mlp", {}, {"loss": "wgan-gp", "discriminator_steps": 1}),
        ("mlp", {"r1_gamma": 0.0, "drift": 0.01}, {"loss": "hinge"}),
    ],
)
@pytest.mark.parametrize("batch_gpu", [2, 8])
def test_micro_batches_add_up_to_the_gradients_of_the_batch(
    fp64, monkeypatch, arch, regularization, options, batch_gpu
):
    """Images are the same; wgan-gp's interpolation weights, random in each micro-batch, are fixed here."""
    lerp_samples = terms.lerp_samples
    at = lambda a, b, share: lerp_samples(a, b, torch.full_like(share, 0.3))
    monkeypatch.setattr(terms, "lerp_samples", at)
    expected = None
    for size in (0, batch_gpu):
        step, state = a_step(arch, regularization, batch=8, batch_gpu=size, lr_g=1e-12, lr_d=1e-12, **options)
        for _ in range(2):
            step(images(8), None)
        found = gradients(state.generator), gradients(state.discriminator)
        expected = expected or found
    assert all(len(each) > 3 for each in expected)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_micro_batches_need_less_memory():
    peaks = []
    for size in (0, 8):
        step, _ = a_step("r3gan", batch=64, batch_gpu=size)
        step(images(64), None)  # what optimizers keep is there from the first step on
        peaks.append(peak_of(lambda step=step: step(images(64), None)))
    assert peaks[1] < 0.5 * peaks[0]


# Layouts ------------------------------------------------------------------------------------------------------------

ATEN = torch.ops.aten


class LayoutChanges(TorchDispatchMode):
    """Counts copies of feature maps and weights from one memory format to another, and convolutions of what is not in
    channels_last, which copy inside. Images (at most 4 channels) and maps of up to 4x4, which the dense layer behind
    them wants flat, are small."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (ATEN.clone.default, ATEN._to_copy.default):
            self._compare(function, args[0], result)
        elif function is ATEN.copy_.default:
            self._compare(function, args[1], args[0])
        elif function in (ATEN.convolution.default, ATEN.convolution_backward.default):
            for x in args[:3]:
                if x is not None and self._format(x) not in (None, "channels_last"):
                    self.found.append((function, tuple(x.shape), x.stride()))
        return result

    def _compare(self, function, source, target):
        before, after = self._format(source), self._format(target)
        if before != after and None not in (before, after):
            self.found.append((function, tuple(source.shape), source.stride(), target.stride()))

    @staticmethod
    def _format(x):
        if x.dim() != 4 or min(x.shape[:2]) <= 4 or x.shape[2:].numel() == 1 or 9 < x.shape[2:].numel() <= 16:
            return None
        if x.is_contiguous(memory_format=torch.channels_last):
            return "channels_last"
        return "transposed" if x.transpose(0, 1).is_contiguous(memory_format=torch.channels_last) else "other"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["stylegan2", "stylegan3", "pggan", "stylegan", "r3gan"])
def test_no_layout_changes_within_a_step(arch, dtype):
    """In forward and backward of every kind of step except path length, and in the optimizers."""
    config = configuration.Config(
        network=configuration.NetworkOptions(arch=arch, channel_base=2048, channel_max=64, z_dim=8),
        data=configuration.DataOptions(resolution=32, labels=False, channels=3),
        training=configuration.TrainingOptions(batch=8),
    )
    config = configure.resolve(config)
    model = models.ModelConfig(**vars(config.network), resolution=32, channels=3)
    state = new_state(model, config, torch.device("cpu"))
    autocast = lambda: torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    step = Step(state, config, 8, autocast, Averages())
    real = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
    for _ in range(2):
        with LayoutChanges() as changes:
            step(real, None)
        assert changes.found == []


def test_layout_changes_are_detected():
    with LayoutChanges() as changes:
        torch.randn(8, 8, 8, 8).contiguous(memory_format=torch.channels_last)
        torch.nn.functional.conv2d(torch.randn(8, 8, 8, 8), torch.randn(8, 8, 3, 3))
    assert len(changes.found) == 3


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_needs_less_memory_than_a_textbook_step():
    """Peak memory over steps of every kind."""
    small = {"channel_base": 1024, "channel_max": 64, "z_dim": 64, "mapping_layers": 2}
    case = replace(CASES["stylegan2"], network=CASES["stylegan2"].network | small, resolution=32, batch=8)
    ours = peak(partial(Ours, case, False), case)
    theirs = peak(partial(Textbook, case, "scaled", torch.channels_last), case)
    assert ours < TARGETS["fp32", "fp32"] * theirs


def test_images_drawn_twice_in_a_step_are_the_same():
    """Lazy penalties make the generator draw its images again. Gradients equal those of a run with the penalty at every
    step: a weight of 2 every second step is 1 on average. The discriminator's learning rate is almost zero."""
    found = []
    for gamma, interval in ((2.0, 1), (1.0, 2)):
        step, state = a_step("stylegan2", {"r1_gamma": gamma, "r1_interval": interval}, lr_d=1e-30, style_mixing=0.9)
        calls = []
        state.generator.register_forward_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        step(images(4), None)
        assert calls == ([True] if interval == 1 else [False, True])
        found.append((gradients(state.discriminator), gradients(state.generator)))
    torch.testing.assert_close(*found)


# Blocks that are computed again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["stylegan2", "stylegan3", "stylegan", "pggan", "r3gan"])
def test_gradient_checkpointing_keeps_gradients(arch):
    """First and second derivatives, with noise that recomputation draws again."""
    _, state = a_step(arch, labels=True)
    generator, discriminator = state.generator.double(), state.discriminator.double()
    for parameter in (*generator.parameters(), *discriminator.parameters()):
        nn.init.normal_(parameter, std=0.3)
    z, label = torch.randn(4, 8, dtype=torch.float64), torch.arange(4)
    expected = None
    for again in (False, True):
        if again:
            enable_gradient_checkpointing(generator)
            enable_gradient_checkpointing(discriminator)
        generator.zero_grad()
        discriminator.zero_grad()
        torch.manual_seed(3)
        fake = generator(z, label)
        logits, squares = logits_and_squared_grad(discriminator, fake, label)
        (logits.square().mean() + squares.mean()).backward()
        found = gradients(generator), gradients(discriminator)
        expected = expected or found
    torch.testing.assert_close(found, expected)


def test_gradient_checkpointing_keeps_the_path_length_penalty():
    found = []
    for again in (False, True):
        step, state = a_step("stylegan2", {"path_length": 2.0, "path_interval": 1}, checkpoint_blocks=again)
        for number in range(2):
            step(images(4, number), None)
        found.append((gradients(state.generator), gradients(state.discriminator)))
    torch.testing.assert_close(*found)


def test_gradient_checkpointing_needs_less_memory():
    """In a deep network; with few blocks, a single block takes most of the memory."""
    peaks = []
    for again in (False, True):
        config = models.ModelConfig(arch="stylegan2", resolution=64, channel_base=512, channel_max=32, z_dim=16)
        torch.manual_seed(0)
        generator, discriminator = (each.to(memory_format=torch.channels_last) for each in models.build(config))
        if again:
            enable_gradient_checkpointing(generator)
            enable_gradient_checkpointing(discriminator)
        z = torch.randn(8, 16)
        peaks.append(peak_of(lambda g=generator, c=discriminator, z=z: c(g(z)).sum().backward()))
    assert peaks[1] < 0.8 * peaks[0]


def test_networks_without_blocks_refuse_gradient_checkpointing():
    with pytest.raises(ValueError, match=r"mlp\.Discriminator is not made of blocks"):
        enable_gradient_checkpointing(a_step("mlp")[1].discriminator)


# Frozen layers -------------------------------------------------------------------------------------------------------

FROZEN = {  # how many layers can be frozen, the first ones left of them, and the options of the training
    "stylegan2": (4, ["from_rgb", "blocks.0.conv", "blocks.0.down", "blocks.0.skip"], {"r1_gamma": 1.0}, {}),
    "pggan": (3, ["from_rgb.1", "blocks.0.conv", "blocks.0.down"], {}, {"loss": "wgan-gp"}),
    "stylegan": (3, ["from_rgb.1", "blocks.0.conv", "blocks.0.down"], {"r1_gamma": 1.0}, {}),
    "r3gan": (5, ["from_rgb", "trunk.0", "trunk.1", "trunk.3", "trunk.4"], {"r2_gamma": 1.0}, {}),
    "fastgan": (2, ["stem.0", ("blocks.4", "small_stem")], {}, {}),
    "dcgan": (1, ["layers.0"], {}, {}),
    "cgan": (3, ["network.layers.0", "network.layers.1", "network.layers.3"], {}, {"loss": "wgan"}),
    "mlp": (2, ["layers.0", "layers.1"], {"r1_gamma": 1.0}, {"loss": "wgan-gp"}),
}


@pytest.mark.parametrize("arch", FROZEN)
def test_frozen_layers_stay_and_others_learn_as_without_freezing(fp64, arch):
    """Also with a penalty, in one pass or by double backward, and with weight clipping."""
    count, layers, regularization, options = FROZEN[arch]
    given = {
        "regularization": {"r1_interval": 1, **regularization},
        "labels": arch == "cgan",
        "grow_from": 0,
        **options,
    }
    for frozen in {1, count}:
        step, state = a_step(arch, init_from="file", freeze_d=frozen, **given)
        plain, expected = a_step(arch, **given)
        before = {name: parameter.clone() for name, parameter in state.discriminator.named_parameters()}
        parts = [part for layer in layers[:frozen] for part in ([layer] if isinstance(layer, str) else layer)]
        stays = {name for name in before if name.startswith(tuple(f"{part}." for part in parts))}
        for each in (step, plain):
            each(images(4), torch.arange(4) if arch == "cgan" else None)
        learning = {id(parameter) for group in state.optimizer_d.param_groups for parameter in group["params"]}
        learned = dict(expected.discriminator.named_parameters())
        for name, parameter in state.discriminator.named_parameters():
            assert (name in stays) == (id(parameter) not in learning) == (not parameter.requires_grad)
            if name in stays:
                assert torch.equal(parameter, before[name]) and parameter.grad is None
            else:
                torch.testing.assert_close(parameter, learned[name], rtol=1e-9, atol=1e-12)
        assert any(not torch.equal(learned[name], before[name]) for name in stays)
        assert len(state.optimizer_d.state) <= len(learning)


@pytest.mark.parametrize("arch", FROZEN)
def test_more_frozen_layers_than_exist_are_refused(arch):
    count = FROZEN[arch][0]
    with pytest.raises(UserError, match=f"--freeze-d {count + 1}: this discriminator has {count} layers to freeze"):
        a_step(arch, labels=arch == "cgan", grow_from=0, init_from="file", freeze_d=count + 1)


@pytest.mark.parametrize("arch", ["stylegan2", "r3gan"])
def test_frozen_layers_compute_no_weight_gradients(arch, monkeypatch):
    """Neither in plain steps nor in penalties."""
    shapes = []
    made = convolution._gradients

    def noted(dy, x, weight, g, wanted):
        shapes.extend([tuple(weight.shape)] if wanted[1] else [])
        return made(dy, x, weight, g, wanted)

    monkeypatch.setattr(convolution, "_gradients", noted)
    count, done = FROZEN[arch][0], []
    for frozen in (0, count):
        given = {"init_from": "file", "freeze_d": frozen} if frozen else {}
        step, state = a_step(arch, regularization={"r1_gamma": 1.0, "r1_interval": 1}, **given)
        step._set_schedules(1.0, 4)
        step._add_discriminator_gradients(
            StepKind(False, True, False, False, None), MicroBatch(None, images(4), None, 1.0, 0), images(4, 2), True
        )
        kept = [tuple(p.shape) for p in state.discriminator.parameters() if p.ndim == 4 and p.requires_grad]
        done.append(len(shapes))
        assert set(shapes) <= set(kept)
        shapes.clear()
    assert done[1] < done[0]


# torch.compile -------------------------------------------------------------------------------------------------------

COMPILED = {  # with the backend of torch.compile; "eager" traces, and compiles nothing
    "mlp": ("inductor", {"arch": "mlp", "regularization": {"r1_interval": 2}}),
    "styles": (
        "eager",
        {"arch": "stylegan2", "regularization": {"r1_interval": 2, "path_length": 2.0, "path_interval": 2}},
    ),
    "growing": ("eager", {"arch": "pggan", "schedule": Schedule(4, 8, 16, 16, {4: 8, 8: 8}, {4: 1.0, 8: 1.0})}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_networks_train_like_eager_ones(monkeypatch, case):
    backend, options = COMPILED[case]
    if backend == "inductor" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("inductor needs a C++ compiler on a CPU")
    torch.compiler.reset()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        compiled = TinyTraining(compile=True, **options)
    plain = TinyTraining(**options)
    for training in (compiled, plain):
        torch.manual_seed(2)
        training.run(5)
    torch.compiler.reset()
    assert compiled.step._generator is not compiled.state.generator
    assert_same(compiled, plain, rtol=1e-3)


def test_compile_without_a_compiler_is_an_error(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no working C++ compiler\nlong trace")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        UserError, match=r"--compile: .* does not work here \(no working C\+\+ compiler\); leave it out"
    ):
        TinyTraining(compile=True)
