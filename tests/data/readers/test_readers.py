"""All readers: sources that are missing, never end or are not regular files, and packages that are not installed."""

import os
import pkgutil
import re
import sys
from pathlib import Path

import pytest

from fastgan.cli import dataset
from fastgan.data import readers
from fastgan.data.readers import READERS, open_reader
from fastgan.errors import UserError
from tests.support.image_sources import make_folder, open_images, prepare_images

pytestmark = pytest.mark.usefixtures("one_cache")


def test_every_module_is_a_format_that_the_command_names(capsys):
    modules = {module.name for module in pkgutil.iter_modules(readers.__path__)} - {"base"}
    assert {reader.__module__.rpartition(".")[2] for reader in READERS} == modules
    with pytest.raises(SystemExit):
        dataset.main(["--help"])
    shown = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert all(reader.accepts in shown for reader in READERS)


@pytest.mark.parametrize("spec", ["gone", "gone.csv", "gone.tar", "gone.lmdb", "@gone", "torchvision:Gone"])
def test_a_missing_source_is_named(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"gone|Gone"):
        open_reader(spec)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("@list.txt", "list.txt names the list @list.txt"),
        ("a{0..999999}{0..999999}.tar", "more than 1,000,000 files"),
        ("https://example.org/x.zip", "https://example.org/x.zip: only tar files are read from URLs"),
    ],
)
def test_endless_lists_and_unsupported_urls_are_refused(tmp_path, monkeypatch, spec, words):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("@list.txt\n")
    with pytest.raises(UserError, match=re.escape(words)):
        open_reader(spec)


def test_a_source_of_two_formats_is_refused(tmp_path):
    (tmp_path / "data.mdb").touch()
    (tmp_path / "train-images-idx3-ubyte").touch()
    with pytest.raises(UserError, match=r" may be .* or .*LMDB; keep one of them there"):
        open_reader(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_devices_and_folders_among_images_are_skipped(tmp_path):
    folder = make_folder(tmp_path / "images")
    os.mkfifo(folder / "cat" / "pipe.png")
    (tmp_path / "table.csv").write_text("file\nimages/cat/001.png\nimages/cat/pipe.png\n/dev/zero\nimages\n")
    for source in (folder, tmp_path / "table.csv"):
        out = tmp_path / f"{source.name}-out"
        prepare_images(source, "--resolution", "16x8", "--out", out)
        assert "pipe.png\tcannot be" in out.with_name(f"{out.name}.skipped.txt").read_text()
    assert (tmp_path / "table.csv-out.skipped.txt").read_text().count("(not a regular file)") == 3
    (folder / "cat" / "002-bad.png").unlink()
    with pytest.raises(UserError, match=r"pipe.png cannot be decoded \(not a regular file\)"):
        open_images(folder, "24x16")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize(
    "name", ["a.csv", "a.tar", "a.lmdb", "@a.txt", "a.zip", "a.npz", "a.npy", "a-images-idx3-ubyte"]
)
def test_a_source_that_is_a_named_pipe_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(name.removeprefix("@"))
    with pytest.raises(UserError, match=r"a[.-]"):
        list(open_reader(name).items(range(1)))


@pytest.mark.parametrize(
    ("module", "spec"), [("torchvision", "torchvision:CIFAR10"), ("datasets", "hf:x"), ("lmdb", "x.lmdb")]
)
def test_a_missing_package_is_named_with_the_install_command(monkeypatch, module, spec):
    for name in [module, *(each for each in sys.modules if each.startswith(module + "."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"needs the extra .* pip install"):
        open_reader(spec)
