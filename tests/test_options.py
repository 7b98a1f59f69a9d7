"""Options of all commands: help texts, and errors that name the option."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

from fastgan import options
from fastgan.cli import dataset, evaluate
from fastgan.cli import export as export
from fastgan.cli import view as view
from fastgan.cli.generate import SUB_COMMANDS
from fastgan.cli.generate import main as generate
from fastgan.cli.train import main
from fastgan.runs import config as configuration
from fastgan.training import configure
from tests.support.commands import error_of

pytestmark = pytest.mark.usefixtures("one_cache")


def with_groups(hint) -> list[type]:
    """A dataclass of options, and the dataclasses of its groups."""
    fields = options._fields(hint)
    return [hint, *(each for kind in fields.values() if dataclasses.is_dataclass(kind) for each in with_groups(kind))]


def all_options():
    modules = (evaluate, dataset, export, view)
    return [
        each
        for kind in (configuration.Config, *SUB_COMMANDS.values(), *(m.Options for m in modules))
        for each in with_groups(kind)
    ]


@pytest.mark.parametrize("kind", all_options(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_help_flows(kind):
    """tyro keeps a line break before a character that is no letter, so only items of a list may begin with one."""
    texts = re.findall(r'"""(.*?)"""', inspect.getsource(kind), re.S)
    breaks = [
        line for text in texts for line in text.splitlines()[1:] if line.strip() and not line.strip()[0].isalpha()
    ]
    assert not [line for line in breaks if not line.strip().startswith("- ")]


WRONG_FLAGS = {
    "train": (main, ["--resolutoin", "8"], "did you mean --resolution? python -m fastgan.train --help lists all"),
    "underscores": (main, ["--batch_gup=8"], "--batch_gup=8: no such option; did you mean --batch-gpu?"),
    "generate": (generate, ["mix", "--clases", "3"], "did you mean --classes? python -m fastgan.generate mix --help"),
    "sub-command": (generate, ["intrepolate"], "intrepolate: no such sub-command; did you mean interpolate?"),
    "missing": (generate, ["--class", "3"], "--checkpoint is missing; python -m fastgan.generate grid --help"),
    "choice": (main, ["--loss", "foo"], "hinge, wgan, wgan-gp, relativistic or auto"),
    "no number": (main, ["--batch", "x"], "--batch x: must be a whole number or auto"),
    "one of two": (main, ["--betas", "1"], "--betas 1: must be 2 numbers or auto"),
    "no value": (main, ["--device"], "--device: needs a value, a text"),
    "too many": (main, ["--lr-g", "3", "4"], "4: belongs to no option"),
    "infinite": (main, ["--mapping-lr", "inf"], "--mapping-lr inf: must be a finite number"),
    "infinite in fp32": (generate, ["--checkpoint", "x", "--trunc", "1e300"], "--trunc 1e+300: must be a finite"),
    "among others": (main, ["--level-lr", "1", "nan"], "--level-lr (1.0, nan): must be a finite number"),
    "null byte": (main, ["--out", "a\0b"], "--out a\\x00b: must not have a null byte"),
    "lone surrogate": (main, ["--out", "a\udce9"], "--out a\\udce9: must be UTF-8"),
    "nobody": (main, ["--out", "~nobody-here/x"], "--out ~nobody-here/x: there is no such user's folder"),
    "no name": (main, ["--out", ""], "--out: the name is empty; give one, like . for the current folder"),
    "no name to go on with": (main, ["--resume="], "--resume: the name is empty"),
    "no name of a run": (generate, ["--checkpoint", ""], "--checkpoint: the name is empty"),
    "no name of data": (dataset.main, ["", "--resolution", "8"], "SOURCE: the name is empty"),
    "long name": (generate, ["--checkpoint", "x" * 5000], "File name too long"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FLAGS)
def test_errors_name_the_option_and_what_would_be_right(case, capsys):
    command, argv, says = WRONG_FLAGS[case]
    assert says in error_of(command, argv, capsys)


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configure.parse(["--out=~/run"]).output.out == str(tmp_path / "run")


@pytest.mark.parametrize("program", ["train", "generate"])
def test_a_closed_pipe_is_no_error(program):
    command = [sys.executable, "-m", f"fastgan.{program}", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141
