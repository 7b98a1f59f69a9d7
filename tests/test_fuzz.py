"""Arguments and files that make no sense: there is a result, or one exception that says what is wrong.

Images, zips and pickles are fuzzed where their readers are tested: test_dataset, test_data, test_official_networks.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan.errors import UserError
from fastgan.training import checkpoint
from tests.test_every_operation import OPERATIONS
from tests.tiny_run import train

# Operations --------------------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.complex64]
SIZES = st.integers(0, 9)
MULTIPLIED = ("image_batch", "squared_norm")  # with x, behind the operation: PyTorch refuses what does not fit


@st.composite
def wrong_tensors(draw, like):
    """Something else than `like`: of another shape or dtype, or with strange strides."""
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
        assert name in MULTIPLIED and "must match the size" in str(error), error
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
