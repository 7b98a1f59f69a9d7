"""Damaged checkpoints and edited headers are read, or refused in one line that says what is wrong."""

import copy
import functools
import itertools
import json
import os
import re
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load
from safetensors.torch import save as to_bytes

from fastgan import models
from fastgan.cli.train import main
from fastgan.errors import UserError
from fastgan.runs import checkpoint
from tests.support.commands import error_of, failing
from tests.support.damage import mutate
from tests.support.tiny_run import train, untrained

pytestmark = pytest.mark.slow  # hundreds of files


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    """The bytes of a checkpoint, and where to put others."""
    run = train(folder, tmp_path_factory.mktemp("runs") / "run", "--arch", "mlp")
    return (run / checkpoint.FILE_NAME).read_bytes(), run / "damaged.safetensors"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rng=st.randoms())
def test_a_damaged_checkpoint_is_read_or_refused_in_one_line(saved, rng):
    content, path = saved
    path.write_bytes(mutate(content, rng, head=8 + int.from_bytes(content[:8], "little")))
    try:
        checkpoint.load_generator(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(content=st.binary(max_size=200))
def test_what_is_no_checkpoint_at_all_is_refused(saved, content):
    _, path = saved
    path.write_bytes(content)
    with pytest.raises(UserError, match="no checkpoint, or a truncated one"):
        checkpoint.load_generator(path)


ALL = os.environ.get("FASTGAN_FAULTS") == "all"  # a bit of every byte, half a minute of a core
FLIPS = 1200


def test_a_flipped_bit_is_never_loaded(tmp_path):
    """Bits of the header and of the tensors, half of each: an error of one line, or the same content as before.

    The latter is for what is not read, such as the header's padding.
    """
    path = untrained(tmp_path / "run", "dcgan") / checkpoint.FILE_NAME
    content = path.read_bytes()
    header = checkpoint.read_header(path)
    tensors = {name: value.clone() for name, value in checkpoint._read(header, "").items()}
    of_header, random = 8 + int.from_bytes(content[:8], "little"), Random(0)
    says: dict[str, int] = {}
    every = range(len(content))
    some = [random.choice(part) for part in (every[:of_header], every[of_header:]) for _ in range(FLIPS // 2)]
    for at in every if ALL else some:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :])
        try:
            found = checkpoint.read_header(path)
            loaded = checkpoint._read(found, "")
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            kind = re.search("tensor|header|format|no checkpoint|not written by", str(error).removeprefix(str(path)))
            says[kind[0]] = says.get(kind[0], 0) + 1
            continue
        assert found == header and loaded.keys() == tensors.keys(), at
        assert all(torch.equal(loaded[name], value) for name, value in tensors.items()), at
    assert says["tensor"] >= FLIPS / 2 and says["header"] > FLIPS / 10
    assert len(every if ALL else some) - sum(says.values()) < 5


def test_the_tensor_that_differs_is_named(tmp_path):
    path = untrained(tmp_path / "run", "dcgan") / checkpoint.FILE_NAME
    content = bytearray(path.read_bytes())
    start, header = 8 + int.from_bytes(content[:8], "little"), checkpoint.read_header(path)
    name = next(name for name in header.digests if name.startswith("generator."))
    content[start + json.loads(content[8:start])[name]["data_offsets"][0]] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged: tensor {name} differs from the one that was saved$"):
        checkpoint.read_networks(header)
    checkpoint.load_generator(path)  # needs the EMA alone


def test_a_network_larger_than_its_file_is_not_built(tmp_path, monkeypatch, capsys):
    """A header may ask for any size; the tensors say how large the networks are."""
    path = untrained(tmp_path / "run", "dcgan") / checkpoint.FILE_NAME
    header, tensors = json.loads(metadata_of(path)["fastgan"]), load(path.read_bytes())
    for part in (header["model"], header["config"]["network"]):
        part |= {"channel_base": 2**30, "channel_max": 2**14}
    path.write_bytes(checkpoint.to_bytes(tensors, header))
    monkeypatch.setattr("fastgan.training.loop.train", lambda *_: pytest.fail("the training was started"))
    monkeypatch.setattr(models, "build_generator", failing(AssertionError("built"), 2, models.build_generator))
    with pytest.raises(UserError, match="does not fit this network"):
        checkpoint.load_generator(path)
    assert "does not fit this network" in error_of(main, ["--resume", str(path.parent)], capsys)


# Headers of checkpoints --------------------------------------------------------------------------------------------

DELETED = object()
ODD = [
    DELETED,
    None,
    "x",
    "",
    "auto",
    True,
    -1,
    0,
    3,
    2**63,
    10**30,
    2.5,
    1e300,
    float("nan"),
    [],
    [0.5, 0.9],
    {"a": {}},
]
ODD += ["rmsprop", "dcgan", "wgan"]  # right for some field, but not the network's


def fields_of(content: dict, path: tuple[str, ...] = ()):
    for name, value in content.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from fields_of(value, (*path, name))


def edited(header: dict, path: tuple[str, ...], value) -> dict:
    """A copy with this value in one field, or without the field."""
    header = copy.deepcopy(header)
    place = functools.reduce(dict.__getitem__, path[:-1], header)
    if value is DELETED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return header


def metadata_of(path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def header(saved):
    """That of a small checkpoint, and a function that writes the checkpoint with another."""
    content, path = saved
    tensors = load(content)  # not mapped from the file that is written over
    path.write_bytes(content)
    header = json.loads(metadata_of(path)["fastgan"])
    return header, lambda changed: path.write_bytes(to_bytes(tensors, checkpoint.metadata(changed)))


def test_an_edited_header_is_read_or_refused_in_one_line_that_names_the_field(saved, header, one_thread):
    """Every 13th pair of a field and an odd value, so that neighbouring fields get different values."""
    (_, path), (header, write) = saved, header
    read, number = 0, 0
    for number, (place, value) in enumerate(itertools.product(fields_of(header), ODD)):
        if number % 13:
            continue
        write(edited(header, place, value))
        try:
            checkpoint.load_generator(path)
            read += 1
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            names = (place[-1], place[-1].replace("_", "-"), *place[-2:-1])
            assert any(name in str(error) for name in names), (place, value, error)
    assert 5 < read < number / 13 / 2


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "[" * 100_000, '{"format": 4}', '{"format": [4]}'])
def test_a_header_that_is_none(saved, header, content):
    (_, path), (header, _) = saved, header
    path.write_bytes(to_bytes({"a": torch.zeros(1)}, {"fastgan": content}))
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        checkpoint.load_generator(path)
    assert "\n" not in str(error.value)
