"""Whole tiny trainings: grids, signals, micro-batches, objectives, and that they learn something."""

import math
import signal
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch

from fastgan.cli.train import main
from fastgan.data import glyphs
from fastgan.runs import checkpoint, drawing, precision
from fastgan.runs import config as configuration
from tests.support.processes import start, wait_for
from tests.support.tiny_run import IMAGES, arguments, assert_same_checkpoint, log_lines, tensors, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


@pytest.mark.parametrize("growing", [False, True], ids=["", "growing"])
def test_the_grid_of_a_run_killed_after_saving_is_drawn_when_it_is_resumed(folder, tmp_path, growing):
    options = ["--grid-interval", "32"]
    if growing:  # 16 images a step, and then 4
        options += ["--arch", "pggan", "--level-batch", "16", "4", "--level-images", "16", "--fade-images", "8"]
    killed = tmp_path / "run"
    dies = "import os, signal\nfrom fastgan.training import sample_grid\n"
    dies += "sample_grid.save_picture = lambda picture, path: os.kill(os.getpid(), signal.SIGKILL)"
    process = start(arguments(folder, killed, *options), dies)
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    assert checkpoint.read_header(killed).images == 32 and not list(killed.glob("grid-*"))
    assert main(["--resume", str(killed)]) == 0
    unbroken = train(folder, tmp_path / "unbroken", *options)
    pictures = {path.name: path.read_bytes() for path in unbroken.glob("grid-*")}
    assert sorted(pictures) == ["grid-000000032.png", "grid-000000048.png"]
    assert {path.name: path.read_bytes() for path in killed.glob("grid-*")} == pictures


def test_a_checkpoint_that_was_saved_but_not_kept_is_kept_when_the_run_is_resumed(folder, tmp_path):
    options = ["--keep-checkpoints", "2"]
    killed, kept = tmp_path / "run", "checkpoint-000000032.safetensors"
    dies = "import os, signal\nfrom fastgan.runs import checkpoint\nkeep = checkpoint.keep_newest\n"
    dies += "def dying(path, images, count):\n    if images == 32: os.kill(os.getpid(), signal.SIGKILL)\n"
    dies += "    keep(path, images, count)\ncheckpoint.keep_newest = dying"
    assert start(arguments(folder, killed, *options), dies).wait() == -signal.SIGKILL
    assert checkpoint.read_header(killed).images == 32 and not (killed / kept).exists()
    assert main(["--resume", str(killed)]) == 0
    train(folder, tmp_path / "unbroken", *options)
    left = [{path.name for path in run.iterdir()} for run in (killed, tmp_path / "unbroken")]
    assert left[0] == left[1] and kept in left[0]
    assert checkpoint.read_header(killed / kept).images == 32


def test_a_resumed_run_draws_no_grid_before_it_is_due(folder, tmp_path):
    run = train(folder, tmp_path / "run", "--images", "36", "--grid-interval", "32")
    (run / "grid-000000036.png").unlink()
    assert main(["--resume", str(run), "--images", "40"]) == 0
    assert sorted(path.name for path in run.glob("grid-*")) == ["grid-000000032.png", "grid-000000040.png"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_saves_a_run_that_can_be_resumed(folder, tmp_path, signum):
    run = tmp_path / "run"
    process = start(arguments(folder, run, "--images", "1000000"))
    wait_for(lambda: log_lines(run), process)
    process.send_signal(signum)
    output = process.communicate()[0]
    assert process.returncode == 128 + signum
    assert f"go on with: python -m fastgan.train --resume {run}" in output
    assert "Traceback" not in output
    images = log_lines(run)[-1]["images"]
    assert f"stopped at {images:,} images" in output
    assert (run / f"grid-{images:09d}.png").exists()
    assert_same_checkpoint(run, train(folder, tmp_path / "unbroken", "--images", str(images)))


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
    assert process.wait() == -signal.SIGINT
    process.stdout.close()


def test_a_closed_terminal_does_not_stop_a_run_under_nohup(folder, tmp_path):
    run = tmp_path / "run"
    ignored = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = start(arguments(folder, run), ignored)
    wait_for(lambda: log_lines(run), process)
    process.send_signal(signal.SIGHUP)
    assert process.communicate()[0] and process.returncode == 0
    assert checkpoint.read_header(run).images == IMAGES


@pytest.mark.parametrize("signum", [0, signal.SIGTERM, signal.SIGHUP], ids=["", "SIGTERM", "SIGHUP"])
def test_a_run_whose_output_nobody_reads_any_more_loses_nothing(folder, tmp_path, signum):
    run = tmp_path / "run"
    # Each save prints, and so does every update of the progress bar.
    chatty = "from fastgan import progress\nprogress.INTERVAL = 0.0"
    process = start(arguments(folder, run, "--images", "1000000" if signum else str(IMAGES)), chatty)
    process.stdout.readline()
    process.stdout.close()
    if signum:
        wait_for(lambda: len(log_lines(run)) > 3, process)
        process.send_signal(signum)
    assert process.wait() == (128 + signum if signum else 0)
    images = log_lines(run)[-1]["images"]
    assert checkpoint.read_header(run).images == images and (signum or images == IMAGES)


def test_what_was_trained_is_saved_when_something_else_fails(folder, tmp_path):
    run = tmp_path / "run"
    fails = "from fastgan.training import sample_grid\n"
    fails += "def fail(*_): raise RuntimeError('no picture today')\nsample_grid.save_picture = fail"
    options = ["--checkpoint-interval", "0", "--grid-interval", "32"]
    process = start(arguments(folder, run, *options), fails)
    output = process.communicate()[0]
    assert process.returncode == 1 and "no picture today" in output
    assert f"{run / checkpoint.FILE_NAME} is from 32 images, saved because of an error" in output
    assert main(["--resume", str(run)]) == 0
    assert_same_checkpoint(run, train(folder, tmp_path / "unbroken", *options))


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


@pytest.fixture(scope="module")
def usual(folder, tmp_path_factory):
    return tensors(train(folder, tmp_path_factory.mktemp("usual") / "run", "--images", "16"))


CHANGES = [
    "--mirror", "--seed 1", "--lr-g 0.01", "--lr-d 0.02", "--betas 0.5 0.9", "--final-lr 0.5", "--final-beta2 0.5",
    "--r1-gamma 5", "--r1-interval 1", "--final-gamma 0.5", "--r2-gamma 1", "--path-length 2", "--style-mixing 0",
    "--ema-halflife 0.0001", "--ema-rampup 0", "--augment fixed --augment-p 0.9", "--augment diffaug", "--loss hinge",
    "--labels False", "--discriminator-steps 2", "--mapping-lr 0.5", "--amp",
]  # fmt: skip


@pytest.mark.parametrize("options", CHANGES)
def test_an_option_changes_the_training(folder, usual, tmp_path, options):
    """None is ignored."""
    if options == "--amp" and not precision.cpu_bf16_features():
        pytest.skip("this CPU has no bf16")
    changed = tensors(train(folder, tmp_path / "run", "--images", "16", *options.split()))
    assert any(not np.array_equal(usual[name], changed.get(name)) for name in usual if name.startswith("ema."))


def test_initial_networks_depend_on_the_seed(folder, tmp_path):
    """The learning rates are too small to change a weight."""
    options = ["--arch", "mlp", "--images", "4", "--lr-g", "1e-30", "--lr-d", "1e-30"]
    zero, again, one = (
        tensors(train(folder, tmp_path / str(number), *options, "--seed", seed))
        for number, seed in enumerate(["0", "0", "1"])
    )
    weights = [name for name in zero if name.startswith(("generator.", "discriminator.")) and name.endswith("weight")]
    assert len(weights) > 4
    for name in weights:
        assert np.array_equal(zero[name], again[name]) and not np.allclose(zero[name], one[name]), name


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


@pytest.fixture
def few_glyphs(monkeypatch):
    monkeypatch.setattr(glyphs, "render", partial(glyphs.render, count=2000))


def test_dcgan_with_labels_draws_different_images_of_a_class(tmp_path, few_glyphs):
    options = ["--arch", "dcgan", "--labels", "True", "--resolution", "16", "--channel-base", "512", "--batch", "32"]
    more = ["--channel-max", "64", "--images", "4000", "--grid-interval", "0", "--no-tensorboard"]
    assert main([*options, *more, "--out", str(tmp_path / "run")]) == 0
    line = log_lines(tmp_path / "run")[-1]
    assert line["distance_fake"] > 0.3 * line["distance_real"]  # 0.14 with labels as long as latents


def test_a_training_on_glyphs_learns_where_they_are(tmp_path, few_glyphs):
    run = tmp_path / "run"
    options = ["--amp", "--resolution", "16", "--channel-base", "256", "--channel-max", "32", "--images", "2000"]
    assert main([*options, "--grid-interval", "0", "--out", str(run)]) == 0
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
