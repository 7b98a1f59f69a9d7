"""What a newcomer types: help that names everything, one line for every mistake, images where asked for."""

import json
import re
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import models
from fastgan.errors import UserError
from fastgan.generate import main as generate
from fastgan.generate import parse_classes, parse_seeds
from fastgan.train import main
from fastgan.training import checkpoint, sampling, step
from fastgan.training import config as configuration
from tests.tiny_run import WIDTHS, arguments, assert_same_checkpoint, start
from tests.tiny_run import train as train_tiny

pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return train_tiny(folder, tmp_path_factory.mktemp("run") / "run")


def error_of(command, argv, capsys):
    """Its one line, checked to be one, of exit status 2."""
    capsys.readouterr()
    assert command(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    lines = [line for line in lines if not re.search(r"(images|img)/s", line)]  # of progress bars
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as status:
        main(["--help"])
    assert status.value.code == 0
    text = capsys.readouterr().out
    missing = [name for name in configuration.options(configuration.Config()) if configuration.flag(name) not in text]
    assert not missing


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
@pytest.mark.parametrize("resolution", [8, 32, 64, 128, 1024])
def test_there_is_a_recipe_for_every_architecture_and_resolution(arch, resolution):
    given = configuration.parse(["--arch", arch, "--resolution", str(resolution)])
    left = [name for name, value in configuration.options(configuration.resolve(given)).items() if value == "auto"]
    assert left == ["device"]


def test_a_configuration_survives_json():
    config = configuration.resolve(configuration.Config())
    assert configuration.from_dict(json.loads(json.dumps(configuration.to_dict(config)))) == config


MISTAKES = {
    "resolution not a power of two": (["--resolution", "48"], "--resolution 48: must be a power of two"),
    "channels": (["--channels", "2"], "--channels 2: must be 1 (grey) or 3 (colour)"),
    "empty batch": (["--batch", "0"], "--batch 0: must be at least 1"),
    "batch against stddev groups": (["--batch", "6"], "--batch 6: must be a multiple of 4"),
    "no images": (["--images", "-5"], "--images -5: must be at least 1"),
    "learning rate": (["--lr-g", "0"], "--lr-g 0.0: must be more than 0"),
    "variant of another": (["--arch", "dcgan", "--variant", "mlp"], "--variant mlp: must be transposed or upsample"),
    "variant of none": (["--variant", "mlp"], "--variant mlp: stylegan2 has no variants"),
    "paths without styles": (["--arch", "dcgan", "--path-length", "2"], "--path-length 2.0: dcgan has no styles"),
    "penalty of another loss": (["--gp-lambda", "10"], "--gp-lambda 10.0: belongs to --loss wgan-gp"),
    "strength without augmentation": (["--augment-p", "0.5"], "--augment-p 0.5: needs --augment fixed or ramp"),
    "growth of what does not grow": (["--grow-from", "8"], "--grow-from 8: stylegan2 does not grow"),
    "growth from between": (["--arch", "pggan", "--grow-from", "6"], "--grow-from 6: must be 4 or 8 for pggan"),
    "levels without growth": (["--level-batch", "8", "8"], "--level-batch: nothing grows"),
    "numbers of levels": (
        ["--arch", "pggan", "--resolution", "32", "--level-batch", "8", "8"],
        "--level-batch 8 8: must be 4 numbers",
    ),
    "betas": (["--betas", "0.5", "1"], "--betas (0.5, 1.0): must be two numbers"),
    "negative penalty": (["--r1-gamma", "-1"], "--r1-gamma -1.0: must be at least 0"),
    "mixing is a share": (["--style-mixing", "2"], "--style-mixing 2.0: must be from 0 to 1"),
    "no styles": (["--arch", "dcgan", "--style-mixing", "0.5"], "--style-mixing 0.5: dcgan has no styles"),
    "classes of a folder": (["--data", "x", "--classes", "10"], "--classes 10: x brings its own classes"),
    "classes of glyphs": (["--classes", "11"], "--classes 11"),
    "negative seed": (["--seed", "-1"], "--seed -1: must be from 0 to 18446744073709551615"),
    "large seed": (["--seed", str(2**64)], "--seed 18446744073709551616: must be from 0 to 18446744073709551615"),
    "too narrow": (["--channel-base", "4"], "channel_base is 4"),
    "no such data": (["--data", "nowhere"], "nowhere"),
    "no such device": (["--device", "toaster"], "--device toaster: no such device"),
    "resume and out": (["--resume", "x", "--out", "y"], "--out and --resume exclude each other"),
    "nothing to resume": (["--resume", "nowhere"], "nowhere: there is no such checkpoint"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_line_and_leaves_nothing_behind(mistake, folder, tmp_path, monkeypatch, capsys):
    argv, says = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    if "--data" not in argv and "--classes" not in argv:
        argv = [*argv, "--data", str(folder)]
    if "--resolution" not in argv:
        argv = [*argv, "--resolution", "8"]
    assert says in error_of(main, argv, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(capsys):
    assert "--device cuda: this PyTorch finds no CUDA GPU" in error_of(main, ["--device", "cuda"], capsys)


def test_a_folder_with_a_run_in_it_is_not_overwritten(folder, run, capsys):
    assert f"--out {run} holds a run already" in error_of(main, arguments(folder, run), capsys)


def test_a_folder_that_cannot_be_made(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    assert f"cannot make the folder {out}" in error_of(main, arguments(folder, out), capsys)


RESUME_MISTAKES = {
    "another architecture": (["--arch", "dcgan"], "--arch dcgan", "was trained with stylegan2"),
    "another width": (["--channel-max", "16"], "--channel-max 16", "was trained with 8"),
    "another resolution": (["--resolution", "16"], "--resolution 16", "was trained with 8"),
    "another batch": (["--batch", "8"], "--batch 8", "was trained with 4"),
    "already further": (["--images", "16"], "--images 16", "has seen 48 already"),
}


@pytest.mark.parametrize("mistake", RESUME_MISTAKES)
def test_resuming_cannot_change_what_the_run_is(mistake, run, capsys):
    argv, *says = RESUME_MISTAKES[mistake]
    message = error_of(main, ["--resume", str(run), *argv], capsys)
    assert all(each in message for each in [*says, str(run)])


def test_resuming_a_finished_run_says_where_its_results_are(run, capsys):
    assert main(["--resume", str(run / "checkpoint.safetensors")]) == 0
    assert str(run / "grid-000000048.png") in capsys.readouterr().out


def test_runs_are_numbered(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--data", str(folder), "--resolution", "8", *WIDTHS, "--images", "4", "--batch", "4", "--no-tensorboard"]
    assert main(argv) == main([*argv, "--arch", "dcgan"]) == main(argv) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["dcgan-images-000", "stylegan2-images-000", "stylegan2-images-001"]
    files = sorted(path.name for path in (tmp_path / "runs" / names[0]).iterdir())
    assert files == ["checkpoint.safetensors", "config.json", "grid-000000004.png", "log.jsonl"]


@pytest.mark.parametrize("text, seeds", [("3", [3]), ("0-2,7", [0, 1, 2, 7]), ("5, 1-2", [5, 1, 2])])
def test_lists_of_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-3", "1,,2", "1.5"])
def test_what_is_no_list_of_seeds(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_classes_by_name():
    assert parse_classes("b, a", ["a", "b"]) == [("b", 1), ("a", 0)]
    assert parse_classes(None, ["a", "b"]) == [("a", 0), ("b", 1)]
    with pytest.raises(UserError, match="there is no class 'c'; there are a, b"):
        parse_classes("c", ["a", "b"])
    with pytest.raises(UserError, match="without classes"):
        parse_classes("c", [])


def test_an_image_depends_on_its_seed_and_class_only(run, tmp_path):
    many, one = tmp_path / "many", tmp_path / "one"
    assert generate(["--checkpoint", str(run), "--seeds", "0-5", "--trunc", "0.7", "--out", str(many)]) == 0
    argv = ["--checkpoint", str(run), "--seeds", "4", "--classes", "light", "--trunc", "0.7", "--out", str(one)]
    assert generate(argv) == 0
    assert len(list(many.iterdir())) == 12
    (only,) = one.iterdir()
    assert only.name == "class01-light-seed0004.png"
    assert np.array_equal(np.asarray(Image.open(only)), np.asarray(Image.open(many / only.name)))


def test_a_png_is_a_labelled_grid(run, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    assert generate(["--checkpoint", str(run), "--seeds", "0-19", "--classes", "dark", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert Image.open(out).size[0] > 16 * 48 and [path.name for path in out.parent.iterdir()] == ["grid.png"]


GENERATE_MISTAKES = {
    "no such run": (["--checkpoint", "nowhere"], "nowhere: there is no such checkpoint"),
    "no such class": (["--classes", "grey"], "there is no class 'grey'; there are dark, light"),
    "seeds": (["--seeds", "first"], "--seeds first"),
    "negative seed": (["--seeds=-3"], "--seeds -3: '-3' is no number from 0 up"),
    "large seed": (["--seeds", f"1,{2**64}"], f"{2**64} is out of range; a seed is from 0 to {2**64 - 1}"),
    "seed beyond Python's integers": (["--seeds", "9" * 5000], "is out of range; a seed is from 0 to"),
    "a slip of the finger": (["--seeds", "0-99999999999"], "--seeds 0-99999999999: these are more than 1,000,000"),
}


@pytest.mark.parametrize("mistake", GENERATE_MISTAKES)
def test_generating_names_a_mistake_in_one_line(mistake, run, capsys):
    argv, says = GENERATE_MISTAKES[mistake]
    argv = argv if "--checkpoint" in argv else ["--checkpoint", str(run), *argv]
    assert says in error_of(generate, argv, capsys)


def test_the_largest_seeds(folder, run, tmp_path):
    largest = str(2**64 - 1)
    assert train_tiny(folder, tmp_path / "run", "--images", "4", "--seed", largest)
    out = tmp_path / "images"
    assert generate(["--checkpoint", str(run), "--classes", "dark", "--seeds", largest, "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == [f"class00-dark-seed{largest}.png"]


SHORTAGES = {
    "GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB"),
        "out of memory (20.00 GiB more asked for); ",
    ),
    "CPU": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "out of memory (4,096 MiB more asked for); ",
    ),
    "Python": (MemoryError(), "out of memory; "),
}


def failing(error, calls_before, then):
    """`then`, but the call after so many raises."""
    calls = iter(range(calls_before))

    def function(*arguments, **named):
        if next(calls, None) is None:
            raise error
        return then(*arguments, **named)

    return function


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("function", ["step.critic_with_grad_norm", "loop.checkpoint.save"])
def test_too_large_for_a_first_step_is_one_line_and_leaves_nothing(
    folder, tmp_path, monkeypatch, capsys, shortage, function
):
    error, says = SHORTAGES[shortage]
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(f"fastgan.training.{function}", failing(error, 0, None))
        line = error_of(main, [*arguments(folder, out), "--tensorboard"], capsys)
    assert line == says + "make --batch smaller, or --channel-base and --channel-max, or --resolution"
    assert not list(tmp_path.iterdir())
    out.mkdir()  # made before, and with a file of someone else
    (out / "notes.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(f"fastgan.training.{function}", failing(error, 0, None))
        assert error_of(main, arguments(folder, out), capsys).startswith(says)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    train_tiny(folder, out, "--images", "4")  # the same folder serves


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_running_out_of_memory_later_leaves_a_run_to_go_on_with(folder, run, tmp_path, monkeypatch, capsys, shortage):
    error, says = SHORTAGES[shortage]
    out = tmp_path / "run"
    original = step.critic_with_grad_norm
    monkeypatch.setattr(step, "critic_with_grad_norm", failing(error, 3, original))  # every second step has it
    assert error_of(main, arguments(folder, out), capsys).startswith(says)
    assert checkpoint.read_header(out).step == 4
    monkeypatch.setattr(step, "critic_with_grad_norm", failing(error, 0, original))
    assert "a resumed run needs what it needed before" in error_of(main, ["--resume", str(out)], capsys)
    monkeypatch.setattr(step, "critic_with_grad_norm", original)
    assert main(["--resume", str(out)]) == 0
    assert_same_checkpoint(out, run)


def test_other_mistakes_of_the_program_are_no_shortage(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "critic_with_grad_norm", failing(RuntimeError("shapes differ"), 0, None))
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(arguments(folder, tmp_path / "run"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
@pytest.mark.parametrize("options", [["--batch", str(2**20)], ["--channel-base", "8388608", "--channel-max", "65536"]])
def test_a_real_shortage_on_a_cpu(folder, tmp_path, options):
    limit = """
import resource, torch
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))
"""
    process = start(arguments(folder, tmp_path / "run", *options), limit)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("error: out of memory (")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_generating_without_the_memory_for_it(run, tmp_path, monkeypatch, capsys, shortage):
    error, says = SHORTAGES[shortage]
    monkeypatch.setattr("fastgan.training.sampling.draw", failing(error, 1, sampling.draw))
    argv = ["--checkpoint", str(run), "--out", str(tmp_path / "all.png")]
    assert error_of(generate, argv, capsys).startswith(says + "give fewer --seeds")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["drawing", "writing"])
@pytest.mark.parametrize("out", ["images", "all.png"])
def test_ctrl_c_while_generating(run, tmp_path, place, out):
    """After the first image, where there are single ones: whole images stay, and nothing else."""
    hang = """
import os, time
from fastgan.training import sampling

def wait(*_, **__):
    print("hanging", flush=True)
    time.sleep(600)

def patched(function, calls):
    def call(*arguments, **named):
        nonlocal calls
        calls -= 1
        return (function if calls >= 0 else wait)(*arguments, **named)
    return call

"""
    if place == "drawing":
        hang += "sampling.draw = patched(sampling.draw, 1)"
    else:  # of a file and its folder, two calls an image
        hang += f"os.fsync = patched(os.fsync, {2 if out == 'images' else 0})"
    process = start(["--checkpoint", str(run), "--out", str(tmp_path / out)], hang, "generate")
    first = process.stdout.readline()
    assert first == "hanging\n", first + process.communicate()[0]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == ""
    assert process.returncode == 130
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in left] == (["class00-dark-seed0000.png"] if out == "images" else [])
    for path in left:
        Image.open(path).load()


def test_truncation_where_there_is_none(folder, tmp_path, capsys):
    run = train_tiny(folder, tmp_path / "run", "--arch", "dcgan", "--images", "4")
    assert "has no truncation" in error_of(generate, ["--checkpoint", str(run), "--trunc", "0.5"], capsys)
    assert not (run / "generated.png").exists()
