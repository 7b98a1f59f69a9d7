"""Shared parts of the tables of cases of all operations: layouts, derivatives up to the second, repeatability.

An operation's test file has its cases and a `textbook` function, written apart from fastgan. For every case, backend
and dtype it calls `assert_derivatives_as_good_as_plain`.
"""

import itertools
import random
from collections.abc import Callable, Hashable, Iterable, Sequence

import pytest
import torch
from torch import Tensor

from tests.support import backends
from tests.support.accuracy import assert_as_good_as_plain

_latest: dict[tuple, tuple] = {}  # textbook results of one case; conftest.py orders tests so that its backends follow

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


# Backends that take a part of a table: emulated kernels, and C++ kernels for other instruction sets than the best. All
# others, and all backends under a sanitizer, take every case.
SOME = () if backends.SANITIZER else ("emulated", *backends.SLOWER_CPP)


def over(cases: Iterable[tuple[Hashable, str]]) -> pytest.MarkDecorator:
    """Decorator of a test of `backend`, `case` and `dtype`: runs it over pairs of a case and the name of a dtype.

    Backends of `SOME` take a case in every second of its dtypes, beginning with the first or the second, in turns. So
    each of them meets every case, and every dtype with nearly every option.
    """
    dtypes: dict[Hashable, list[str]] = {}
    for case, dtype in cases:
        dtypes.setdefault(case, []).append(dtype)
    # Turns by `bit_count` have no period, which the table's options might share.
    chosen = [
        pytest.param(backend, case, dtype, id=f"{backend}-{case}-{dtype}")
        for i, (case, of_case) in enumerate(dtypes.items())
        for j, dtype in enumerate(of_case)
        for backend in backends.AVAILABLE
        if backend not in SOME or len(of_case) == 1 or (i.bit_count() + j + SOME.index(backend)) % 2 == 0
    ]
    return pytest.mark.parametrize(("backend", "case", "dtype"), chosen, indirect=["backend"])


def in_pairs(choices: Sequence[Sequence], seed: Hashable = 0) -> list[tuple]:
    """Few tuples of one value from each of `choices` that hold every two values of different ones together.

    Greedy: the next tuple is the one with the most pairs that none before it holds. `seed` decides between equals.
    """
    rows = list(itertools.product(*map(range, map(len, choices))))
    random.Random(f"{seed}").shuffle(rows)
    pairs = {row: set(itertools.combinations(enumerate(row), 2)) for row in rows}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(rows, key=lambda row: len(pairs[row] & missing)))
        missing -= pairs[chosen[-1]]
    return [tuple(values[i] for values, i in zip(choices, row, strict=True)) for row in sorted(chosen)]


def over_product(**choices: Sequence) -> pytest.MarkDecorator:
    """Decorator of a test of `backend` and of these parameters: runs it over all combinations of their values.

    Backends of `SOME` take few of them, with every two values of different parameters together (`in_pairs`), and each
    backend others.
    """
    chosen = {name: in_pairs(list(choices.values()), seed=name) for name in SOME}
    cases = [
        pytest.param(backend, *case, id="-".join([backend, *map(_id, case)]))
        for case in itertools.product(*choices.values())
        for backend in backends.AVAILABLE
        if backend not in SOME or case in chosen[backend]
    ]
    return pytest.mark.parametrize(("backend", *choices), cases, indirect=["backend"])


def _id(value) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value).removeprefix("torch.")


def orders_of(backend: str, mean: float) -> Sequence[int]:
    """The derivatives of a norm that are held to plain PyTorch. Far from zero, kernels of GPUs, which merge means in
    single precision, make values and first derivatives a few times less exact."""
    return (2,) if mean and backend in ("emulated", "triton", "cuda") else (0, 1, 2)


def arrange(x: Tensor, layout: str) -> Tensor:
    """The same values, elsewhere in memory: "nhwc", "nchw", "sliced" or, all samples being the first, "expanded"."""
    match layout:
        case "nhwc":
            return x.contiguous(memory_format=torch.channels_last)
        case "nchw":
            return x.contiguous()
        case "sliced":
            return torch.stack([x, x], -1)[..., 0]
        case "expanded":
            return x[:1].expand(x.shape)


def per_channel(t: Tensor, x: Tensor) -> Tensor:
    """[C] or [N, C] in a shape that broadcasts against x [N, C, ...]."""
    return t.reshape(*(t.shape if t.dim() == 2 else [-1]), *[1] * (x.dim() - 2))


def away_from_kinks(x: Tensor, near_kink: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """fp64 numbers that `dtype` can represent, none of them where `near_kink(x)` is True.

    At a kink, rounding decides between two derivatives.
    """
    for _ in range(20):
        near = near_kink(x)
        if not near.any():
            break
        x = torch.where(near, (x + 0.37).to(dtype).double(), x)
    return x


def derivatives(
    function: Callable[..., Tensor], tensors: dict[str, Tensor], dy: Tensor, seeds: Sequence[Tensor], fixed=()
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """`function(**tensors)`, its gradients, and the gradients of a product of those with `seeds`.

    The first two are with respect to the tensors that are not `fixed`, in their order; the last with respect to dy and
    them.
    """
    inputs = {name: t.detach().requires_grad_() for name, t in tensors.items() if name not in fixed}
    dy = dy.detach().requires_grad_()
    y = function(**{**tensors, **inputs})
    variables = list(inputs.values())
    grads = torch.autograd.grad(y, variables, dy, create_graph=True)
    product = sum((g * s.to(g.dtype)).sum() for g, s in zip(grads, seeds, strict=True))
    second = torch.autograd.grad(product, [dy, *variables], allow_unused=True)
    # Where the operation is linear in an input, one implementation gives zero, another nothing.
    second = [torch.zeros_like(t) if g is None else g for g, t in zip(second, [dy, *variables], strict=True)]
    return y, grads, second


def assert_derivatives_as_good_as_plain(
    fused: Callable[..., Tensor],
    textbook: Callable[..., Tensor],
    tensors: dict[str, Tensor],
    *,
    fixed: Sequence[str] = (),
    layout: str = "nchw",
    terms: float = 1.0,
    orders: Sequence[int] = (0, 1, 2),
    case: Hashable = None,
) -> None:
    """Result, first and second derivatives of `fused`, beside those of `textbook` in fp64 and in the dtype of `x`.

    `tensors` are named arguments of both; "x" is the activation, whose dtype is the case's. The error may be at most
    twice that of the textbook in that dtype, plus 4 eps of the largest value (`tests.support.accuracy`). `terms` is the
    size of what is summed up in the gradients of small tensors; `orders` are those of the derivatives to look at.
    """
    x = tensors["x"]
    dtype, device = x.dtype, x.device
    names = [name for name in tensors if name not in fixed]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        shape = fused(**tensors).shape
    dy = torch.randn(shape, generator=generator).to(device, dtype)
    if layout == "nhwc":
        dy = dy.contiguous(memory_format=torch.channels_last)
    seeds = [torch.randn(tensors[name].shape, generator=generator).to(device, dtype) for name in names]

    def textbook_results() -> tuple[tuple, tuple]:
        wide = {name: t.double() for name, t in tensors.items()}
        same = {name: t.to(dtype) for name, t in tensors.items()}
        reference = derivatives(textbook, wide, dy.double(), seeds, fixed)
        return reference, derivatives(textbook, same, dy, seeds, fixed)

    got = derivatives(fused, tensors, dy, seeds, fixed)
    key = (textbook.__code__, case, dtype, device, layout)
    if case is None or key not in _latest:
        _latest.clear()
        _latest[key] = textbook_results()
    reference, plain = _latest[key]

    assert got[0].dtype == dtype
    if 0 in orders:
        assert_as_good_as_plain(got[0], plain[0], reference[0], dtype, "y")
    for which, order, where in ((1, "gradient", names), (2, "second gradient", ["dy", *names])):
        if which not in orders:
            continue
        for name, *three in zip(where, got[which], plain[which], reference[which], strict=True):
            summed = x.numel() // max(three[0].numel(), 1) if name not in ("x", "dy") else 0
            summed = round(terms**2 * summed)
            assert_as_good_as_plain(*three, dtype, f"{order} of {name}", summed)


def all_derivatives(function: Callable[..., Tensor], tensors: dict[str, Tensor], fixed: Sequence[str] = ()):
    """The result, first and second derivatives for random gradients, in one list."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda t: torch.empty_like(t).copy_(torch.randn(t.shape, generator=generator))
    with torch.no_grad():
        dy = draw(function(**tensors))
    seeds = [draw(t) for name, t in tensors.items() if name not in fixed]
    y, first, second = derivatives(function, tensors, dy, seeds, fixed)
    return [y, *first, *second]


def assert_bitwise_repeatable(backend: str, results: Callable[[], Sequence[Tensor]]) -> None:
    """Asserts that `results()` has the same bits under every schedule of a backend.

    CPU kernels run on different numbers of threads, emulated CUDA kernels with their threads in different orders, and
    kernels on a GPU twice.
    """
    runs = []
    if backend.startswith("cpp"):
        before = torch.get_num_threads()
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            runs.append(results())
        torch.set_num_threads(before)
    elif backend == "emulated":
        for order in ("forward", "reverse", "shuffled"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("FASTGAN_EMULATED_ORDER", order)
                runs.append(results())
    else:
        runs = [results(), results()]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def assert_message_contains(words: Sequence[str], call: Callable[[], object]) -> None:
    """Asserts that the call raises a ValueError whose message has all of the words."""
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
