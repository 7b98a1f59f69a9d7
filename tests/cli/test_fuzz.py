"""Invalid arguments and files give a result, or one exception that says what is wrong.

Images, zips and pickles are fuzzed where their readers are tested: test_dataset, test_data, test_official_networks.
"""

import copy
import functools
import itertools
import json
import re
import signal
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load
from safetensors.torch import save as to_bytes

from fastgan import options
from fastgan.cli import dataset, doctor, evaluate, generate
from fastgan.cli import export as export
from fastgan.cli import view as view
from fastgan.cli.train import main as train_main
from fastgan.errors import UserError
from fastgan.runs import checkpoint
from fastgan.runs import config as configuration
from tests.ops.test_every_operation import OPERATIONS
from tests.support.tiny_run import make_folder, train

pytestmark = pytest.mark.slow  # hundreds of command lines

if sys.platform == "linux":
    import resource

# Operations --------------------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.complex64]
SIZES = st.integers(0, 9)
MULTIPLIED = ("image_batch", "squared_norm")  # with x, behind the operation: PyTorch refuses what does not fit


@st.composite
def wrong_tensors(draw, like):
    """A tensor with another shape, dtype or strides than `like`."""
    kind = draw(st.sampled_from(["shape", "near", "dtype", "expanded", "transposed"]))
    if kind == "dtype":
        return like.detach().to(draw(st.sampled_from(DTYPES)))
    if kind == "expanded":
        return torch.ones(()).expand(like.shape)
    if kind == "transposed":
        return like.detach().movedim(0, -1) if like.dim() else like.detach()
    shape = list(like.shape) if kind == "near" else draw(st.lists(SIZES, max_size=5))
    if kind == "near" and shape:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(SIZES)
    return torch.randn(shape).to(draw(st.sampled_from(DTYPES)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_refuses_what_it_cannot_do(name, data):
    """And never reads memory that is not its own: what it takes, it also differentiates."""
    use = OPERATIONS[name]
    tensors = {key: t.detach() for key, t in use.tensors().items()}
    for key in data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=2, unique=True)):
        tensors[key] = data.draw(wrong_tensors(tensors[key]))
    wanted = [t for t in tensors.values() if isinstance(t, torch.Tensor) and t.is_floating_point()]
    wanted = [t.requires_grad_() for t in wanted if not t.requires_grad]
    try:
        y = use.function(**tensors)
    except (ValueError, TypeError, IndexError) as error:  # an index of an image that there is not
        assert len(str(error)) > 10
        return
    except RuntimeError as error:
        # Raised by the PyTorch functions around the operation.
        assert name in MULTIPLIED and re.search("must match the size|does not support complex", str(error)), error
        return
    assert isinstance(y, torch.Tensor)
    if y.requires_grad:
        torch.autograd.grad(y.double().sum(), wanted, allow_unused=True)


# Checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    """The bytes of a checkpoint, and where to put others."""
    run = train(folder, tmp_path_factory.mktemp("runs") / "run", "--arch", "mlp")
    return (run / checkpoint.FILE_NAME).read_bytes(), run / "damaged.safetensors"


@st.composite
def damages(draw):
    """A function on bytes: cut off, changed, or longer, preferably in the header."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "replace"]))
    share = draw(st.floats(0, 1)) ** draw(st.sampled_from([1, 3]))
    value = draw(st.binary(min_size=1, max_size=12))

    def damage(content: bytes) -> bytes:
        at = int(share * (len(content) - 1))
        if kind == "cut":
            return content[:at]
        if kind == "insert":
            return content[:at] + value + content[at:]
        if kind == "flip":
            return content[:at] + bytes([content[at] ^ value[0]]) + content[at + 1 :]
        return content[:at] + value + content[at + len(value) :]

    return damage


@settings(max_examples=150, deadline=None, derandomize=True)
@given(damage=damages())
def test_a_damaged_checkpoint_is_read_or_refused_in_one_line(saved, damage):
    content, path = saved
    path.write_bytes(damage(content))
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


@pytest.fixture(scope="module")
def header(saved):
    """That of a small checkpoint, and a function that writes the checkpoint with another."""
    content, path = saved
    tensors = load(content)  # not mapped from the file that is written over
    path.write_bytes(content)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["fastgan"])
    return header, lambda changed: path.write_bytes(to_bytes(tensors, {"fastgan": json.dumps(changed)}))


def test_an_edited_header_is_read_or_refused_in_one_line_that_names_the_field(saved, header, one_thread):
    """Every thirteenth of all fields with all odd values: each field has other ones than its neighbours."""
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


# Command lines -----------------------------------------------------------------------------------------------------

COMMANDS = {
    "train": (train_main, configuration.Config),
    **{f"generate {name}": (generate.main, kind) for name, kind in generate.SUB_COMMANDS.items()},
    "evaluate": (evaluate.main, evaluate.Options),
    "export": (export.main, export.Options),
    "dataset": (dataset.main, dataset.Options),
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
def workspace(saved, tmp_path_factory):
    """A folder with a checkpoint, a damaged checkpoint, and images."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "run").mkdir()
    (folder / "run" / checkpoint.FILE_NAME).write_bytes(saved[0])
    (folder / "damaged.safetensors").write_bytes(saved[0][:1000])
    make_folder(folder / "images")
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
    """300 command lines, without a traceback, within 20 seconds and little memory each."""
    random = Random(0)
    monkeypatch.setenv("FASTGAN_CACHE", str(workspace / "cache"))
    monkeypatch.setattr(
        view, "serve", lambda options: checkpoint.read_header(options.run)
    )  # instead of serving for ever

    def too_long(*_):
        raise AssertionError("takes longer than 20 seconds")

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
            signal.alarm(20)
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
