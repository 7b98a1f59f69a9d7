"""Non-finite gradients: skipped updates, and loss scaling for fp16."""

import contextlib
import copy
import itertools
import math
import re

import pytest
import torch
from torch import nn

from fastgan.cli.train import main
from fastgan.errors import UserError
from fastgan.runs import checkpoint, process
from fastgan.training import loop
from fastgan.training.guard import (
    FIRST_SCALE,
    LIMIT,
    LIMIT_AT_THE_END,
    Diverged,
    GradientGuard,
    SkippedShare,
    require_finite,
    require_progress,
    zero_gradients_if,
)
from tests.support.tiny_run import arguments, log_lines, make_folder
from tests.support.tiny_training import TinyTraining

BAD = pytest.mark.parametrize("value", [math.nan, math.inf])


def spoil(network: nn.Module, value: float, when) -> None:
    """Set one number of one gradient to `value`, in backward passes where `when()` is true."""

    def hook(gradient):
        gradient = gradient.clone()
        if when():
            gradient.view(-1)[-1] = value
        return gradient

    list(network.parameters())[1].register_hook(hook)


@BAD
@pytest.mark.parametrize(
    "options",
    [{}, {"final_beta2": 0.99}, {"loss": "wgan", "discriminator_steps": 1}],
    ids=["fused", "captured", "rmsprop"],
)
def test_non_finite_gradients_skip_the_update(options, value):
    """Weights and optimizer state stay; the other network trains on; the next step is normal."""
    training = TinyTraining("mlp", labels=False, **options)
    if "final_beta2" in options:  # the form that a captured graph has
        for group in training.state.optimizer_d.param_groups:
            group["betas"] = 0.5, torch.tensor(0.99, dtype=torch.float64)
        training.step._initial_rates["d"] = [(0.001, None)]
    bad = False
    spoil(training.state.discriminator, value, lambda: bad)
    training.run(2)
    before = copy.deepcopy(training.tensors())
    bad = True
    training.run(1)
    after = copy.deepcopy(training.tensors())
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("discriminator.")} <= same
    if options.get("loss") != "wgan":  # RMSprop's squares decay
        assert {name for name in before if name.startswith("optimizer_d.")} <= same
    assert not {name for name in before if name.startswith("generator.") and name.endswith("weight")} & same
    assert training.step.skipped() == {"generator": 0, "discriminator": 1}
    bad = False
    training.run(1)
    assert training.step.skipped() == {"generator": 0, "discriminator": 0}
    moved = training.tensors()
    assert all(value.isfinite().all() for value in moved.values())
    assert any(not torch.equal(after[name], moved[name]) for name in after if name.startswith("discriminator."))
    means = training.averages.read()
    assert means["skipped_d"] == 0.25 and means["skipped_g"] == 0 and math.isfinite(means["loss_d"])


def test_a_network_without_updates_ends_the_training():
    means = {"loss_g": 1.0, "loss_d": math.nan}
    require_progress({"generator": 0, "discriminator": 19}, 20, means, 0, "")
    message = "discriminator were not finite in 20 steps in a row, up to 1,000 images .nor was loss_d.*x is from"
    with pytest.raises(UserError, match=message):
        require_progress({"generator": 0, "discriminator": 20}, 20, means, 1000, "x is from 500 images")


def test_a_diverged_training_ends_with_an_error_and_keeps_its_checkpoint(tmp_path, capsys):
    folder, out = make_folder(tmp_path / "images"), tmp_path / "run"
    options = ("--arch", "mlp", "--images", "400", "--lr-d", "1e30", "--r1-gamma", "0", "--loss", "least-squares")
    assert main(arguments(folder, out, *options)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "diverged: discriminator." in message and "--lr-d" in message and str(out) in message
    assert all("NaN" not in str(line) for line in log_lines(out))
    header = checkpoint.read_header(out)
    assert header.images < 400
    for value in checkpoint._read(header, "discriminator.").values():
        assert value.isfinite().all()


BROKEN = {  # a tensor that no gradient passes through: options, its network in a state, and a part of its name
    "EMA": (["--arch", "mlp"], lambda state: state.ema, ""),
    "batch norm": (["--arch", "dcgan"], lambda state: state.generator, "running_var"),
    "mean of w": (["--arch", "stylegan2"], lambda state: state.generator, "w_avg"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_tensor_that_is_not_finite_is_named_and_not_saved(case, tmp_path, monkeypatch, capsys):
    options, network, part = BROKEN[case]
    named = []

    class Breaking(loop.Step):
        def __call__(self, *given):
            super().__call__(*given)
            if self.state.images == 28:
                tensors = network(self.state).state_dict()
                named.append(next(name for name in tensors if part in name))
                tensors[named[0]].view(-1)[-1] = math.nan

    monkeypatch.setattr(loop, "Step", Breaking)
    folder, out = make_folder(tmp_path / "images"), tmp_path / "run"
    assert main(arguments(folder, out, *options)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: training has diverged: \w+\.{re.escape(named[0])} (is|and 1 more)", message), message
    assert f"{out / checkpoint.FILE_NAME} is kept as it was" in message
    assert checkpoint.read_header(out).images == 16


def test_large_numbers_are_finite():
    """Squares of gradients may be larger than weights."""
    half, single = torch.full((9,), 6e4, dtype=torch.float16), torch.full((9,), 1e18)
    state = {"half": half, "single": single, "optimizer_g.exp_avg_sq": single * 1e20, "none": torch.empty(0)}
    require_finite(state | {"count": torch.tensor(2**62)}, "")
    for name, broken in {"half": -half * 2, "single": single * 2, "optimizer_g.exp_avg_sq": single * 1e30}.items():
        with pytest.raises(Diverged, match=f"diverged: {name} is not finite; x; try"):
            require_finite(state | {name: broken}, "x")
    with pytest.raises(Diverged, match="diverged: half and 1 more tensors are not finite"):
        require_finite({"half": half * 2, "single": single * math.nan}, "x")


def test_a_training_that_skips_half_of_its_steps_saves_and_ends_with_an_error(tmp_path, monkeypatch, capsys):
    check, steps = GradientGuard.unscale_and_check, itertools.count()

    def check_of_nan(self, parameters):
        parameters = list(parameters)
        if next(steps) % 4 < 2:  # every other step, of both networks
            parameters[0].grad.fill_(math.nan)
        check(self, parameters)

    monkeypatch.setattr(GradientGuard, "unscale_and_check", check_of_nan)
    folder, out = make_folder(tmp_path / "images"), tmp_path / "run"
    argv = arguments(folder, out, "--arch", "mlp", "--images", "80", "--checkpoint-interval", "0")
    assert main(argv) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "gradients of the generator were not finite in 10 of the last 20 steps, which were skipped" in message
    assert f"{out / checkpoint.FILE_NAME} is from 80 images; try" in message
    assert checkpoint.read_header(out).images == 80


def test_few_skipped_steps_are_no_error():
    share = SkippedShare()
    share.add(10, {"skipped_g": 1.0, "skipped_d": 1.0})
    share.require_less_than_half(11, "")  # too few steps to judge
    share.add(11, {"skipped_g": 0.0})
    share.require_less_than_half(11, "")
    share.add(10, {"skipped_d": 0.5})
    with pytest.raises(UserError, match="gradients of the discriminator were not finite in 5 of the last 10 steps"):
        share.require_less_than_half(10, "")


def test_a_signal_saves_while_steps_are_skipped(tmp_path, monkeypatch):
    """The scale of fp16 may still be falling. A resumed run continues the count."""

    class Interrupt:
        exit_code, left = 130, 10

        @property
        def signum(self):
            self.left -= 1
            return 2 if self.left == 0 else 0

    check = GradientGuard.unscale_and_check

    def check_of_nan(self, parameters):
        parameters = list(parameters)
        for parameter in parameters:
            parameter.grad.fill_(math.nan)
        check(self, parameters)

    monkeypatch.setattr(GradientGuard, "unscale_and_check", check_of_nan)
    monkeypatch.setattr(process, "finish_step_on_signal", lambda _: contextlib.nullcontext(Interrupt()))
    folder, out = make_folder(tmp_path / "images"), tmp_path / "run"
    assert main(arguments(folder, out, "--arch", "mlp", "--images", "400")) == 130
    header = checkpoint.read_header(out)
    assert header.step == 10
    (streak,) = checkpoint._read(header, "statistics.guard_d.streak").values()
    assert LIMIT_AT_THE_END <= streak < LIMIT


def test_a_scaled_loss_gives_the_unscaled_gradients():
    """Up to fp16's precision; on overflow the scale is halved and the step skipped."""
    torch.manual_seed(0)
    x, layer = torch.randn(16, 8), nn.Linear(8, 1)
    expected = torch.autograd.grad(layer(x).square().mean(), tuple(layer.parameters()))
    guard = GradientGuard()
    guard.begin(scaled=True)
    assert guard.scale == FIRST_SCALE
    found = []
    for _ in range(3):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = layer(x).square().mean()
        guard.scale_loss(loss).backward()
        guard.unscale_and_check(layer.parameters())
        found.append(bool(guard.found_inf))
        if not guard.found_inf:
            break
    assert found[-1] is False
    assert guard.scale == FIRST_SCALE / 2 ** sum(found)
    torch.testing.assert_close(tuple(p.grad for p in layer.parameters()), expected, rtol=1e-2, atol=1e-3)


def test_small_gradients_are_not_lost_in_fp16():
    """2^-20 times a gradient underflows in fp16 without scaling."""
    weight = nn.Parameter(torch.ones(4, 4))
    x = torch.full((1, 4), 2.0**-20)
    kept = []
    for scaled in (False, True):
        guard, weight.grad = GradientGuard(), None
        guard.begin(scaled)
        with torch.autocast("cpu", dtype=torch.float16):
            y = (x * 2.0**10) @ weight * 2.0**-15
        guard.scale_loss(y.float().sum() * 2.0**-10).backward()
        guard.unscale_and_check([weight])
        kept.append(bool(weight.grad.abs().sum() > 0))
    assert kept == [False, True]


@pytest.mark.parametrize("arch, regularization", [("dcgan", {}), ("stylegan2", {"r1_gamma": 1.0, "r1_interval": 2})])
def test_networks_train_in_fp16(arch, regularization):
    training = TinyTraining(
        arch, regularization, labels=arch == "stylegan2", scaled=True,
        autocast=lambda: torch.autocast("cpu", dtype=torch.float16),
    )  # fmt: skip
    training.run(8)
    means = training.averages.read()
    assert math.isfinite(means["loss_g"]) and means["skipped_g"] < 1 and means["skipped_d"] < 1
    assert all(value.isfinite().all() for value in training.tensors().values())
    assert training.state.statistics["guard_d"].scale > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_become_zero_also_where_they_are_not_finite(dtype):
    given = [torch.tensor([1.5, math.nan, -math.inf, -0.0], dtype=dtype), torch.tensor([2.0], dtype=dtype)]
    unchanged, zeroed = ([each.clone() for each in given] for _ in range(2))
    zero_gradients_if(torch.tensor(0.0), unchanged)
    zero_gradients_if(torch.tensor(1.0), zeroed)
    for before, same, zero in zip(given, unchanged, zeroed, strict=True):
        assert torch.equal(same.view(torch.uint8), before.view(torch.uint8))
        assert torch.equal(zero, torch.zeros_like(zero))
