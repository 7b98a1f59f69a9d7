"""The `fastgan` command: its help, its commands, and the names that messages call it by."""

import io
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fastgan
from fastgan.cli import COMMANDS, main
from fastgan.errors import nearest, program, run_module

ROOT = Path(__file__).parents[2]


def run(*words, **variables):
    """Exit status, stdout and stderr of a command line in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    process = subprocess.run(words, capture_output=True, text=True, env=environment)
    return process.returncode, process.stdout, process.stderr


@pytest.fixture
def script(tmp_path):
    """The script that pip installs as `fastgan`, by the entry point in pyproject.toml."""
    module, function = re.search(r'^fastgan = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M).groups()
    path = tmp_path / "fastgan"
    path.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return sys.executable, str(path)


@pytest.mark.parametrize("argv", [["--help"], ["-h"], []])
def test_help_lists_every_command_with_one_line(argv, capsys):
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, summary in COMMANDS.items():
        assert [line.split(maxsplit=1) for line in lines].count([name, summary]) == 1
    assert max(map(len, lines)) <= 80


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastgan {fastgan.__version__}\n"


def test_every_command_is_a_module_of_the_package():
    modules = {path.stem for path in (ROOT / "fastgan/cli").glob("*.py")} - {"__init__"}
    assert modules == set(COMMANDS)
    for name in COMMANDS:
        module = ROOT / "fastgan" / (f"{name}/__main__.py" if name in ("export", "view") else f"{name}.py")
        assert f'run_module("fastgan.cli.{name}")' in module.read_text()
        assert import_module(f"fastgan.cli.{name}").main


@pytest.mark.parametrize(
    "given, hint",
    [
        ("trian", "did you mean train? "),
        ("gen", "did you mean generate? "),
        ("--train", "did you mean train? "),
        ("x", ""),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest_name(given, hint, capsys):
    assert main([given, "--amp"]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {given}: no such command; {hint}python -m fastgan --help lists all\n"
    assert printed.out == ""


def test_help_imports_neither_torch_nor_the_parser_of_options():
    code = (
        "import sys, fastgan.cli; fastgan.cli.main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'tyro', 'numpy')))"
    )
    status, _, errors = run(sys.executable, "-c", code)
    assert status == 0, errors


def test_help_of_the_commands_imports_no_torch():
    """But for the doctor's, which reports on torch."""
    code = """
import contextlib, sys
from fastgan.cli import COMMANDS, main

for name in COMMANDS:
    if name != "doctor":
        with contextlib.suppress(SystemExit):
            main([name, "--help"])
        assert "torch" not in sys.modules, name
"""
    status, _, errors = run(sys.executable, "-c", code)
    assert status == 0, errors


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "path, called", [("/bin/fastgan", "fastgan {}"), ("/lib/fastgan/__main__.py", "python -m fastgan {}"), ("x", None)]
)
def test_usage_and_messages_have_the_name_that_a_command_was_called_by(name, path, called, monkeypatch, capsys):
    called = (called or "python -m fastgan.{}").format(name)
    monkeypatch.setattr(sys, "argv", [path])
    with pytest.raises(SystemExit) as status:
        main([name, "--help"])
    assert not status.value.code and re.search(rf"usage: {re.escape(called)} ", capsys.readouterr().out)
    assert main([name, "--xyzzy"]) == 2
    study = " grid" if name == "generate" else ""
    assert capsys.readouterr().err.endswith(f"; {called}{study} --help lists all\n")


def test_the_script_and_both_modules_run_a_command(script):
    python = sys.executable, "-m"
    for words in ([*script, "dataset"], [*python, "fastgan", "dataset"], [*python, "fastgan.dataset"]):
        status, _, errors = run(*words, "--xyzzy")
        called = " ".join(words).replace(sys.executable, "python").replace(f"python {script[1]}", "fastgan")
        assert (status, errors) == (2, f"error: --xyzzy: no such option; {called} --help lists all\n")


@pytest.mark.parametrize(
    "script, itself, train",
    [
        ("/venv/bin/fastgan", "fastgan", "fastgan train"),
        ("C:/venv/Scripts/fastgan.exe", "fastgan", "fastgan train"),
        ("/site-packages/fastgan/__main__.py", "python -m fastgan", "python -m fastgan train"),
        ("/site-packages/fastgan/train.py", "python -m fastgan", "python -m fastgan.train"),
        ("/site-packages/fastgan/view/__main__.py", "python -m fastgan", "python -m fastgan.train"),
        ("/home/me/my_program.py", "python -m fastgan", "python -m fastgan.train"),
        ("", "python -m fastgan", "python -m fastgan.train"),
    ],
)
def test_program_follows_the_way_the_process_was_started(script, itself, train, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script])
    assert (program(), program("train")) == (itself, train)


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error_and_its_number_is_not_given_to_a_file(closed, tmp_path, script):
    number = {"stdout": 1, "stderr": 2}[closed]
    code = (
        f"import os, sys\nfrom fastgan.errors import command_line\n"
        f"@command_line\ndef main(argv):\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'wb')\n"
        f"    print('text')\n    print('text', file=sys.stderr)\n    os.write({number}, b'text')\n"
        f"    return file.fileno()\n"
        f"sys.exit(main([]))"
    )
    words = ("sh", "-c", f'exec "$@" {number}>&-', "sh", sys.executable)
    assert run(*words, "-c", code)[0] > 2
    assert (tmp_path / "file").read_bytes() == b""
    status, output, errors = run(*words, *script[1:], "--help")
    assert status == 0 and bool(output) == (closed == "stderr") and not errors
    status, output, errors = run(*words, *script[1:], "nothing")
    assert status == 2 and not output and bool(errors) == (closed == "stdout")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has such a file")
def test_a_full_disk_under_the_output_is_one_line(script):
    status, _, errors = run("sh", "-c", 'exec "$@" > /dev/full', "sh", *script, "--help")
    assert (status, errors) == (2, "error: No space left on device\n")


def test_characters_that_the_output_lacks_are_escaped(monkeypatch):
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, "ascii")
    for name in ("stdout", "__stdout__"):
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as status:
        main(["evaluate", "--help"])
    stream.flush()
    assert not status.value.code and rb"Fr\xe9chet" in content.getvalue()


def test_ctrl_c_while_modules_are_imported_ends_a_command_in_silence(tmp_path, monkeypatch):
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as status:
        run_module("interrupted")
    assert status.value.code == 130


def test_nearest():
    assert nearest("--resolutoin", ["--batch", "--resolution"]) == "did you mean --resolution? "
    assert nearest("--channel-b", ["--channel-base", "--channel-max"]).startswith("did you mean --channel-")
    assert nearest("--xyz", ["--batch"]) == ""
