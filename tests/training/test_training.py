"""EMA, averages, precision, threads, grids, signals, and short trainings that must learn something."""

import math
import signal
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from fastgan import models
from fastgan.cli.train import main
from fastgan.errors import UserError
from fastgan.layers import BatchNormAct
from fastgan.runs import checkpoint, precision, process
from fastgan.runs import config as configuration
from fastgan.runs.grid import Section, draw_grid
from fastgan.training import configure
from fastgan.training.averages import Averages
from fastgan.training.ema import EMA, ema_decay
from fastgan.training.guard import require_progress
from fastgan.training.state import new_state
from tests.support.tiny_run import IMAGES, arguments, assert_same_checkpoint, log_lines, start, tensors, train, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


def test_half_life_of_the_ema():
    keep = ema_decay(10**9, 32, 10_000, 0.05)
    assert keep ** (10_000 / 32) == pytest.approx(0.5)


def test_ramp_up_limits_the_half_life_to_a_fraction_of_images_seen():
    assert ema_decay(1000, 10, 10_000, 0.05) == pytest.approx(0.5 ** (10 / 50))
    assert ema_decay(1000, 10, 10_000, 0) == pytest.approx(0.5 ** (10 / 10_000))
    assert ema_decay(1000, 10, 0, 0.05) == 0


def test_ema_interpolates_parameters_and_copies_buffers():
    model, average = BatchNormAct(3), BatchNormAct(3)
    nn.init.constant_(model.weight, 5)
    model(torch.randn(2, 3, 4, 4))
    EMA(average, model).update(0.25)
    torch.testing.assert_close(average.weight, torch.full((3,), 2.0))
    torch.testing.assert_close(average.running_mean, model.running_mean)
    assert average.num_batches_tracked == 1


def test_averages_are_over_the_steps_that_had_a_value():
    averages = Averages()
    averages.add(loss=torch.tensor(1.0), penalty=torch.tensor(6.0))
    averages.add(loss=torch.tensor(3.0))
    assert averages.read() == {"loss": 2.0, "penalty": 6.0}
    assert averages.read() == {}


def test_averages_skip_non_finite_values():
    averages = Averages()
    for value in (1.0, math.inf, 3.0):
        averages.add(loss=torch.tensor(value), broken=torch.tensor(math.nan))
    assert averages.read() == pytest.approx({"loss": 2.0, "broken": math.nan}, nan_ok=True)


def test_a_network_without_updates_ends_the_training():
    means = {"loss_g": 1.0, "loss_d": math.nan}
    require_progress({"generator": 0, "discriminator": 19}, 20, means, 0, "")
    message = "discriminator were not finite in 20 steps in a row, up to 1,000 images .nor was loss_d.*x is from"
    with pytest.raises(UserError, match=message):
        require_progress({"generator": 0, "discriminator": 20}, 20, means, 1000, "x is from 500 images")


@pytest.mark.parametrize(
    "features, dtype", [([], torch.float32), (["AVX512-BF16"], torch.bfloat16), (["AMX"], torch.bfloat16)]
)
def test_amp_on_a_cpu_is_bf16_if_it_has_bf16_instructions(monkeypatch, features, dtype):
    monkeypatch.setattr(precision, "cpu_bf16_features", lambda: features)
    chosen = precision.choose(True, torch.device("cpu"))
    assert chosen.dtype == dtype
    assert all(name in chosen.reason for name in features or ["--amp does nothing here"])
    layer = nn.Linear(2, 2)
    with chosen.autocast():
        assert layer(torch.zeros(1, 2)).dtype == dtype
    assert precision.choose(False, torch.device("cpu")).dtype == torch.float32


def test_amp_is_fp32_if_torch_does_not_report_the_cpu_s_features(monkeypatch):
    """The checks are private functions of torch; without them fp32 is always right."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert precision.cpu_bf16_features() == []
    assert precision.choose(True, torch.device("cpu")).dtype == torch.float32


def fresh_state(config):
    model = models.ModelConfig(**vars(config.network), resolution=config.data.resolution, num_classes=10)
    return new_state(model, config, torch.device("cpu"))


def test_lazy_regularisation_corrects_its_network_s_optimizer():
    given = configuration.Config(regularization=configuration.RegularizationOptions(path_length=2.0))
    config = configure.resolve(given)
    options, terms = config.training, config.regularization
    state = fresh_state(config)
    share = terms.r1_interval / (terms.r1_interval + 1)
    (group,) = state.optimizer_d.param_groups
    assert group["lr"] == pytest.approx(options.lr_d * share)
    assert group["betas"] == pytest.approx((0, 0.99**share))
    share = terms.path_interval / (terms.path_interval + 1)
    (group,) = state.optimizer_g.param_groups
    assert group["lr"] == pytest.approx(options.lr_g * share)
    assert group["betas"] == pytest.approx((0, 0.99**share))
    (group,) = fresh_state(configure.resolve(configuration.Config())).optimizer_g.param_groups
    assert (group["lr"], group["betas"]) == (options.lr_g, options.betas)
    assert all(
        p.is_contiguous(memory_format=torch.channels_last) for p in state.discriminator.parameters() if p.ndim == 4
    )


def test_threads_come_from_the_option_or_the_environment_or_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert process.choose_threads(5)[0] == 5
    assert process.choose_threads(0)[0] == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert process.choose_threads(0)[0] == process.usable_cores() >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="a glibc setting")
def test_freed_memory_is_kept_by_the_process():
    code = """
import resource
import numpy as np
from fastgan.runs.process import keep_freed_memory
assert keep_freed_memory()
np.ones(10_000_000).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(10_000_000).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert faults < 1000  # 195,000 pages otherwise


def test_a_grid_holds_every_image_of_every_row():
    images = np.full((3, 16, 16, 1), 200, np.uint8)
    picture = np.asarray(draw_grid([Section("some", [("a", images), ("b", images[:2])])]))
    assert (picture == 200).all(2).sum() == 5 * 48 * 48


@pytest.mark.parametrize("growing", [False, True], ids=["", "growing"])
def test_the_grid_of_a_run_killed_after_saving_is_drawn_when_it_is_resumed(folder, tmp_path, growing):
    options = ["--grid-interval", "32"]
    if growing:  # 16 images a step, and then 4
        options += ["--arch", "pggan", "--level-batch", "16", "4", "--level-images", "16", "--fade-images", "8"]
    killed = tmp_path / "run"
    dies = "import os, signal\nfrom fastgan.training import sample_grid\n"
    dies += "sample_grid.save_picture = lambda picture, path: os.kill(os.getpid(), signal.SIGKILL)"
    process = start(arguments(folder, killed, *options), dies)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == -signal.SIGKILL, output
    assert checkpoint.read_header(killed).images == 32 and not list(killed.glob("grid-*"))
    assert main(["--resume", str(killed)]) == 0
    unbroken = train(folder, tmp_path / "unbroken", *options)
    pictures = {path.name: path.read_bytes() for path in unbroken.glob("grid-*")}
    assert sorted(pictures) == ["grid-000000032.png", "grid-000000048.png"]
    assert {path.name: path.read_bytes() for path in killed.glob("grid-*")} == pictures


def test_a_resumed_run_draws_no_grid_before_it_is_due(folder, tmp_path):
    run = train(folder, tmp_path / "run", "--images", "36", "--grid-interval", "32")
    (run / "grid-000000036.png").unlink()
    assert main(["--resume", str(run), "--images", "40"]) == 0
    assert sorted(path.name for path in run.glob("grid-*")) == ["grid-000000032.png", "grid-000000040.png"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_saves_a_run_that_can_be_resumed(folder, tmp_path, signum):
    run = tmp_path / "run"
    process = start(arguments(folder, run, "--images", "1000000"))
    wait_for(lambda: log_lines(run), process)
    process.send_signal(signum)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signum
    assert f"go on with: python -m fastgan.train --resume {run}" in output
    assert "Traceback" not in output
    images = log_lines(run)[-1]["images"]
    assert f"stopped at {images:,} images" in output
    assert (run / f"grid-{images:09d}.png").exists()
    assert_same_checkpoint(run, train(folder, tmp_path / "unbroken", "--images", str(images)))


def test_a_signal_echo_counts_as_the_same_request():
    """Processes of torchrun that share its terminal get Ctrl-C from both."""
    with process.finish_step_on_signal(echo=60.0) as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.exit_code == 128 + signal.SIGTERM


def test_a_second_ctrl_c_ends_the_process_at_once(folder, tmp_path):
    run = tmp_path / "run"
    hang = "from fastgan.runs import checkpoint\nimport time\n" + (
        "save = checkpoint.save\n"
        "def slow(path, state, *rest):\n"
        "    save(path, state, *rest)\n"
        "    if state.step: print('hanging', flush=True); time.sleep(600)\n"
        "checkpoint.save = slow"
    )
    process = start(arguments(folder, run), hang)
    for line in process.stdout:
        if "hanging" in line:
            break
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if "once more to stop at once" in line:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT
    process.stdout.close()


def test_the_step_that_regularises_differs_from_the_one_that_does_not(folder, tmp_path):
    lines = log_lines(train(folder, tmp_path / "with"))
    assert all(line["r1_norm2"] > 0 for line in lines)
    assert lines[-1]["images"] == IMAGES
    lines = log_lines(train(folder, tmp_path / "without", "--r1-gamma", "0"))
    assert all("r1_norm2" not in line for line in lines)


@pytest.mark.parametrize(
    "options",
    [
        ["--arch", "stylegan2", "--path-length", "2", "--augment", "ada"],
        [
            "--arch",
            "pggan",
            "--grow-from",
            "4",
            "--level-batch",
            "16",
            "8",
            "--level-images",
            "32",
            "--fade-images",
            "16",
        ],
    ],
)
def test_micro_batches_and_gradient_checkpointing_train(folder, tmp_path, options):
    run = train(folder, tmp_path / "run", *options, "--batch", "16", "--batch-gpu", "8", "--checkpoint-blocks")
    lines = log_lines(run)
    assert lines[-1]["images"] == IMAGES
    assert all(math.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("loss", get_args(configuration.Loss))
def test_every_objective_trains(folder, tmp_path, loss):
    run = train(folder, tmp_path / "run", "--arch", "dcgan", "--loss", loss, "--images", "40")
    lines = log_lines(run)
    assert lines[-1]["images"] == 40
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert ("gradient_penalty" in lines[-1]) == (loss == "wgan-gp")
    weights = [
        value for name, value in tensors(run).items() if name.startswith("discriminator.") and "running" not in name
    ]
    if loss == "wgan":
        assert max(np.abs(value).max() for value in weights if value.dtype == np.float32) <= np.float32(0.01)


@pytest.mark.slow
def test_dcgan_with_labels_draws_different_images_of_a_class(tmp_path):
    options = ["--arch", "dcgan", "--labels", "True", "--resolution", "16", "--channel-base", "512", "--batch", "32"]
    more = ["--channel-max", "64", "--images", "4000", "--grid-interval", "0", "--no-tensorboard"]
    assert main([*options, *more, "--out", str(tmp_path / "run")]) == 0
    line = log_lines(tmp_path / "run")[-1]
    assert line["distance_fake"] > 0.3 * line["distance_real"]  # 0.14 with labels as long as latents


@pytest.mark.slow
def test_a_minute_of_training_on_glyphs(tmp_path):
    from fastgan.runs import drawing

    run = tmp_path / "run"
    options = ["--amp", "--resolution", "16", "--channel-base", "256", "--channel-max", "32", "--images", "4000"]
    subprocess.run(
        [sys.executable, "-m", "fastgan.train", *options, "--out", str(run)], check=True, cwd=sys.path[0], timeout=300
    )
    lines = log_lines(run)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert list((run / "tensorboard").iterdir())
    generator, _ = checkpoint.load_generator(run)
    labels = torch.arange(10).repeat_interleave(4)
    images = drawing.draw(generator, drawing.latents(range(40), generator.z_dim), labels, batch=40).astype(float)
    assert images.std(axis=(1, 2, 3)).min() > 10, "an image is blank"
    assert images.std(axis=0).mean() > 10, "all images are the same"
    middle, edge = images[:, 4:12, 4:12].mean(), images[:, :2].mean()
    assert middle > edge + 20, "glyphs are bright in the middle and dark at the edge"
