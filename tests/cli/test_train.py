"""`fastgan train`: one line for every error, runs to resume, and running out of memory."""

import dataclasses
import re
import sys
import urllib.request

import pytest
import torch

from fastgan.cli.train import main
from fastgan.metrics import registry
from fastgan.runs import checkpoint
from fastgan.runs import config as configuration
from fastgan.training import step
from tests.support.commands import SHORTAGES, error_of, failing
from tests.support.processes import start
from tests.support.tiny_run import WIDTHS, arguments, assert_same_checkpoint
from tests.support.tiny_run import train as train_tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return train_tiny(folder, tmp_path_factory.mktemp("run") / "run")


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as status:
        main(["--help"])
    assert status.value.code == 0
    text = capsys.readouterr().out
    missing = [name for name in configuration.options(configuration.Config()) if configuration.flag(name) not in text]
    assert not missing


ERRORS = {
    "resolution that halving ends": (["--resolution", "50"], "--resolution 50: must be a number or WIDTHxHEIGHT"),
    "resolution of what grows": (["--arch", "pggan", "--resolution", "28"], "must be a power of two for pggan"),
    "squares of stylegan3": (["--arch", "stylegan3", "--resolution", "64x32"], "must be a power of two for stylegan3"),
    "variant of stylegan3": (
        ["--arch", "stylegan3", "--variant", "mlp"],
        "--variant mlp: must be t or r for stylegan3",
    ),
    "layers of another": (["--synthesis-layers", "8"], "--synthesis-layers 8: is for stylegan3, not stylegan2"),
    "margin of another": (["--margin", "8"], "--margin 8: is for stylegan3, not stylegan2"),
    "too few layers": (["--arch", "stylegan3", "--synthesis-layers", "2"], "--synthesis-layers 2: must be 3 to 100"),
    "blur for ever": (["--blur", "2"], "--blur 2: needs --blur-images; give both, or neither"),
    "blur of nothing": (["--blur-images", "100"], "--blur-images 100: needs --blur; give both, or neither"),
    "channels": (["--channels", "2"], "--channels 2: must be 1 (grey), 3 (colour) or 4 (colour with transparency)"),
    "empty batch": (["--batch", "0"], "--batch 0: must be at least 1"),
    "batch against stddev groups": (["--batch", "6"], "--batch 6: must be a multiple of 4"),
    "no images": (["--images", "-5"], "--images -5: must be at least 1"),
    "learning rate": (["--lr-g", "0"], "--lr-g 0.0: must be more than 0"),
    "variant of another": (["--arch", "dcgan", "--variant", "mlp"], "--variant mlp: must be transposed or upsample"),
    "variant of none": (["--variant", "mlp"], "--variant mlp: stylegan2 has no variants"),
    "paths without styles": (["--arch", "dcgan", "--path-length", "2"], "--path-length 2.0: dcgan has no styles"),
    "penalty of another loss": (["--gp-lambda", "10"], "--gp-lambda 10.0: belongs to --loss wgan-gp"),
    "strength without augmentation": (["--augment-p", "0.5"], "--augment-p 0.5: needs --augment fixed or ramp"),
    "range of what always keeps it": (["--arch", "dcgan", "--tanh", "False"], "--tanh False: the images of dcgan"),
    "noise of another": (["--arch", "dcgan", "--noise", "False"], "--noise False: is for stylegan2, not dcgan"),
    "pixels of another": (
        ["--arch", "r3gan", "--pixel-shuffle", "True"],
        "--pixel-shuffle True: is for stylegan2, not r3gan",
    ),
    "too few pixels": (
        ["--pixel-shuffle", "True", "--resolution", "8"],
        "--pixel-shuffle True: --resolution 8 must be 16 at least",
    ),
    "strength of diffaug": (
        ["--augment", "diffaug", "--augment-p", "0.5"],
        "needs --augment fixed or ramp, not diffaug",
    ),
    "size of no projected discriminator": (
        ["--projected-size", "96"],
        "--projected-size 96: needs --discriminator projected",
    ),
    "size of features": (
        ["--discriminator", "projected", "--projected-size", "100"],
        "--projected-size 100: must be a multiple of 32 from 64",
    ),
    "no size of features": (
        ["--discriminator", "projected", "--projected-size", "0"],
        "--projected-size 0: must be at least 64 for --discriminator projected",
    ),
    "growth of the projected discriminator": (
        ["--arch", "pggan", "--discriminator", "projected", "--grow-from", "4"],
        "--grow-from 4: the projected discriminator does not grow",
    ),
    "micro-batches against stddev groups": (["--batch-gpu", "6"], "--batch-gpu 6: must be a multiple of 4"),
    "micro-batches of unequal size": (["--batch", "32", "--batch-gpu", "12"], "--batch-gpu 12: must divide --batch 32"),
    "blocks of what has none": (
        ["--arch", "dcgan", "--checkpoint-blocks"],
        "--checkpoint-blocks: dcgan is not made of",
    ),
    "growth of what does not grow": (["--grow-from", "8"], "--grow-from 8: stylegan2 does not grow"),
    "growth from between": (["--arch", "pggan", "--grow-from", "6"], "--grow-from 6: must be 4 or 8 for pggan"),
    "levels without growth": (["--level-batch", "8", "8"], "--level-batch: nothing grows"),
    "numbers of levels": (
        ["--arch", "pggan", "--resolution", "32", "--level-batch", "8", "8"],
        "--level-batch 8 8: must be 4 numbers",
    ),
    "betas": (["--betas", "0.5", "1"], "--betas (0.5, 1.0): must be two numbers"),
    "half-lives of one EMA": (["--ema-halflife", "5", "5"], "must be at least 0, or different numbers above 0"),
    "half-life of no EMA": (
        ["--ema-halflife", "5", "0"],
        "--ema-halflife (5.0, 0.0): must be at least 0, or different",
    ),
    "no half-life": (["--ema-halflife"], "--ema-halflife"),
    "half-lives": (["--ema-halflife", "5", "x"], "--ema-halflife 5 x: must be a number, numbers or auto"),
    "negative penalty": (["--r1-gamma", "-1"], "--r1-gamma -1.0: must be at least 0"),
    "mixing is a share": (["--style-mixing", "2"], "--style-mixing 2.0: must be from 0 to 1"),
    "no styles": (["--arch", "dcgan", "--style-mixing", "0.5"], "--style-mixing 0.5: dcgan has no styles"),
    "classes of a folder": (["--data", "x", "--classes", "10"], "--classes 10: x brings its own classes"),
    "classes of glyphs": (["--classes", "11"], "--classes 11"),
    "threads": (["--threads", "100000"], "--threads 100000: must be from 1 to 1024"),
    "data at a URL": (["--data", "https://127.0.0.1:9/x.zip"], "--data https://127.0.0.1:9/x.zip: only shards are"),
    "data at another": (["--data", "ftp://127.0.0.1/x"], "--data ftp://127.0.0.1/x: only shards are read from a URL"),
    "negative seed": (["--seed", "-1"], "--seed -1: must be from 0 to 18446744073709551615"),
    "large seed": (["--seed", str(2**64)], "--seed 18446744073709551616: must be smaller than 2^64"),
    "too narrow": (["--channel-base", "4"], "channel_base is 4"),
    "no such data": (["--data", "nowhere"], "nowhere"),
    "steps that cannot be captured": (
        ["--capture-steps", "on", "--compile", "--device", "cpu"],
        "--capture-steps on: --compile makes code that cannot be captured",
    ),
    "no such device": (["--device", "toaster"], "--device toaster: no such device"),
    "resume and out": (["--resume", "x", "--out", "y"], "--out and --resume exclude each other"),
    "nothing to resume": (["--resume", "nowhere"], "nowhere: there is no such checkpoint"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_option_is_one_line_and_creates_no_files(case, folder, tmp_path, monkeypatch, capsys):
    argv, says = ERRORS[case]
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


def test_an_output_folder_that_cannot_be_created(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    assert f"cannot make the folder {out}" in error_of(main, arguments(folder, out), capsys)


RESUME_ERRORS = {
    "another architecture": (["--arch", "dcgan"], "--arch dcgan", "was trained with stylegan2"),
    "another width": (["--channel-max", "16"], "--channel-max 16", "was trained with 8"),
    "another resolution": (["--resolution", "16"], "--resolution 16", "was trained with 8"),
    "another batch": (["--batch", "8"], "--batch 8", "was trained with 4"),
    "another number of EMAs": (["--ema-halflife", "5", "1"], "--ema-halflife (5.0, 1.0)", "keeps 1 EMA; give as many"),
    "already further": (["--images", "16"], "--images 16", "has seen 48 already"),
}


@pytest.mark.parametrize("case", RESUME_ERRORS)
def test_resuming_cannot_change_what_the_run_is(case, run, capsys):
    argv, *says = RESUME_ERRORS[case]
    message = error_of(main, ["--resume", str(run), *argv], capsys)
    assert all(each in message for each in [*says, str(run)])


def test_images_at_a_url_that_a_checkpoint_names_are_fetched_only_if_they_are_asked_for(run, monkeypatch, capsys):
    from fastgan.cli.evaluate import main as evaluate

    fetched, read, url = [], checkpoint.read_header, "http://127.0.0.1:9/shards.json"

    def from_url(path):
        header = read(path)
        data = dataclasses.replace(header.config.data, source=url)
        return dataclasses.replace(header, config=dataclasses.replace(header.config, data=data))

    def fetch(request, **_):
        fetched.append(request.full_url)
        raise OSError("no network here")

    monkeypatch.setattr(checkpoint, "read_header", from_url)
    monkeypatch.setattr(urllib.request, "urlopen", fetch)
    monkeypatch.setattr(registry, "require", lambda *_: None)
    commands = ((main, ["--resume", str(run), "--images", "64"]), (evaluate, ["--checkpoint", str(run)]))
    for command, argv in commands:
        says = f"names images at {url}; if you want them fetched from there, give --data {url}"
        assert says in error_of(command, argv, capsys) and not fetched
    for command, argv in commands:
        assert f"{url}: cannot be read" in error_of(command, [*argv, "--data", url], capsys) and set(fetched) == {url}
        fetched.clear()


def test_resuming_a_finished_run_prints_its_results(run, capsys):
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


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("function", ["step.logits_and_squared_grad", "loop.checkpoint.save"])
def test_running_out_of_memory_in_the_first_step_leaves_no_files(
    folder, tmp_path, monkeypatch, capsys, shortage, function
):
    error, says = SHORTAGES[shortage]
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(f"fastgan.training.{function}", failing(error, 0, None))
        line = error_of(main, [*arguments(folder, out), "--tensorboard"], capsys)
    assert line == says + "make --batch smaller, or --channel-base and --channel-max, or --resolution"
    assert not list(tmp_path.iterdir())
    (out / "wandb" / "theirs").mkdir(parents=True)  # made before, and with files of someone else
    (out / "notes.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(f"fastgan.training.{function}", failing(error, 0, None))
        assert error_of(main, arguments(folder, out), capsys).startswith(says)
    assert sorted(path.name for path in out.rglob("*")) == ["notes.txt", "theirs", "wandb"]
    train_tiny(folder, out, "--images", "4")  # the same folder serves


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_running_out_of_memory_later_leaves_a_run_to_resume(folder, run, tmp_path, monkeypatch, capsys, shortage):
    error, says = SHORTAGES[shortage]
    out = tmp_path / "run"
    original = step.logits_and_squared_grad
    # Every second step has it, and the third of them is captured.
    monkeypatch.setattr(step, "logits_and_squared_grad", failing(error, 2, original))
    assert error_of(main, arguments(folder, out), capsys).startswith(says)
    assert checkpoint.read_header(out).step == 4  # all that was trained
    monkeypatch.setattr(step, "logits_and_squared_grad", failing(error, 0, original))
    assert "a resumed run needs what it needed before" in error_of(main, ["--resume", str(out)], capsys)
    monkeypatch.setattr(step, "logits_and_squared_grad", original)
    assert main(["--resume", str(out)]) == 0
    assert_same_checkpoint(out, run)


def test_other_errors_are_not_reported_as_out_of_memory(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "logits_and_squared_grad", failing(RuntimeError("shapes differ"), 0, None))
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(arguments(folder, tmp_path / "run"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
@pytest.mark.parametrize("options", [["--batch", str(2**20)], ["--channel-base", "8388608", "--channel-max", "65536"]])
def test_a_real_shortage_of_cpu_memory(folder, tmp_path, options):
    limit = """
import resource, torch
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))
"""
    process = start(arguments(folder, tmp_path / "run", *options), limit)
    output = process.communicate()[0]
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("error: out of memory")
    assert not list(tmp_path.iterdir())


def test_a_recipe_is_printed_and_its_options_are_those_of_the_run(folder, tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["--data", str(folder), "--recipe", "auto", *WIDTHS, "--images", "4", "--batch", "4", "--no-tensorboard"]
    assert main([*argv, "--out", str(out), "--resume", "auto"]) == 0
    printed = capsys.readouterr().out
    assert "recipe     for 20 images of 8x8 on a " in printed and re.search(r"  --arch stylegan2  +\S", printed)
    saved = checkpoint.read_header(out).config
    assert saved.machine.amp and saved.training.batch == 4
    assert main([*argv, "--out", str(out), "--resume", "auto"]) == 0  # done: nothing is chosen anew
    assert "--recipe auto: a resumed run keeps" in error_of(main, ["--resume", str(out), "--recipe", "auto"], capsys)
