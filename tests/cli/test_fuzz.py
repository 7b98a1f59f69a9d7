"""Random command lines succeed, or fail in one line that says what is wrong."""

import signal
import sys
from pathlib import Path
from random import Random

import pytest

from fastgan import options
from fastgan.cli import dataset, directions, doctor, evaluate, generate, project, share
from fastgan.cli import export as export
from fastgan.cli import view as view
from fastgan.cli.train import main as train_main
from fastgan.runs import checkpoint
from fastgan.runs import config as configuration
from tests.support.processes import LONG
from tests.support.tiny_run import make_folder, train

pytestmark = pytest.mark.slow  # hundreds of command lines

if sys.platform == "linux":
    import resource

COMMANDS = {
    "train": (train_main, configuration.Config),
    **{f"generate {name}": (generate.main, kind) for name, kind in generate.SUB_COMMANDS.items()},
    "directions": (directions.main, directions.Directions),
    "evaluate": (evaluate.main, evaluate.Options),
    "export": (export.main, export.Options),
    "dataset": (dataset.main, dataset.Options),
    "project": (project.main, project.Options),
    "share": (share.main, share.Options),
    "view": (view.main, view.Options),
    "doctor": (doctor.main, None),
}
TEXTS = [
    "",
    " ",
    "x",
    "a\0b",
    "\udce9",
    "x" * 300,
    "x" * 5000,
    "~nobody-here/x",
    "-",
    "--",
    "--help-me",
    "a\nb",
    "/dev/null",
]
NUMBERS = [
    "inf",
    "-inf",
    "nan",
    "1e300",
    "-1",
    "-0.0",
    "100000000000000000000",
    "9" * 5000,
    "1e-400",
    "0x10",
    "٣",
    "10q",
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a run, a damaged checkpoint, and images."""
    folder = tmp_path_factory.mktemp("workspace")
    run = train(make_folder(folder / "images"), folder / "run", "--arch", "mlp", "--images", "4")
    (folder / "damaged.safetensors").write_bytes((run / checkpoint.FILE_NAME).read_bytes()[:1000])
    return folder


def random_command_line(random: Random) -> tuple[str, list[str]]:
    """A quick command line with one to three random values or options appended."""
    name = random.choice(sorted(COMMANDS))
    argv = {
        "train": ["--data", "images", "--resolution", "8", "--images", "0", "--arch", "mlp"],
        "evaluate": ["--checkpoint", "run", "--samples", "4", "--metrics", "nothing"],
        "dataset": ["images", "--resolution", "8", "--out", "nowhere/x.zip/y", "--workers", "1"],
        "export": ["--checkpoint", "damaged.safetensors"],
        "view": ["damaged.safetensors", "--port", "0"],
        "doctor": ["--jsn"],
        "share": ["run", "--out", "shared"],
        "project": ["--checkpoint", "run", "nowhere.png"],
    }.get(name, ["--checkpoint", "run", "--seeds", "0,1"])
    kind = COMMANDS[name][1]
    known = options._options_of(kind) if kind else {}
    for _ in range(random.randint(1, 3)):
        flag = random.choice([each.flags[0] for each in known.values()] or ["--json"])
        if random.random() < 0.15:
            flag = flag[: random.randint(2, len(flag))] + random.choice(["", "x", "-"])
        value = random.choice(TEXTS + NUMBERS)
        argv += random.choice([[flag, value], [f"{flag}={value}"], [flag], [value], [flag, value, value]])
    return name, argv


@pytest.mark.skipif(sys.platform != "linux", reason="needs an alarm and a limit of memory")
def test_a_random_command_line_succeeds_or_fails_in_one_line(workspace, monkeypatch, capsys, one_thread):
    """300 command lines, without a traceback, in little time and memory each."""
    random = Random(0)
    monkeypatch.setenv("FASTGAN_CACHE", str(workspace / "cache"))
    monkeypatch.setattr(
        view, "serve", lambda options: [checkpoint.read_header(run) for run in options.runs]
    )  # instead of serving for ever

    def too_long(*_):
        raise AssertionError("does not end")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, too_long)
    try:
        for number in range(300):
            name, argv = random_command_line(random)
            words = name.split()[1:]
            (workspace / str(number)).mkdir()
            monkeypatch.chdir(workspace / str(number))
            for thing in ("run", "images", "damaged.safetensors"):
                Path(thing).symlink_to(workspace / thing)
            signal.alarm(int(LONG))
            try:
                status = COMMANDS[name][0]([*words, *argv])
            except SystemExit as error:  # of --help
                status = error.code
            except BaseException as error:
                raise AssertionError(f"{name} {argv}: {error!r}") from error
            finally:
                signal.alarm(0)
            said = capsys.readouterr().err.splitlines()
            errors = [line for line in said if line.startswith("error: ")]
            assert status in (0, 1, 2), (name, argv, status)
            assert len(errors) == (status == 2) and "Traceback" not in said, (name, argv, status, said)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
