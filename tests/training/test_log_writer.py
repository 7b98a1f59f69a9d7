"""Logs of a training: log.jsonl, TensorBoard, Weights & Biases."""

import os
import sys
import types
from importlib.util import find_spec

import pytest

from fastgan.cli.train import main
from fastgan.errors import UserError
from tests.support.tiny_run import arguments, log_lines, train

pytestmark = pytest.mark.usefixtures("one_cache")

ALL_OUTPUTS = [
    "--tensorboard",
    "--log-interval",
    "4",
    "--grid-interval",
    "16",
    "--augment",
    "ada",
    "--capture-steps",
    "off",
]
NUMBERS = {
    "losses/loss_g", "losses/loss_d", "logits/logit_real", "logits/logit_fake", "signs of logits/sign_real",
    "signs of logits/sign_fake", "diversity/distance_fake", "diversity/distance_real", "penalties/r1_norm2",
    "augmentation/augment_p", "speed/images_per_second",
}  # fmt: skip


class FakeWandb(types.ModuleType):
    """Fake of the wandb package, which keeps what it is given, a dictionary for each run."""

    class Error(Exception):
        pass

    class Image:
        def __init__(self, picture):
            self.size = picture.size

    def __init__(self, refuses: str = ""):
        super().__init__("wandb")
        self.runs, self.refuses = [], refuses

    def init(self, **options):
        if self.refuses:
            raise self.Error(self.refuses)
        run = {"options": options, "lines": [], "axes": {}, "exit_code": None}
        self.runs.append(run)
        return types.SimpleNamespace(
            log=run["lines"].append,
            define_metric=lambda name, step_metric: run["axes"].update({name: step_metric}),
            finish=lambda exit_code: run.update(exit_code=exit_code),
        )


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def error_of(argv, capsys):
    """The line that an error prints."""
    assert main(argv) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_tensorboard_and_weights_and_biases_show_what_the_log_has_and_the_samples(folder, tmp_path, wandb, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("fastgan.training.diversity.INTERVAL", 4)
    run = train(folder, tmp_path / "run", *ALL_OUTPUTS, "--wandb", "cats")
    lines = log_lines(run)
    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= NUMBERS
    assert ("memory/peak_memory_gib" in tags) == (sys.platform != "win32")
    assert [event.step for event in events.Scalars("losses/loss_d")] == [line["images"] for line in lines]
    signs = [event.value for event in events.Scalars("signs of logits/sign_real")]
    assert signs == pytest.approx([line["sign_real"] for line in lines], abs=1e-5)
    for line in lines:  # each of one step, with four images
        for of in ("real", "fake"):
            sign, logit = line[f"sign_{of}"], line[f"logit_{of}"]
            assert sign in (-1, -0.5, 0, 0.5, 1) and (abs(sign) < 1 or sign * logit > 0)
    assert [event.step for event in events.Images("samples")] == [16, 32, 48]

    (logged,) = wandb.runs
    assert logged["options"]["project"] == "cats" and logged["options"]["name"] == "run"
    assert logged["options"]["config"]["regularization"]["augment"] == "ada"
    assert logged["axes"] == {"*": "images"} and logged["exit_code"] == 0
    numbers = [line for line in logged["lines"] if "samples" not in line]
    assert [line["images"] for line in numbers] == [line["images"] for line in lines]
    assert set().union(*numbers) == tags | {"images"}
    grids = [line for line in logged["lines"] if "samples" in line]
    assert [line["images"] for line in grids] == [16, 32, 48] and min(grids[0]["samples"].size) > 100


def test_a_failed_run_is_marked_in_weights_and_biases(folder, tmp_path, wandb, monkeypatch, capsys):
    def diverged(*_):
        raise UserError("training has diverged")

    monkeypatch.setattr("fastgan.training.loop.require_progress", diverged)
    assert error_of([*arguments(folder, tmp_path / "run"), "--wandb", "cats"], capsys) == "training has diverged"
    assert [logged["exit_code"] for logged in wandb.runs] == [1]


def test_a_resumed_run_is_the_same_run_of_weights_and_biases(folder, tmp_path, wandb):
    run = train(folder, tmp_path / "run", "--images", "16", "--wandb", "cats")
    assert main(["--resume", str(run), "--images", "32"]) == 0
    first, second = (each["options"] for each in wandb.runs)
    assert first["id"] == second["id"] and len(first["id"]) >= 8
    other = train(folder, tmp_path / "other", "--images", "8", "--wandb", "cats")
    assert other != run and wandb.runs[2]["options"]["id"] != first["id"]


@pytest.mark.parametrize("left_behind", [False, True])
def test_wandb_without_its_package_is_an_error_before_anything_is_written(
    folder, tmp_path, monkeypatch, capsys, left_behind
):
    # None: not installed. A folder of that name, as W&B makes them, can be imported, but has nothing in it.
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb") if left_behind else None)
    line = error_of([*arguments(folder, tmp_path / "run"), "--wandb", "cats"], capsys)
    assert line == ('--wandb cats: Weights & Biases is not installed: pip install ".[wandb]", or leave the option out')
    assert not list(tmp_path.iterdir())


def test_an_error_of_weights_and_biases_is_one_line_and_leaves_no_files(folder, tmp_path, wandb, capsys):
    wandb.refuses = "api_key not configured (no-tty)\nand much more"
    argv = arguments(folder, tmp_path / "run")
    line = error_of([*argv, "--wandb", "cats"], capsys)
    assert line.startswith("--wandb cats: api_key not configured (no-tty); run `wandb login`")
    assert not list(tmp_path.iterdir())
    assert main([*argv, "--images", "4"]) == 0  # the same folder serves


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason='the extra "wandb" is not installed: pip install ".[wandb]"')
def test_the_real_weights_and_biases_works_offline(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train(folder, tmp_path / "run", "--images", "16", "--grid-interval", "16", "--wandb", "cats")
    (recorded,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    content = recorded.read_bytes()
    assert b"signs of logits/sign_real" in content and b"samples" in content
    assert os.path.getsize(recorded) > 1000
