"""Networks that come with the package: they load, draw and fit their cards; a wrong name lists them."""

import re

import pytest
import torch
from safetensors import safe_open

import fastgan
from fastgan import examples
from fastgan.cli import export, generate, train
from fastgan.data.urls import has_scheme, local_path
from fastgan.files import file_digest
from fastgan.runs.checkpoint import read_header
from fastgan.runs.networks import open_networks
from fastgan.sharing import command, public
from fastgan.view.watching import Run
from tests.support.commands import error_of

NAMES = examples.names()


def test_there_are_examples_and_nothing_else():
    assert "digits" in NAMES
    files = {path.name for path in examples.FOLDER.iterdir() if path.is_file() and path.suffix != ".py"}
    assert files == {f"{name}{ending}" for name in NAMES for ending in (".safetensors", ".md")}


def test_they_are_small():
    assert sum(path.stat().st_size for path in examples.FOLDER.glob("*.*")) <= 3_000_000


@pytest.mark.parametrize("name", NAMES)
def test_an_example_draws_alike_from_python_and_the_command_line(name, tmp_path, monkeypatch, capsys):
    sampler = fastgan.load(f"example:{name}", "cpu", batch=1)
    pixels = sampler.sample(seeds=[0, 1], classes=sampler.class_names[0] if sampler.class_names else None)
    assert pixels.float().std() > 10, "pictures, not one colour"
    monkeypatch.chdir(tmp_path)
    assert generate.main(["--checkpoint", f"example:{name}", "--seeds", "0-1", "--device", "cpu"]) == 0
    assert (tmp_path / "generated.png").exists()
    assert f"example:{name} is described in {examples.card_of(f'example:{name}')}" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_that_of_its_file(name):
    card = examples.card_of(f"example:{name}").read_text()
    header = read_header(f"example:{name}")
    assert re.search(r"SHA-256 `(\w+)`", card)[1] == file_digest(header.path)
    assert card.startswith(f"# {name}\n") and f"--checkpoint example:{name}\n" in card
    assert f"{header.images:,} images" in card and f"{header.model.arch}, " in card
    words = " ".join(card.split())  # without breaks of lines
    assert f"- Command: `{command(public(header.config))}`, " in words, "what makes it follows from today's recipes"
    for part in ("- Data: ", "- Licence of the network: ", "- Command: `fastgan train", "fastgan 0.", "KID", "recall"):
        assert part in card, part


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_the_generator_alone_and_no_paths(name):
    header = read_header(f"example:{name}")
    with safe_open(header.path, framework="pt") as file:
        assert all(tensor.startswith("ema.") for tensor in file.keys())  # noqa: SIM118
        assert "/" not in re.sub(r"[\w.+-]+/[\w.+-]+\"", "", file.metadata()["fastgan"])
    _, networks = open_networks(header.path).load_state_dicts()
    assert set(networks) == {"ema"}
    assert {value.dtype for value in networks["ema"].values()} == {torch.float32}


def test_a_wrong_name_lists_those_that_there_are(capsys):
    line = error_of(generate.main, ["--checkpoint", "example:digit"], capsys)
    assert line.startswith("example:digit: no such example; did you mean digits? there are ") and "digits" in line


@pytest.mark.parametrize("text", ["example:../secret", "example:", "example:digits.md", "example:digits/"])
def test_only_names_are_examples(text, capsys):
    assert "no such example" in error_of(generate.main, ["--checkpoint", text], capsys)


def test_a_path_is_no_example():
    assert local_path("runs/example:digits") and not has_scheme("runs/example:digits")
    assert has_scheme("example:digits") and local_path("example:digits") == examples.FOLDER / "digits.safetensors"


def test_what_needs_all_networks_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = error_of(train.main, ["--init-from", "example:digits"], capsys)
    assert "has no D: a training needs a discriminator as well" in line
    line = error_of(export.main, ["--checkpoint", "example:digits", "--format", "pkl"], capsys)
    assert "its images go through tanh" in line
    assert "start a new run" in error_of(train.main, ["--resume", "example:digits"], capsys)
    assert not list(tmp_path.iterdir())


def test_the_page_shows_an_example_by_its_name():
    run = Run("example:digits", torch.device("cpu"))
    assert (run.name, run.is_run, run.log(), run.grids()) == ("digits.safetensors", False, [], [])
