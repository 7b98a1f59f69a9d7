"""Counts launches, FLOPs and bytes of a training step on a GPU. No GPU is needed.

    python -m bench.budget stylegan2-256 [--top 20] [--json FILE]

The real `Step` runs on fake tensors, which have shapes and no data, and every operation is recorded. The step is the
one that a CUDA graph captures: bf16, channels_last, the CUDA kernels of every operation.

- Launches: one for an operation of PyTorch; for multi-tensor operations as many as their chunks need; for fused
  operations as `csrc/` launches them.
- FLOPs: of convolutions and matrix products, two for each multiply-add.
- Bytes: every tensor that an operation reads or writes once, so that a kernel which reads a tensor twice counts as
  one that reads it once. Views and uninitialised memory are free.

Fake tensors of a torch without CUDA are CPU tensors. So autocast's lists are those of a CPU, which differ in small
tensors only, and copies that cuDNN makes to change a layout are unknown.
"""

import argparse
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastgan_kernels
from bench.report import aligned
from fastgan import models
from fastgan.ops import use_backend
from fastgan.penalties import recording
from fastgan.runs import graphs
from fastgan.runs.config import Config, DataOptions, MachineOptions, NetworkOptions, TrainingOptions, pyramid
from fastgan.training.averages import Averages
from fastgan.training.configure import resolve
from fastgan.training.state import new_state
from fastgan.training.step import Step, StepKind

CONVOLUTION, PRODUCT, FUSED, ELEMENTWISE, MULTI_TENSOR = (
    "convolution", "matrix product", "fused", "elementwise", "multi-tensor"
)  # fmt: skip


class Work(NamedTuple):
    """Cost of one operation of a step."""

    category: str
    operation: str
    launches: int
    bytes: int
    flops: int = 0
    shape: tuple[int, ...] = ()  # shape of the largest tensor


@dataclass(frozen=True)
class Goal:
    """An upper limit of a total of a kind of step."""

    kind: str
    total: str  # a property of `Budget`
    limit: float


@dataclass(frozen=True)
class Case:
    """A training with the recipe of its architecture, at a batch of 32 unlabelled images."""

    arch: str
    resolution: int
    batch: int = 32
    network: dict = field(default_factory=dict)  # options of `NetworkOptions`
    goals: tuple[Goal, ...] = ()

    def config(self, **machine) -> Config:
        """Configuration as from the command line. `machine`: options of `MachineOptions`."""
        return resolve(
            Config(
                network=NetworkOptions(arch=self.arch, **self.network),
                data=DataOptions(resolution=self.resolution, channels=3, labels=False),
                training=TrainingOptions(batch=self.batch),
                machine=MachineOptions(amp=True, **machine),
            )
        )


CASES = {
    "stylegan2-256": Case(
        "stylegan2", 256,
        goals=(
            Goal("plain", "bytes_outside", 32e9),
            Goal("plain", "launches", 900),
            Goal("path length", "launches", 2200),
        ),
    ),
    "stylegan2-1024": Case("stylegan2", 1024),
    "r3gan-256": Case("r3gan", 256),
    "stylegan-256": Case("stylegan", 256),
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """Everything that a kind of step does, and the share of that kind among all steps."""

    share: float
    work: list[Work]

    @property
    def launches(self) -> int:
        return sum(work.launches for work in self.work)

    @property
    def flops(self) -> int:
        return sum(work.flops for work in self.work)

    @property
    def bytes_outside(self) -> int:
        """Bytes of everything but convolutions."""
        return sum(work.bytes for work in self.work if work.category != CONVOLUTION)

    @property
    def bytes_inside(self) -> int:
        """Bytes of convolutions."""
        return sum(work.bytes for work in self.work if work.category == CONVOLUTION)


TOTALS = ("launches", "flops", "bytes_outside", "bytes_inside")


def count(case: Case, only: str | None = None) -> dict[str, Budget]:
    """The budget of each kind of step, by its name; `only` of the kind of that name."""
    config = case.config()
    square, (height, width) = pyramid(case.resolution)
    model = models.ModelConfig(**vars(config.network), resolution=square, channels=3)
    state = new_state(model, config, torch.device("cpu"))  # real tensors: modules of fake ones cannot be converted
    if hasattr(state.generator, "grow_to"):
        for network in state.networks:
            network.grow_to(square)
    with _fake_tensors(), _counted_kernels() as record, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        recorder = _EagerRecorder(record)
        autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
        step = Step(state, config, model.z_dim, autocast, Averages(), recorder)
        images = torch.empty(case.batch, 3, case.resolution, case.resolution).to(memory_format=torch.channels_last)
        cycle = math.lcm(config.regularization.r1_interval, config.regularization.path_interval)
        numbers: dict[StepKind, list[int]] = defaultdict(list)
        for number in range(cycle):
            state.step = number
            numbers[step._kind()].append(number)
        budgets = {}
        kinds = sorted(numbers.items(), key=lambda pair: -len(pair[1]))  # the most frequent first
        kinds = [(kind, steps) for kind, steps in kinds if only in (None, _name(kind, config))]
        for kind, steps in [kinds[0], *kinds]:  # the first step of all creates the optimizer's state
            state.step = steps[-1]
            step(images, None)
            budgets[_name(kind, config)] = Budget(len(steps) / cycle, record.take())
    return budgets


def _name(kind: StepKind, config: Config) -> str:
    """Name of a kind of step, such as "plain" or "R1 and path length"."""
    terms = config.regularization
    parts = [
        name
        for name, there in (
            ("R1", kind.has_gradient_penalty and terms.r1_gamma),
            ("R2", kind.has_gradient_penalty and terms.r2_gamma),
            ("path length", kind.has_path_length),
        )
        if there
    ]
    return " and ".join(parts) or "plain"


class _EagerRecorder:
    """A recorder of CUDA graphs that runs every step instead, under a mode."""

    runs_work = False

    def __init__(self, mode: TorchDispatchMode):
        self._mode = mode

    def warm_up(self, work: Callable[[], Any]) -> Any:
        with self._mode:
            return work()

    def capture(self, work: Callable[[], Any]) -> graphs.Captured:
        return graphs.Captured(lambda: self.warm_up(work), None)

    def clear(self) -> None:
        pass


@contextmanager
def _fake_tensors() -> Iterator[None]:
    """Within the block new tensors are fake, and one-pass penalties take them as they would take real ones."""
    value_types = recording.VALUE_TYPES
    recording.VALUE_TYPES = (Tensor, FakeTensor)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        recording.VALUE_TYPES = value_types


# Recording ------------------------------------------------------------------------------------------------------------

aten = torch.ops.aten
_FREE = {  # metadata, uninitialised memory, marks of the profiler
    "aten.detach", "aten.empty", "aten.empty_like", "aten.empty_permuted", "aten.empty_strided", "aten.new_empty",
    "aten.new_empty_strided", "aten.is_same_size", "aten.lift_fresh", "aten.sym_size", "aten._unsafe_view",
    "prim.device",
    "profiler._record_function_enter_new", "profiler._record_function_exit",
}  # fmt: skip
_WRITES_ONLY = {  # the result does not depend on what the first argument holds
    "aten.zero_", "aten.fill_", "aten.normal_", "aten.uniform_", "aten.zeros_like", "aten.ones_like", "aten.full_like",
    "aten.rand_like", "aten.randn_like", "aten.new_zeros", "aten.new_ones", "aten.new_full",
}  # fmt: skip
_PRODUCTS = {"aten.mm": 0, "aten.bmm": 0, "aten.addmm": 1, "aten.baddbmm": 1}  # index of the left factor


class _Recording(TorchDispatchMode):
    """Records the work of every operation of PyTorch within the block, and what fused kernels add to it."""

    def __init__(self):
        super().__init__()
        self.work: list[Work] = []
        self.active = False

    def __enter__(self):
        self.active = True
        return super().__enter__()

    def __exit__(self, *error):
        self.active = False
        return super().__exit__(*error)

    def take(self) -> list[Work]:
        """Returns the work so far, and starts anew."""
        work, self.work = self.work, []
        return work

    def uncounted(self, make: Callable, arguments: tuple) -> Tensor:
        """`make(*arguments)`, for what a step makes once and keeps."""
        work = len(self.work)
        result = make(*arguments)
        del self.work[work:]
        return result

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = str(function._overloadpacket)
        arguments = function._schema.arguments
        overwrites = any(each.alias_info is not None and each.alias_info.is_write for each in arguments)
        is_view = not overwrites and any(each.alias_info is not None for each in function._schema.returns)
        read, written = _tensors((args, kwargs)), _tensors(result)
        on_meta = any(each.device.type == "meta" for each in written)  # a query whose answer is cached
        if name not in _FREE and not is_view and not on_meta:
            self.work.append(_work(name, args, kwargs, read, written))
        return result

    def fused(self, operation: str, kernel: str, call: tuple) -> None:
        """Record a launcher's call."""
        if not self.active:
            return
        tensors = list(_tensors_of_call(call))
        name = f"{operation} {_variant(kernel, call)}"
        launches = _LAUNCHES.get(operation, lambda kernel, call: 1)(kernel, call)
        self.work.append(Work(FUSED, name, launches, sum(map(_bytes, tensors)), 0, _largest(tensors)))


def _work(name: str, args: tuple, kwargs: dict, read: list[Tensor], written: list[Tensor]) -> Work:
    """The cost of an operation of PyTorch."""
    shape = _largest([*read, *written])
    moved = sum(map(_bytes, written)) + (0 if name in _WRITES_ONLY else sum(map(_bytes, read)))
    if name == "aten.convolution":
        x, weight, bias, _, _, _, transposed = args[:7]
        flops = _convolution_flops(x if transposed else written[0], weight)
        return Work(CONVOLUTION, "convolution", 1 + (bias is not None), moved, flops, shape)
    if name == "aten.convolution_backward":
        grad, x, weight, transposed, mask = args[0], args[1], args[2], args[7], args[10]
        flops = _convolution_flops(x if transposed else grad, weight)
        # Each gradient is a convolution of its own, and reads the gradient of the output and one other tensor.
        others = [each for each, needed in ((weight, mask[0]), (x, mask[1])) if needed]
        moved = sum(map(_bytes, written)) + len(others) * _bytes(grad) + sum(map(_bytes, others))
        return Work(CONVOLUTION, "convolution backward", sum(mask), moved, len(others) * flops, shape)
    if name in _PRODUCTS:
        left, right = args[_PRODUCTS[name] :][:2]
        return Work(PRODUCT, name, 1, moved, 2 * left.numel() * right.shape[-1], shape)
    if name.startswith(("aten._foreach", "aten._fused", "aten._amp_foreach")):
        lists = [each for each in args if isinstance(each, list) and _tensors(each)]
        if name == "aten._fused_adam_":  # reads parameters, gradients and two moments, writes all but gradients
            moved, lists = sum(7 * _bytes(parameter) for parameter in args[0]), args[:4]
        elif name.endswith("_"):  # returns nothing or its first list, which is also read unless copied into
            moved = sum(map(_bytes, read)) + sum(map(_bytes, args[0])) * (name != "aten._foreach_copy_")
            moved -= sum(map(_bytes, args[0])) * (name == "aten._foreach_zero_")
        converts = name == "aten._foreach_copy_"  # the one operation whose lists may differ in dtype
        return Work(MULTI_TENSOR, name, _multi_tensor_launches(lists, converts), moved, 0, shape)
    if name == "aten.copy_":
        moved -= _bytes(args[0])
    return Work(ELEMENTWISE, name, 1, moved, 0, shape)


def _convolution_flops(positions: Tensor, weight: Tensor) -> int:
    """positions: the tensor whose every position meets each tap of the weight once."""
    return 2 * positions.shape[0] * math.prod(positions.shape[2:]) * weight.numel()


def _multi_tensor_launches(lists: list[list[Tensor]], converts: bool = False) -> int:
    """Kernels of a multi-tensor operation, as `multi_tensor_apply` of PyTorch launches them.

    converts: whether lists may differ in dtype.
    """
    first, *others = lists
    alike = lambda a, b: a.shape == b.shape and a.stride() == b.stride() and (converts or a.dtype == b.dtype)
    if not all(len(each) == len(first) and all(map(alike, first, each)) for each in others):
        return len(first)  # one kernel a tensor
    most_tensors = {1: 110, 2: 64, 3: 48, 4: 36}.get(len(lists), 30)
    launches = tensors = blocks = 0
    for tensor in first:
        chunks = -(-tensor.numel() // 65536)
        tensors += 1
        while chunks:
            taken = min(chunks, 320 - blocks)
            blocks, chunks = blocks + taken, chunks - taken
            if blocks == 320 or (tensors == most_tensors and not chunks):
                launches, blocks, tensors = launches + 1, 0, 1 if chunks else 0
    return launches + (blocks > 0)


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Bytes of the tensor's distinct elements: an expanded dimension counts once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size() if tensor.numel() else 0


def _largest(tensors: list[Tensor]) -> tuple[int, ...]:
    return tuple(max(tensors, key=torch.numel).shape) if tensors else ()


# Fused operations -----------------------------------------------------------------------------------------------------


@contextmanager
def _counted_kernels() -> Iterator[_Recording]:
    """Within the block every fused operation is recorded in place of a launch on a GPU."""
    record = _Recording()

    def launchers(operation: str) -> SimpleNamespace:
        def launcher(kernel: str) -> Callable[[tuple], None]:
            return partial(record.fused, operation, kernel)

        kernels = {kernel: launcher(kernel) for kernel in ("run", "forward", "backward", "double_backward")}
        return SimpleNamespace(of=launchers, pieces=lambda call: 64, **kernels)

    fastgan_kernels.BACKENDS["counted"] = fastgan_kernels.Backend(lambda operation, device: None, launchers)
    constants = patch("fastgan.ops.constants._made_again", record.uncounted)  # on a GPU they are cached
    try:
        with use_backend("counted"), constants:
            yield record
    finally:
        del fastgan_kernels.BACKENDS["counted"]


def _variant(kernel: str, call: Any) -> str:
    """Variant of a kernel that a call selects, where it decides the bytes."""
    if getattr(call, "order", None) is not None:
        return ("forward", "backward", "double backward")[call.order]
    if hasattr(call, "up_x"):
        return f"up {call.up_x}" if call.up_x > 1 else f"down {call.down_x}" if call.down_x > 1 else "same size"
    source = (
        (" from y" if call.from_output else " from x") if hasattr(call, "from_output") and kernel != "forward" else ""
    )
    return kernel.replace("_", " ") + source


def _tensors_of_call(call: tuple) -> Iterator[Tensor]:
    """The tensors of a call, each once."""
    seen = set()
    for each in tree_leaves(tuple(call)):
        if isinstance(each, Tensor) and id(each) not in seen:
            seen.add(id(each))
            yield each


def _sums(call: Any) -> bool:
    """Whether a second stage adds up the gradients of small tensors, all of them in one launch."""
    names = ("dbias", "dstrength", "dscale", "dpost", "dto_rgb")
    return any(getattr(call, name, None) is not None for name in names)


def _noise_bias_act_launches(kernel: str, call: Any) -> int:
    return 1 + _sums(call)


def _instance_norm_launches(kernel: str, call: Any) -> int:
    """One if the rows of enough blocks fit into shared memory; else two, or three if half of an H100's L2 does not hold
    a tile, 64 bytes wide, and 8 MB. And the second stage of sums."""
    width = 16 // call.dtype.itemsize  # elements in a vector; a block takes at least two in a row
    resident = -(-call.p // 128) * 256 * 16 * (1 if kernel == "forward" else 2)
    blocks = call.n * -(-call.c // (2 * width))
    fits = not call.batch and resident <= 88 * 1024 and (blocks >= 66 or resident <= 16 * 1024)
    positions = call.p * (call.n if call.batch and not call.channels_last else 1)
    unit = positions * (64 if call.channels_last else call.dtype.itemsize) * (1 if kernel == "forward" else 2)
    return (1 if fits else 2 if unit < 17e6 else 3) + _sums(call)


_LAUNCHES: dict[str, Callable[[str, Any], int]] = {  # kernel launches of an operation on a GPU; others launch once
    "noise_bias_act": _noise_bias_act_launches,
    "bias_act_blur": lambda kernel, call: 1 + _sums(call.activation),
    "noise_bias_act_to_rgb": _noise_bias_act_launches,
    "filtered_noise_bias_act": lambda kernel, call: 1 + _sums(call.epilogue),
    "instance_norm": _instance_norm_launches,
    "batch_norm_act": _instance_norm_launches,
    "minibatch_stddev": lambda kernel, call: (3, 2, 4)[call.order],
    "squared_norm": lambda kernel, call: 2 if kernel == "forward" else 1,
}


# The report -----------------------------------------------------------------------------------------------------------


def by_operation(work: Iterable[Work]) -> list[Work]:
    """The work of each operation added up, most bytes first."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for each in work:
        for i, value in enumerate((each.launches, each.bytes, each.flops)):
            sums[each.category, each.operation][i] += value
    added = [Work(*names, *values) for names, values in sums.items()]
    return sorted(added, key=lambda each: -each.bytes)


def lines(name: str, budgets: dict[str, Budget], top: int) -> list[str]:
    """The report."""
    case = CASES[name]
    text = [f"{name}: batch {case.batch}, bf16, channels_last; a captured step", ""]
    heads = ("step", "share", "launches", "TFLOP", "GB outside convolutions", "GB in them")
    rows = [_row(kind, budget.share, budget) for kind, budget in budgets.items()]
    mean = {total: sum(each.share * getattr(each, total) for each in budgets.values()) for total in TOTALS}
    rows += [_row("mean", 1, SimpleNamespace(**mean))] if len(budgets) > 1 else []
    text += _table(heads, rows)
    for kind, budget in budgets.items() if top else ():
        text += ["", f"{kind}: the {top} operations that move most"]
        added = by_operation(budget.work)
        rows = [
            (each.operation, each.category, each.launches, f"{each.bytes / 1e9:.2f}", f"{each.flops / 1e12:.2f}")
            for each in added[:top]
        ]
        rest = added[top:]
        if rest:
            moved, flops = (sum(getattr(each, key) for each in rest) for key in ("bytes", "flops"))
            launches = sum(each.launches for each in rest)
            rows.append((f"{len(rest)} others", "", launches, f"{moved / 1e9:.2f}", f"{flops / 1e12:.2f}"))
        text += _table(("operation", "category", "launches", "GB", "TFLOP"), rows)
    text += ["", *(_judged(goal, budgets) for goal in case.goals)] if case.goals else []
    return text


def _row(name: str, share: float, totals: Any) -> tuple:
    moved = [f"{each / 1e9:.1f}" for each in (totals.bytes_outside, totals.bytes_inside)]
    return name, f"{share:.3g}", f"{totals.launches:.0f}", f"{totals.flops / 1e12:.1f}", *moved


def _judged(goal: Goal, budgets: dict[str, Budget]) -> str:
    """Whether a goal is met; if not, what is missing and where most of the total comes from."""
    budget = budgets[goal.kind]
    in_bytes = goal.total == "bytes_outside"
    show = (lambda value: f"{value / 1e9:.1f} GB") if in_bytes else (lambda value: f"{value:,.0f}")
    found = getattr(budget, goal.total)
    what = "outside convolutions" if in_bytes else goal.total
    text = f"goal, {goal.kind}: at most {show(goal.limit)} {what}: {show(found)}"
    if found <= goal.limit:
        return f"{text}, met"
    key = "bytes" if in_bytes else goal.total
    added = [each for each in by_operation(budget.work) if not in_bytes or each.category != CONVOLUTION]
    most = sorted(added, key=lambda each: -getattr(each, key))[:4]
    largest = ", ".join(f"{each.operation} {show(getattr(each, key))}" for each in most)
    return f"{text}, {show(found - goal.limit)} too many; most: {largest}"


def _table(heads: tuple[str, ...], rows: list[tuple]) -> list[str]:
    cells = [list(map(str, row)) for row in (heads, *rows)]
    return aligned(cells, [column[1][:1].isdigit() for column in zip(*cells, strict=True)])


def as_json(budgets: dict[str, Budget]) -> dict:
    """Totals and operations of each kind of step, for a file."""
    return {
        kind: {
            "share": budget.share,
            **{total: getattr(budget, total) for total in TOTALS},
            "operations": [each._asdict() for each in by_operation(budget.work)],
        }
        for kind, budget in budgets.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.budget", description="Count a training step's work on a GPU."
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--top", type=int, default=20, metavar="N", help="operations to list for each kind of step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    budgets = count(CASES[arguments.case])
    print(*lines(arguments.case, budgets, arguments.top), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(budgets), indent=1) + "\n")


if __name__ == "__main__":
    main()
