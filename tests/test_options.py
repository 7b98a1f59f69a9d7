"""Options of all commands: help texts, and errors that name the option."""

import itertools
import re
import subprocess
import sys

import pytest

from fastgan.cli import dataset, evaluate
from fastgan.cli import export as export
from fastgan.cli import view as view
from fastgan.cli.generate import SUB_COMMANDS
from fastgan.cli.generate import main as generate
from fastgan.cli.train import main
from fastgan.training import configure
from tests.support.commands import error_of

pytestmark = pytest.mark.usefixtures("one_cache")


HELP = {
    "train": main,
    "generate": generate,
    **{f"generate {name}": lambda argv, name=name: generate([name, *argv]) for name in SUB_COMMANDS},
    "evaluate": evaluate.main,
    "dataset": dataset.main,
    "export": export.main,
    "view": view.main,
}


def help_page(command, width, monkeypatch, capsys) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as stopped:
        HELP[command](["--help"])
    assert not stopped.value.code
    return capsys.readouterr().out.splitlines()


def early_breaks(lines: list[str], width: int) -> list[str]:
    """Lines that end although the first word of the next one would fit."""
    found = []
    for line, after in itertools.pairwise(lines):
        boxed = line[:1] == "│"
        line, after = (each[2:-2].rstrip() if boxed else each for each in (line, after))
        column = len(after) - len(after.lstrip())
        # Text of `line` in the column where `after` continues: two spaces separate it from the name of an option.
        continued = line[:column].endswith("  ") if column else re.match(r"[^\s─╭╰-]", line)
        starts_anew = not after or re.match(r"\s*[-─╭╰•]", after)
        if continued and not starts_anew and len(line) + 1 + len(after.split()[0]) <= width - 4 * boxed:
            found.append(f"{line}\n{after}")
    return found


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", HELP)
def test_help_fills_the_width_of_the_terminal(command, width, monkeypatch, capsys):
    lines = help_page(command, width, monkeypatch, capsys)
    assert max(map(len, lines)) <= width
    assert not early_breaks(lines, width)


def test_help_keeps_lists_and_shows_defaults(monkeypatch, capsys):
    text = "\n".join(help_page("evaluate", 120, monkeypatch, capsys))
    assert len({indent for indent in re.findall("│( +)- On features of ", text)}) == 1
    assert text.count("- On features of ") == 3
    assert re.search("--samples INT +Number of generated images", text) and "(default: 5000)" in text


def first_paragraph(kind) -> str:
    return " ".join(kind.__doc__.split("\n\n")[0].split())


def test_help_of_generate_has_a_line_for_each_sub_command(monkeypatch, capsys):
    text = " ".join(line.strip("│ ") for line in help_page("generate", 200, monkeypatch, capsys))
    for name, kind in SUB_COMMANDS.items():
        assert re.search(rf"• {name} +{re.escape(first_paragraph(kind))}", text)


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


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "generate"])
def test_a_closed_pipe_is_no_error(program):
    command = [sys.executable, "-m", f"fastgan.{program}", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141
