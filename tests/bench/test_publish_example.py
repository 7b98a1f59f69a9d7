"""Publishing an example: the file, its card, and what is refused."""

import json

import pytest
import torch
from safetensors import safe_open

from bench import publish_example
from fastgan import examples, sharing
from fastgan.runs import checkpoint
from fastgan.runs import config as configuration
from fastgan.runs.checkpoint import read_header
from fastgan.training import configure
from tests.support.commands import error_of
from tests.support.tiny_run import untrained

REPORT = {
    "arch": "dcgan", "taught_by": None, "images_shown": 0, "real": "images", "real_images": 8, "features": {},
    "metrics": [], "samples": {"images": 8}, "floor": None, "emas": None, "ema": 10.0, "memorisation": None,
    "remarks": [], "missing": {},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of examples, and no real evaluation."""
    monkeypatch.setattr(examples, "FOLDER", tmp_path / "examples")
    monkeypatch.setattr(publish_example.evaluate, "measure", lambda options: REPORT)
    examples.FOLDER.mkdir()
    return examples.FOLDER


@pytest.mark.parametrize("arch, classes", [("stylegan2", ("a", "b")), ("dcgan", ())])
def test_a_run_becomes_an_example_with_its_card(arch, classes, folder, tmp_path):
    run = untrained(tmp_path / "run", arch, classes)
    assert publish_example.main([str(run), "tiny"]) == 0
    header = read_header("example:tiny")
    assert header.model == read_header(run).model and header.config.output == configuration.OutputOptions()
    with safe_open(header.path, framework="pt") as file:
        assert set(file.keys()) == header.digests.keys()
    card = (folder / "tiny.md").read_text()
    assert card.startswith("# tiny\n") and "Matplotlib" in card and f"{arch}, " in card
    assert ("2 classes" in card) == bool(classes)


def test_data_that_are_not_built_in_must_be_described(folder, tmp_path, monkeypatch, capsys):
    run = untrained(tmp_path / "run", "dcgan")
    path = run / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["fastgan"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content["config"]["data"] |= {"source": "/home/me/cats", "classes": "auto"}
    path.write_bytes(checkpoint.to_bytes(tensors, content))
    with pytest.raises(SystemExit):
        publish_example.main([str(run), "tiny"])
    assert "--about: say what /home/me/cats is, and its licence" in capsys.readouterr().err
    assert publish_example.main([str(run), "tiny", "--about", "my cats, CC0"]) == 0
    assert read_header("example:tiny").config.data.source == "cats"
    assert "- Data: my cats, CC0." in (folder / "tiny.md").read_text()


def test_what_is_too_large_leaves_nothing(folder, tmp_path, monkeypatch, capsys):
    run = untrained(tmp_path / "run", "dcgan")
    monkeypatch.setattr(publish_example, "MOST_BYTES", 100)
    assert "more than 100" in error_of(publish_example.main, [str(run), "tiny"], capsys)
    assert not list(folder.iterdir())


def test_what_fp16_changes_is_written_in_fp32(folder, tmp_path, monkeypatch):
    run = untrained(tmp_path / "run", "dcgan")
    monkeypatch.setattr(publish_example, "MOST_LEVELS", -1)
    assert publish_example.main([str(run), "tiny"]) == 0
    assert "Weights are in fp32." in " ".join((folder / "tiny.md").read_text().split())
    with safe_open(folder / "tiny.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} <= {torch.float32, torch.int64}  # noqa: SIM118


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--amp",
        "--arch r3gan --minutes 3",
        "--arch dcgan --resolution 64 --mirror --images 1000",
        "--arch stylegan3 --variant r --resolution 64",
        "--discriminator projected --batch 64 --betas 0 0.9 --labels False",
        "--loss wgan-gp --arch dcgan --lr-g 0.001 --final-beta2 0.5",
    ],
)
def test_the_command_is_the_shortest_with_these_options(line):
    config = configure.resolve(configure.parse(line.split()))
    words = sharing.command(config).split()[2:]
    assert sorted(words) == sorted(line.split())
    assert configure.resolve(configure.parse(words)) == config
