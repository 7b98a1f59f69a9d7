"""Tensors that a kernel on a GPU could not read, or would read wrongly: every launcher refuses them by name.

The calls are those that the operations of tests/ops/test_every_operation.py make on emulated CUDA kernels, forward,
backward and double backward. Public functions are given arguments of a wrong dtype, shape and device, and empty ones.
Strides and overlaps are in tests/ops/test_layouts.py, sizes beyond 2^31 in tests/ops/test_large.py.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import fastgan_kernels
from fastgan_kernels import extension
from fastgan_kernels.calls import SamplesCall
from tests.emulation import build as emulation
from tests.ops.test_every_operation import OPERATIONS, N
from tests.ops.test_layouts import CALLS, Call, derivatives
from tests.support import backends


@pytest.fixture(scope="module")
def calls() -> dict[tuple[str, str], tuple]:
    """A call of every CUDA kernel, by (operation, kernel)."""
    if reason := emulation.why_unavailable():
        pytest.skip(reason)
    found = {}

    class Recorded:
        def __init__(self, launchers, operation):
            self._launchers, self._operation = launchers, operation

        def __getattr__(self, kernel):
            launch = getattr(self._launchers, kernel)
            if kernel == "of":
                return lambda operation: Recorded(launch(operation), operation)
            return lambda call: (found.setdefault((self._operation, kernel), call), launch(call))

    with backends.forced("emulated"), pytest.MonkeyPatch.context() as patch:
        backend = fastgan_kernels.BACKENDS["emulated"]
        recorded = replace(backend, launchers=lambda operation: Recorded(backend.launchers(operation), operation))
        patch.setitem(fastgan_kernels.BACKENDS, "emulated", recorded)
        for use in OPERATIONS.values():
            derivatives(Call(use.function, {}, use.fixed), use.tensors(), torch.randn_like)
        for operation in {operation for operation, _ in all_kernels() - set(found)}:  # kernels for other sizes
            for call in (call for name, call in CALLS.items() if name.startswith(f"{operation} ")):
                tensors = {name: torch.randn(shape) for name, shape in call.shapes.items()}
                tensors["x"] = tensors["x"].to(memory_format=torch.channels_last)
                derivatives(call, tensors, torch.randn_like)
    return found


def all_kernels() -> set[tuple[str, str]]:
    return {(operation, name) for operation, each in backends.emulated_module().cuda.items() for name in each}


def with_bad_tensors(call: tuple, spoil) -> Iterator[tuple[str, tuple]]:
    """The name of each tensor of a call for which `spoil` gives another, and the call with that one."""
    for name, field in zip(call._fields, call, strict=True):
        if isinstance(field, Tensor) and (bad := spoil(field)) is not None:
            yield name, call._replace(**{name: bad})
        elif isinstance(field, tuple):
            yield from ((inner, call._replace(**{name: bad})) for inner, bad in with_bad_tensors(field, spoil))


def misaligned(t: Tensor) -> Tensor | None:
    """A copy at an odd address, as `torch.from_dlpack` may give; None for a tensor of bytes."""
    if t.element_size() == 1:
        return None
    memory = bytearray(t.nbytes + 2)
    first = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    copy = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=1 - first % 2)
    assert copy.data_ptr() % 2 == 1
    return copy.as_strided(t.shape, t.stride()).copy_(t.detach())


class OnAnotherCard(Tensor):
    def get_device(self):
        return 1


@pytest.mark.slow
def test_every_kernel_has_a_call(calls):
    assert all_kernels() - set(calls) == set()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["emulated", "triton"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (misaligned, "lies at an address that is no multiple of its element's"),
        (lambda t: t.detach().as_subclass(OnAnotherCard), "is on cpu, other tensors of the call on"),
    ],
    ids=["misaligned", "on another card"],
)
def test_a_launcher_refuses_what_a_gpu_cannot_read(backend, spoil, message, calls):
    if backend == "triton":
        pytest.importorskip("triton")
    refused = set()
    for (operation, kernel), call in calls.items():
        if backend == "triton" and "has no kernel" in (
            fastgan_kernels.BACKENDS["triton"].why_not(operation, CPU) or ""
        ):
            continue
        launch = getattr(fastgan_kernels.BACKENDS[backend].launchers(operation), kernel, None)
        if launch is None:  # a derivative that only other backends have a kernel for
            continue
        alone = sum(isinstance(field, Tensor) for field in call) == 1 and spoil is not misaligned
        for name, bad in () if alone else with_bad_tensors(call, spoil):
            with pytest.raises(ValueError, match=message):
                launch(bad)
            refused.add((operation, kernel, name))
    assert len(refused) > 50


CPU = torch.device("cpu")


def test_a_kernel_runs_on_the_current_stream_of_its_tensors_device(monkeypatch):
    """Not on that of the current device. The allocator then keeps memory of freed tensors for that stream."""

    class OnCard(Tensor):
        device = torch.device("cuda", 1)

    monkeypatch.setattr(extension, "_raw_stream", lambda index: 100 + index)
    x = torch.zeros(2, 3).as_subclass(OnCard)
    assert extension.on_gpu(SamplesCall(2, 3, x.dtype, x), 0) == (1, 101, None)


# Public functions -----------------------------------------------------------------------------------------------------

DIRECT = {name: use for name, use in OPERATIONS.items() if "<lambda>" not in repr(use.function)}
ARGUMENTS = [(name, argument) for name, use in DIRECT.items() if use.shapes for argument in ("x", *use.shapes)]
WRONG = {
    "integers": lambda t: t.detach().round().long(),
    "another shape": lambda t: t.detach().reshape(1, -1, 1)[:, : max(1, t.numel() - 1)],
    "another device": lambda t: t.detach().to("meta"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_wrong_argument_is_refused_by_name(name, argument, wrong):
    use = OPERATIONS[name]
    tensors = {key: t.detach() for key, t in use.tensors().items()}
    tensors[argument] = WRONG[wrong](tensors[argument])
    with pytest.raises(ValueError) as error:
        use.function(**tensors)
    assert argument in str(error.value)


@pytest.mark.parametrize("name", OPERATIONS)
@backends.one_instruction_set
def test_no_samples_give_no_result_and_gradients_of_zero(name, backend):
    use = OPERATIONS[name]
    none = lambda key, t: t[:0] if t.dim() and len(t) == N and not key.endswith("taps") else t
    tensors = {key: none(key, t.detach()).to(backends.device(backend)) for key, t in use.tensors().items()}
    y, *grads = derivatives(Call(use.function, {}, use.fixed), tensors, torch.zeros_like)
    assert len(y) == 0
    assert all(g is None or not g.any() for g in grads)
