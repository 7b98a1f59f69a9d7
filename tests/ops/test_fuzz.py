"""Operations refuse arguments that they cannot use, and read no memory that is not theirs."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.test_every_operation import OPERATIONS

pytestmark = pytest.mark.slow  # 60 examples an operation

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
    """Arguments that are accepted are differentiated too, to detect accesses outside of tensors."""
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
