"""Networks on the Hugging Face hub: by name, at a revision, with one line for what fails; safetensors alone."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch

import fastgan
from fastgan.cli.generate import main as generate
from fastgan.data import hub as networks
from fastgan.data.urls import local_path
from fastgan.errors import UserError
from fastgan.interop import load_official
from fastgan.runs.checkpoint import FILE_NAME, load_generator
from tests.support import hub, official
from tests.support.commands import error_of
from tests.support.tiny_run import untrained

NAME = "someone/some-faces"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run") / "run", "dcgan")


@pytest.fixture
def server(run, tmp_path, monkeypatch):
    """A stand-in with a repository of two commits, the first without a network."""
    with hub.serve(monkeypatch, tmp_path) as server:
        server.repositories[NAME] = [
            {"README.md": b"empty"},
            {"README.md": b"", FILE_NAME: (run / FILE_NAME).read_bytes(), "evil.pkl": b"cos\nsystem\n."},
        ]
        monkeypatch.chdir(tmp_path)
        yield server


def test_a_network_is_loaded_by_name(server, run, capsys):
    sampler = fastgan.load(f"hf://{NAME}", device="cpu")
    expected, _ = load_generator(run)
    assert all(torch.equal(a, b) for a, b in zip(sampler.generator.parameters(), expected.parameters(), strict=True))
    revision = hub.revision_of(server.repositories[NAME][1])
    assert f"hf://{NAME}: revision {revision}, as " in capsys.readouterr().err
    asked = [each.rpartition("/")[2] for each in server.requests if "/resolve/" in each]
    assert {*asked} == {FILE_NAME}, "nothing else is downloaded"
    digest = hashlib.sha256((run / FILE_NAME).read_bytes()).hexdigest()
    path = local_path(f"hf://{NAME}@{revision}#sha256={digest}", FILE_NAME)
    assert path.read_bytes() == (run / FILE_NAME).read_bytes()
    assert len([each for each in server.requests if "/resolve/" in each]) == len(asked), "a hash names one content"
    with pytest.raises(UserError, match=f"has SHA-256 {digest}, not {'0' * 64}"):
        local_path(f"hf://{NAME}#sha256={'0' * 64}", FILE_NAME)


def test_commands_take_the_name_and_write_to_the_current_folder(server, tmp_path):
    assert generate(["--checkpoint", f"hf://{NAME}", "--seeds", "0", "--device", "cpu"]) == 0
    assert (tmp_path / "generated.png").exists()


WRONG = {
    "hf://someone/nothing": "there is no such repository, or it is private: then run hf auth login",
    f"hf://{NAME}@v9": "has no such revision",
    f"hf://{NAME}@FIRST": "holds no checkpoint.safetensors: no network of fastgan",
    "hf://someone": "must be hf://USER/NAME, or hf://USER/NAME@REVISION",
    "hf://a/b/c": "must be hf://USER/NAME, or hf://USER/NAME@REVISION",
    "hf://a/b@": "must be hf://USER/NAME, or hf://USER/NAME@REVISION",
    f"hf://{NAME}#md5=1": "what follows # must be sha256=",
    "hf://a/..": "Repo id must use alphanumeric chars",
}


def test_what_is_not_there_is_an_error_of_one_line(server, capsys):
    first = hub.revision_of(server.repositories[NAME][0])
    for name, says in WRONG.items():
        name = name.replace("FIRST", first)
        line = error_of(generate, ["--checkpoint", name], capsys)
        assert line.startswith(f"{name}: ") and says in line, line
    with pytest.raises(UserError, match=f"hf://{NAME}: is a repository, not a file"):
        load_official(f"hf://{NAME}")


def test_a_pickle_is_not_read_whatever_its_name(server, tmp_path):
    sizes = official.Sizes(img_resolution=8, img_channels=1, channel_base=64, channel_max=8, z_dim=6)
    path = official.write(tmp_path / "network.pkl", official.snapshot(sizes))
    server.repositories[NAME].append({FILE_NAME: path.read_bytes()})
    with pytest.raises(UserError, match=f"^hf://{NAME}: its {FILE_NAME} is no safetensors file$"):
        fastgan.load(f"hf://{NAME}")


def test_a_damaged_file_is_refused(server, run):
    content = (run / FILE_NAME).read_bytes().replace(b'\\"images\\": 0,', b'\\"images\\": 8,')
    server.repositories[NAME].append({FILE_NAME: content})
    with pytest.raises(UserError, match="is damaged: its header differs"):
        fastgan.load(f"hf://{NAME}")


def test_the_cache_serves_without_a_network(server, monkeypatch):
    path = local_path(f"hf://{NAME}", FILE_NAME)
    server.shutdown(), server.server_close()
    assert local_path(f"hf://{NAME}", FILE_NAME) == path
    with pytest.raises(
        UserError, match="hf://someone/else: the hub cannot be reached, and the file is not in the cache"
    ):
        local_path("hf://someone/else", FILE_NAME)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'hf://a/b: needs the extra "huggingface".*pip install huggingface-hub'):
        networks.download("hf://a/b", FILE_NAME)


@pytest.mark.slow
def test_the_hub_may_be_elsewhere(server, run, tmp_path):
    """By the environment variable of huggingface_hub, as for a mirror."""
    code = f"from fastgan.data.urls import local_path; print(local_path('hf://{NAME}', {FILE_NAME!r}))"
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    with open(done.stdout.strip(), "rb") as file:
        assert file.read() == (run / FILE_NAME).read_bytes()
