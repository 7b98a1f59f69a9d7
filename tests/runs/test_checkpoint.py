"""Checkpoints: resuming after a stop, kill or full disk is bit-identical, and damaged files are refused."""

import dataclasses
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastgan.cli.train import main
from fastgan.errors import UserError
from fastgan.files import one_writer, write_atomically
from fastgan.runs import checkpoint, process
from tests.support.commands import error_of
from tests.support.processes import start, wait_for
from tests.support.tiny_run import (
    BATCH,
    IMAGES,
    arguments,
    assert_same_checkpoint,
    log_lines,
    make_folder,
    tensors,
    train,
    untrained,
)

pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory):
    return train(folder, tmp_path_factory.mktemp("unbroken") / "run")


@pytest.fixture
def run(unbroken, tmp_path):
    """A copy to damage."""
    return shutil.copytree(unbroken, tmp_path / "run")


RUNS = {
    "stylegan2": [],
    "stylegan3, blur": ["--arch", "stylegan3", "--variant", "r", "--blur", "1", "--blur-images", "24"],
    "mlp, mirror": ["--arch", "mlp", "--mirror"],
    "ada, path length": ["--augment", "ada", "--ada-kimg", "0.01", "--path-length", "2", "--path-interval", "2"],
    "diffaug": ["--augment", "diffaug"],
    "projected": ["--discriminator", "projected", "--projected-size", "64", "--images", "32"],
    "ramp, annealed": [
        *("--augment", "ramp", "--augment-p", "0.5"),
        *("--final-lr", "0.2", "--final-beta2", "0.5", "--final-gamma", "0.1"),
    ],
    "several EMAs": ["--ema-halflife", "10", "2.5", "40"],
    "growing": [
        *(
            "--ema-halflife",
            "10",
            "40",
            "--arch",
            "pggan",
            "--grow-from",
            "4",
            "--level-images",
            "12",
            "--fade-images",
            "24",
        ),
        *("--level-batch", "8", "4", "--level-lr", "0.5", "1"),
    ],
    "stylegan": ["--arch", "stylegan"],
    "fastgan": ["--arch", "fastgan"],
    "relativistic": ["--arch", "dcgan", "--loss", "relativistic", "--r2-gamma", "0.5"],
    "wgan": ["--arch", "dcgan", "--loss", "wgan", "--discriminator-steps", "2"],
    "wgan-gp": ["--arch", "dcgan", "--loss", "wgan-gp", "--discriminator-steps", "3", "--drift", "0.001"],
}


@pytest.fixture
def stopped_halfway(monkeypatch):
    """A function that runs `main`, interrupted after half of the steps."""

    class Interrupt:
        exit_code, left = 130, IMAGES // BATCH // 2

        @property
        def signum(self):
            self.left -= 1
            return 2 if self.left == 0 else 0

    def run(argv):
        with monkeypatch.context() as patch:
            patch.setattr(process, "finish_step_on_signal", lambda _: nullcontext(Interrupt()))
            assert main(argv) == 130

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "mlp, mirror" else pytest.mark.slow) for name in RUNS]
)
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(folder, unbroken, tmp_path, stopped_halfway, name):
    if RUNS[name]:
        unbroken = train(folder, tmp_path / "unbroken", *RUNS[name])
    half = tmp_path / "half"
    stopped_halfway(arguments(folder, half, *RUNS[name]))
    header = checkpoint.read_header(half)
    assert 0 < header.images < IMAGES
    if name == "growing":
        assert 0 < header.stage[1] < 1, "inside a fade"
    assert main(["--resume", str(half)]) == 0
    assert_same_checkpoint(half, unbroken)
    assert log_lines(half) == log_lines(unbroken)


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer(folder, unbroken, tmp_path):
    half = train(folder, tmp_path / "half", "--images", str(IMAGES // 2))
    assert main(["--resume", str(half), "--images", str(IMAGES)]) == 0
    assert_same_checkpoint(half, unbroken)


@pytest.mark.slow
def test_a_resumed_run_may_change_regularisation(folder, tmp_path, capsys):
    run = train(folder, tmp_path / "run", "--images", str(IMAGES // 2))
    options = ["--images", str(IMAGES), "--augment", "ada", "--path-length", "2", "--path-interval", "1"]
    assert main(["--resume", str(run), *options]) == 0
    assert "note: --augment ada from here on, none before" in capsys.readouterr().out
    assert {"augment_p", "path_penalty"} <= log_lines(run)[-1].keys()


def more_images(folder):
    shutil.copy(folder / "dark" / "0.png", folder / "dark" / "10.png")


def one_pixel(folder):
    path = folder / "light" / "9.png"
    pixels = np.array(Image.open(path))
    pixels[3, 5] ^= 1
    Image.fromarray(pixels).save(path)


def two_swapped(folder):
    one, other, between = folder / "dark" / "3.png", folder / "dark" / "7.png", folder / "between"
    one.rename(between), other.rename(one), between.rename(other)


def classes_renamed(folder):
    (folder / "dark").rename(folder / "black")


def one_label(folder, value=1):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    labels = [[name, int(name.startswith("light"))] for name in names]
    labels[4][1] = value
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


OTHER_DATA = {
    "an image more": (more_images, "has 21 images, not 20"),
    "another pixel": (one_pixel, "has as many images, but other ones"),
    "another order": (two_swapped, "in another order"),
    "another class": (classes_renamed, "has classes ['black', 'light'], not ['dark', 'light']"),
    "another label": (one_label, "has the same images, but with other labels"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", OTHER_DATA)
def test_other_data_is_refused_on_resume(tmp_path, capsys, change):
    changing, says = OTHER_DATA[change]
    folder = make_folder(tmp_path / "images")
    if changing is one_label:
        one_label(folder, 0)
    run = train(folder, tmp_path / "run", "--images", "4")
    before = {path: path.read_bytes() for path in run.iterdir()}
    changing(folder)
    assert main(["--resume", str(run), "--images", "8"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: --data {folder} ") and says in error and str(run) in error
    assert before == {path: path.read_bytes() for path in run.iterdir()}


@pytest.mark.slow
def test_the_same_data_in_another_folder_can_be_resumed_with(folder, unbroken, tmp_path):
    half = train(folder, tmp_path / "half", "--images", str(IMAGES // 2))
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert main(["--resume", str(half), "--images", str(IMAGES), "--data", str(elsewhere)]) == 0
    assert_same_checkpoint(half, unbroken)


# Code for a process that stops at a given place and waits to be killed. Save 0 is made before the first step.
HANG = """
import os, time
from pathlib import Path

def hang():
    print("hanging", flush=True)
    time.sleep(600)

saves = 0
replace, fsync, write_bytes = os.replace, os.fsync, Path.write_bytes

def slow_write(path, content):
    global saves
    is_checkpoint = path.name.startswith("checkpoint.safetensors")
    saves += is_checkpoint
    if is_checkpoint and saves == 3 and place == "writing":
        write_bytes(path, content[:len(content) // 2])
        hang()
    return write_bytes(path, content)

def slow_fsync(descriptor):
    if saves == 3 and place == "flushing":
        hang()
    fsync(descriptor)

def slow_replace(source, target):
    replace(source, target)
    if "checkpoint" in str(target) and saves == 3 and place == "renamed":
        hang()

Path.write_bytes = slow_write
os.fsync = slow_fsync
os.replace = slow_replace
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["writing", "flushing", "renamed"])
def test_killed_while_saving(folder, unbroken, tmp_path, place):
    run = tmp_path / "run"
    process = start(arguments(folder, run), f"place = {place!r}\n{HANG}")
    for line in process.stdout:
        if "hanging" in line:  # after what the progress bar has written
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL
    expected = 32 if place == "renamed" else 16
    assert checkpoint.read_header(run).step * BATCH == expected
    assert main(["--resume", str(run)]) == 0
    assert_same_checkpoint(run, unbroken)
    assert log_lines(run) == log_lines(unbroken)
    assert not list(run.glob("*.unfinished"))


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 4])
def test_killed_between_saves(folder, tmp_path, lines):
    """At any moment. The run is too long to end by itself; it is compared up to a few steps after the kill."""
    run = tmp_path / "run"
    process = start(arguments(folder, run, "--images", "1000000"))
    wait_for(lambda: len(log_lines(run)) >= lines, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    images = (checkpoint.read_header(run).step + 6) * BATCH
    assert main(["--resume", str(run), "--images", str(images)]) == 0
    unbroken = train(folder, tmp_path / "unbroken", "--images", str(images))
    assert_same_checkpoint(run, unbroken)
    assert log_lines(run) == log_lines(unbroken)


@pytest.mark.slow
def test_two_trainings_do_not_write_to_one_folder(folder, run, tmp_path, capsys):
    def error_of(argv):
        assert main(argv) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    new = tmp_path / "new"
    new.mkdir()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    (run / "checkpoint.safetensors.unfinished").touch()  # which the other one is just writing
    with one_writer(run), one_writer(new):
        for given in (run, run / checkpoint.FILE_NAME):
            line = error_of(["--resume", str(given), "--images", "96"])
            assert line.startswith(f"error: {run}: another training writes there; wait until it has ended")
        assert error_of(arguments(folder, new)).startswith(f"error: {new}: another training writes there")
    (run / "checkpoint.safetensors.unfinished").unlink()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before and not list(new.iterdir())
    train(folder, new)


@pytest.mark.slow
def test_the_log_of_another_run_is_not_truncated(folder, run, tmp_path, capsys):
    (run / checkpoint.FILE_NAME).unlink()
    before = (run / "log.jsonl").read_bytes()
    assert main(arguments(folder, run)) == 2
    assert "holds the log.jsonl of another run; remove it, or choose another folder" in capsys.readouterr().err
    assert (run / "log.jsonl").read_bytes() == before


@pytest.mark.slow
def test_half_a_log_line_is_dropped_on_resume(run, unbroken):
    with open(run / "log.jsonl", "a") as file:
        file.write('{"step": 1')
    assert main(["--resume", str(run)]) == 0
    assert log_lines(run) == log_lines(unbroken)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write {path}: File too large"):
            write_atomically(path, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_while_training_is_an_error_of_one_line(folder, unbroken, tmp_path, capsys, monkeypatch, failing):
    """At the first save or a later one; the checkpoint saved before can be resumed."""
    saves = []

    def full(descriptor):
        if "checkpoint" in os.readlink(f"/proc/self/fd/{descriptor}"):
            saves.append(descriptor)
            if len(saves) == failing:
                raise OSError(28, "No space left on device")
        fsync(descriptor)

    run, fsync = tmp_path / "run", os.fsync
    with monkeypatch.context() as patch:
        patch.setattr("fastgan.files.os.fsync", full)
        assert main(arguments(folder, run)) == 2
    assert len(saves) == failing
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: cannot write {run / checkpoint.FILE_NAME}: No space left on device")
    assert not list(run.glob("*.unfinished"))
    if failing == 1:
        assert not (run / checkpoint.FILE_NAME).exists()
        train(folder, run)
    else:
        assert checkpoint.read_header(run).step * BATCH == 16 * (failing - 2)
        assert main(["--resume", str(run)]) == 0
    assert_same_checkpoint(run, unbroken)
    assert log_lines(run) == log_lines(unbroken)


@pytest.mark.slow
def test_a_full_disk_on_resume_is_an_error_of_one_line(folder, unbroken, tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    run = train(folder, tmp_path / "run", "--images", "16")
    with monkeypatch.context() as patch:
        patch.setattr("fastgan.files.os.fsync", full)
        assert main(["--resume", str(run), "--images", "32"]) == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert not list(run.glob("*.unfinished"))
    assert main(["--resume", str(run), "--images", str(IMAGES)]) == 0
    assert_same_checkpoint(run, unbroken)


def rewrite(run, change, new_digests=False):
    """Write the checkpoint again after `change(tensors, header)`. new_digests: of the tensors, too."""
    path = run / checkpoint.FILE_NAME
    with safe_open(path, framework="pt") as file:
        header, tensors = json.loads(file.metadata()["fastgan"]), load_file(path)
    change(tensors, header)
    if new_digests:
        path.write_bytes(checkpoint.to_bytes(tensors, header))
    else:
        save_file(tensors, path, checkpoint.metadata(header))


def swap(run, old, new):
    """Replace bytes of the checkpoint that are there once."""
    path = run / checkpoint.FILE_NAME
    assert path.read_bytes().count(old) == 1
    path.write_bytes(path.read_bytes().replace(old, new))


def flip(path):
    """Flip a bit of the last byte, a tensor's."""
    *others, last = path.read_bytes()
    path.write_bytes(bytes([*others, last ^ 8]))


def truncate(run, share):
    path = run / checkpoint.FILE_NAME
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


DAMAGE = {
    "truncated": (lambda run: truncate(run, 0.9), "truncated"),
    "header cut": (lambda run: truncate(run, 0.001), "truncated"),
    "empty": (lambda run: truncate(run, 0), "truncated"),
    "another format": (lambda run: (run / checkpoint.FILE_NAME).write_bytes(b"PK\3\4" * 1000), "is no checkpoint"),
    "another program's": (
        lambda run: save_file({"x": torch.zeros(1)}, run / checkpoint.FILE_NAME),
        "not written by fastgan",
    ),
    "gone": (lambda run: (run / checkpoint.FILE_NAME).unlink(), "holds no checkpoint.safetensors"),
    "tensor missing": (
        lambda run: rewrite(run, lambda tensors, _: tensors.pop("ema.synthesis.const"), new_digests=True),
        "does not fit this network: tensor ema.synthesis.const",
    ),
    "tensor of another shape": (
        lambda run: rewrite(
            run, lambda tensors, _: tensors.update({"ema.synthesis.const": torch.zeros(2)}), new_digests=True
        ),
        "does not fit this network: tensor ema.synthesis.const",
    ),
    "a moment missing": (
        lambda run: rewrite(run, lambda tensors, _: tensors.pop(next(n for n in tensors if "optimizer_g" in n))),
        "is damaged: tensor optimizer_g.",
    ),
    "a number more": (
        lambda run: rewrite(run, lambda tensors, _: tensors["statistics.guard_d.streak"].add_(1)),
        "is damaged: tensor statistics.guard_d.streak differs from the one that was saved",
    ),
    "a tensor more": (
        lambda run: rewrite(run, lambda tensors, _: tensors.update(x=torch.zeros(2))),
        "is damaged: tensor x is unknown",
    ),
    "another header": (
        lambda run: swap(run, b'\\"step\\": 12,', b'\\"step\\": 13,'),
        "is damaged: its header differs from the one that was saved",
    ),
    "older format": (  # of fewer fields: it is the format that is wrong, not the first of them
        lambda run: rewrite(run, lambda _, header: (header.update(format=4), header["config"].clear())),
        "has format 4; this fastgan",
    ),
    "newer format": (lambda run: rewrite(run, lambda _, header: header.update(format=99)), "format 99"),
    "unknown option": (
        lambda run: rewrite(run, lambda _, header: header["config"]["training"].update(novelty=1)),
        "novelty",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line(run, capsys, damage):
    damaging, says = DAMAGE[damage]
    damaging(run)
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert says in error[0] and str(run) in error[0]
    assert before == {path: path.read_bytes() for path in run.iterdir()}


def fields_of(content, prefix=""):
    """Names of the entries of a header."""
    for name, value in content.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from fields_of(value, f"{prefix}{name}.")


@pytest.mark.slow
def test_fields_of_the_header_belong_to_the_format_number(unbroken):
    """Otherwise an older checkpoint would be refused as damaged, for a missing field."""
    with safe_open(unbroken / checkpoint.FILE_NAME, framework="np") as file:
        fields = sorted(fields_of(json.loads(file.metadata()["fastgan"]) | {"digests": "by tensor"}))
    digest = hashlib.sha256("\n".join(fields).encode()).hexdigest()[:8]
    assert (checkpoint.FORMAT, digest) == (14, "4923d0f1"), "raise checkpoint.FORMAT by one, and put both here"


@pytest.mark.slow
def test_a_loaded_generator_is_ready_to_draw(unbroken):
    generator, config = checkpoint.load_generator(unbroken)
    assert config.network.arch == "stylegan2"
    assert not generator.training and not any(parameter.requires_grad for parameter in generator.parameters())
    image = generator(torch.randn(3, 8), torch.tensor([0, 1, 1]))
    assert image.shape == (3, 1, 8, 8) and image.isfinite().all()


def test_checkpoints_of_the_same_content_are_the_same_bytes():
    """So their SHA-256 tells whether two trainings came out alike."""
    content = {"step": 1}
    tensors = {name: torch.arange(4.0) for name in "abc"}
    assert len({checkpoint.to_bytes(tensors, content) for _ in range(8)}) == 1


def test_a_checkpoint_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    """By a training that goes on: the new one is drawn from; other reading says so."""
    run, later = (untrained(tmp_path / name, "dcgan", ema_halflife=number) for name, number in (("a", 1.0), ("b", 2.0)))
    read = checkpoint._read_header

    def replaced_after_reading(path):
        monkeypatch.setattr(checkpoint, "_read_header", read)
        header = read(path)
        shutil.copy(later / checkpoint.FILE_NAME, path)
        return header

    monkeypatch.setattr(checkpoint, "_read_header", replaced_after_reading)
    assert checkpoint.load_generator(run)[1].training.ema_halflives == (2.0,)
    header = dataclasses.replace(checkpoint.read_header(run), digest="of another")
    with pytest.raises(UserError, match="was replaced while it was read; run the same command again"):
        checkpoint.read_networks(header)


# Several of them -----------------------------------------------------------------------------------------------------


KEPT = ("-000000048", "-000000032", "-000000016")  # of a whole tiny training


def checkpoint_names(run):
    return sorted(path.name for path in run.glob("checkpoint*"))


@pytest.mark.slow
def test_the_newest_checkpoints_are_kept_and_can_be_resumed(folder, tmp_path):
    run = train(folder, tmp_path / "run", "--keep-checkpoints", "2")
    assert checkpoint_names(run) == [
        "checkpoint-000000032.safetensors",
        "checkpoint-000000048.safetensors",
        checkpoint.FILE_NAME,
    ]
    expected = tensors(run)
    assert checkpoint.read_header(run / "checkpoint-000000032.safetensors").images == 32
    assert main(["--resume", str(run / "checkpoint-000000032.safetensors")]) == 0
    assert {name: value.tobytes() for name, value in tensors(run).items()} == {
        name: value.tobytes() for name, value in expected.items()
    }
    assert checkpoint_names(run) == [
        "checkpoint-000000032.safetensors",
        "checkpoint-000000048.safetensors",
        checkpoint.FILE_NAME,
    ]


@pytest.mark.parametrize("by_kernel", [True, False])
def test_kept_checkpoints_are_copies(tmp_path, monkeypatch, by_kernel):
    """Not links: what damages one file leaves the others."""
    if not by_kernel:

        def refuse(*_):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    path = tmp_path / checkpoint.FILE_NAME
    (tmp_path / "checkpoint-².safetensors").write_text("of someone else")
    for images in (10, 20, 30, 25):  # the last one after going back
        path.write_text(str(images))
        checkpoint.keep_newest(path, images, 3)
        assert path.stat().st_nlink == 1
    path.write_text("damaged")
    (tmp_path / "checkpoint-².safetensors").unlink()
    names = {f"checkpoint-{images:09d}.safetensors": str(images) for images in (10, 20, 25)}
    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == {**names, checkpoint.FILE_NAME: "damaged"}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastgan.files.os.fsync", full)
    path.write_text("26")
    with pytest.raises(UserError, match="No space left"):
        checkpoint.keep_newest(path, 26, 3)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {**names, checkpoint.FILE_NAME: "26"}


@pytest.mark.slow
def test_a_damaged_checkpoint_names_the_whole_ones_beside_it(folder, unbroken, tmp_path, capsys):
    run = train(folder, tmp_path / "run", "--keep-checkpoints", "3")
    path, newest, middle, oldest = (run / f"checkpoint{name}.safetensors" for name in ("", *KEPT))
    flip(path), flip(newest)
    shutil.copy(middle, run / checkpoint.BEST_FILE_NAME)
    line = error_of(main, ["--resume", str(run)], capsys)
    assert re.fullmatch(
        rf"{path} is damaged: tensor \S+ differs from the one that was saved; whole are {middle}, "
        rf"{run / checkpoint.BEST_FILE_NAME}, {oldest}; go on from there with --resume {middle}",
        line,
    )
    path.unlink()
    assert error_of(main, ["--resume", str(newest)], capsys).endswith(f"; go on from there with --resume {middle}")
    assert main(["--resume", str(middle)]) == 0
    assert_same_checkpoint(run, unbroken)
    assert {file.stat().st_nlink for file in run.glob("checkpoint*")} == {1}


def test_a_checkpoint_that_must_not_be_read_is_not_called_damaged(unbroken, monkeypatch):
    opened = open

    def refusing(path, *rest, **named):
        if Path(path).name == checkpoint.FILE_NAME:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *rest, **named)

    monkeypatch.setattr("builtins.open", refusing)
    with pytest.raises(UserError, match=f"^{re.escape(str(unbroken))}.* cannot be read: Permission denied$"):
        checkpoint.read_header(unbroken)
