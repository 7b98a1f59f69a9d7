"""A run that is stopped, killed or cut off anywhere goes on as if nothing had happened; broken files are refused."""

import json
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastgan.errors import UserError
from fastgan.train import main
from fastgan.training import checkpoint
from fastgan.training.files import write_atomically
from tests.tiny_run import (
    BATCH,
    IMAGES,
    arguments,
    assert_same_checkpoint,
    log_lines,
    start,
    train,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory):
    return train(folder, tmp_path_factory.mktemp("unbroken") / "run")


@pytest.fixture
def run(unbroken, tmp_path):
    """A copy to damage."""
    return shutil.copytree(unbroken, tmp_path / "run")


@pytest.mark.parametrize("arch", ["stylegan2", "dcgan"])
def test_resume_gives_the_bits_of_an_unbroken_run(folder, unbroken, tmp_path, arch):
    if arch != "stylegan2":
        unbroken = train(folder, tmp_path / "unbroken", "--arch", arch)
    half = train(folder, tmp_path / "half", "--arch", arch, "--images", str(IMAGES // 2))
    assert main(["--resume", str(half), "--images", str(IMAGES)]) == 0
    assert_same_checkpoint(half, unbroken)
    assert log_lines(half) == log_lines(unbroken)


# Where a process stops and waits to be killed, as code for it. Saves are counted from the first, made before any step.
HANG = """
import os, sys, time, builtins
from fastgan.training import files

def hang():
    print("hanging", flush=True)
    time.sleep(600)

saves = 0
replace, fsync = os.replace, os.fsync

class Half:
    def __init__(self, path, mode):
        global saves
        saves += "checkpoint" in str(path)
        self.file, self.count = builtins.open(path, mode), "checkpoint" in str(path)
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
    def write(self, content):
        if self.count and saves == 3 and place == "writing":
            self.file.write(content[:len(content) // 2])
            self.file.flush()
            hang()
        self.file.write(content)
    def flush(self):
        self.file.flush()
    def fileno(self):
        if self.count and saves == 3 and place == "flushing":
            hang()
        return self.file.fileno()

def slow_replace(source, target):
    replace(source, target)
    if "checkpoint" in str(target) and saves == 3 and place == "renamed":
        hang()

files.open = Half
os.replace = slow_replace
"""


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


@pytest.mark.parametrize("lines", [1, 4])
def test_killed_between_saves(folder, unbroken, tmp_path, lines):
    run = tmp_path / "run"
    process = start(arguments(folder, run))
    wait_for(lambda: len(log_lines(run)) >= lines or process.poll() == 0, process)
    process.kill()
    process.wait()
    assert main(["--resume", str(run)]) == 0
    assert_same_checkpoint(run, unbroken)
    assert log_lines(run) == log_lines(unbroken)


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


def test_disk_full_while_training_is_one_line(folder, unbroken, tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    run = tmp_path / "run"
    train(folder, run, "--images", "16")
    monkeypatch.setattr("fastgan.training.files.os.fsync", full)
    assert main(["--resume", str(run), "--images", "32"]) == 2
    monkeypatch.undo()
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert not list(run.glob("*.unfinished"))
    assert main(["--resume", str(run), "--images", str(IMAGES)]) == 0
    assert_same_checkpoint(run, unbroken)


def rewrite(run, change):
    """Write the checkpoint again after `change(tensors, header)`."""
    path = run / checkpoint.FILE_NAME
    size = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    header, tensors = json.loads(metadata["fastgan"]), load_file(path)
    change(tensors, header)
    save_file(tensors, path, {"fastgan": json.dumps(header)})


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
        lambda run: rewrite(run, lambda tensors, _: tensors.pop("ema.synthesis.const")),
        "tensor ema.synthesis.const",
    ),
    "tensor of another shape": (
        lambda run: rewrite(run, lambda tensors, _: tensors.update({"ema.synthesis.const": torch.zeros(2)})),
        "tensor ema.synthesis.const",
    ),
    "random state missing": (lambda run: rewrite(run, lambda tensors, _: tensors.pop("rng.cpu")), "incomplete"),
    "newer format": (lambda run: rewrite(run, lambda _, header: header.update(format=99)), "format 99"),
    "unknown option": (
        lambda run: rewrite(run, lambda _, header: header["config"]["training"].update(novelty=1)),
        "novelty",
    ),
}


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


def test_a_generator_loads_ready_to_use(unbroken):
    generator, config = checkpoint.load_generator(unbroken)
    assert config.network.arch == "stylegan2"
    assert not generator.training and not any(parameter.requires_grad for parameter in generator.parameters())
    image = generator(torch.randn(3, 8), torch.tensor([0, 1, 1]))
    assert image.shape == (3, 1, 8, 8) and image.isfinite().all()
