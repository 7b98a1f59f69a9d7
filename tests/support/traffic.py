"""Memory traffic of the CUDA kernels, counted by the emulation (tests/emulation/traffic.cpp).

`count` runs an operation at one shape and returns its traffic by direction. `python -m tests.support.traffic` prints
the table of docs/gpu_counters.md: `CASES`, each figure the worst of all dtypes.
"""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from mmap import mmap
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan_kernels
from bench.forms import FILTERED
from bench.forms import FORMS as TIMED_FORMS
from bench.operations import Form, Normal, Shape, present
from fastgan import ops
from fastgan.ops.upfirdn2d import forked_upfirdn2d
from fastgan_kernels import extension
from tests.emulation import build as emulation

ACTIVATIONS = {"x", "y", "dy", "dx", "gx", "ddy", "reference", "residual", "addend", "a", "b", "first", "second"}
ACTIVATIONS |= {"appended", "pixels"}
"""Fields of calls that hold activations or their gradients; all others are small."""


@dataclass(frozen=True)
class Instruction:
    """Accesses of one instruction to one tensor, or to shared memory, summed over warps and blocks."""

    offset: int  # of its return address in the module
    tensor: str  # field of the call, "workspace" or "shared"
    write: bool
    requests: int  # of a warp
    lanes: int
    bytes: int  # of all lanes
    units: int  # 32-byte sectors touched; of shared memory: passes
    ideal: int  # the fewest units for these bytes


@dataclass
class Launch:
    """Traffic of one kernel launch."""

    place: str  # file and line of the launch
    kernel: int  # offset of the kernel in the module
    shared: int  # bytes of dynamic shared memory of a block
    blocks: int
    executed: int  # number of blocks that were executed
    threads: int  # of a block
    barriers: float  # that a block met, on average
    unique: dict[tuple[str, bool], int] = field(default_factory=dict)  # (tensor, write) -> bytes of its sectors
    by_block: dict[tuple[str, bool], int] = field(default_factory=dict)  # the same, summed over blocks
    reuse: int = 0  # most bytes that the L2 must hold so that it serves a second read of an activation
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True)
class Traffic:
    """Traffic of all launches of an operation in one direction.

    Attributes:
        launches: in their order.
        minimum_read: bytes of activations that the operation's formula reads.
        minimum_written: the same for writes.
    """

    launches: list[Launch]
    minimum_read: int
    minimum_written: int

    def unique(self, write: bool | None = None) -> int:
        """Bytes of activations, each sector once a launch, read (`write` False), written (True) or both (None)."""
        return self._sum("unique", write)

    def by_block(self, write: bool | None = None) -> int:
        """Bytes of activations, each sector once a block: what the L2 serves if the L1 serves all repetitions."""
        return self._sum("by_block", write)

    def instructions(self, *tensors: str) -> list[Instruction]:
        """Instructions that access these tensors."""
        return [i for launch in self.launches for i in launch.instructions if i.tensor in tensors]

    def figures(self) -> dict[str, float]:
        """Figures that tests/kernels/test_traffic.py limits. A figure is absent if nothing of its kind is accessed.

        sectors: ideal by actual number of sectors of requests to activations; noise: the same for the noise.
        bytes: unique bytes of activations by the minimum.
        reads: bytes read by block, by the minimum.
        passes: passes through shared memory by the ideal.
        """
        figures = {
            "sectors": _efficiency(self.instructions(*ACTIVATIONS)),
            "noise": _efficiency(self.instructions("noise")),
            "bytes": self.unique() / (self.minimum_read + self.minimum_written),
            "reads": self.by_block(write=False) / self.minimum_read,
            "passes": 1 / (_efficiency(self.instructions("shared")) or 1),
        }
        return {name: figure for name, figure in figures.items() if figure is not None}

    def describe(self) -> str:
        """A line for each launch and each source line that accesses memory."""
        places = source_lines({i.offset for launch in self.launches for i in launch.instructions})
        lines = []
        for launch in self.launches:
            lines.append(f"{launch.place}: {launch.blocks} blocks of {launch.threads} threads")
            for i in launch.instructions:
                access = f"{'writes' if i.write else 'reads'} {i.tensor}"
                unit = "passes" if i.tensor == "shared" else "sectors"
                lines.append(
                    f"    {places[i.offset]:40} {access}: {i.requests} requests, {i.bytes / i.lanes:g} bytes a lane, "
                    f"{i.units / i.requests:.2f} {unit} a request, {i.ideal / i.requests:.2f} are ideal"
                )
        return "\n".join(lines)

    def _sum(self, which: str, write: bool | None) -> int:
        return sum(
            size
            for launch in self.launches
            for (tensor, written), size in getattr(launch, which).items()
            if tensor in ACTIVATIONS and write in (None, written)
        )


def _efficiency(instructions: list[Instruction]) -> float | None:
    units = sum(i.units for i in instructions)
    return sum(i.ideal for i in instructions) / units if units else None


# ----------------------------------------------------------------------------------------------------------- operations

# The activations that a formula reads and writes in each direction, by their shapes: "x" or "y" for those like x or y,
# "p" for bytes of images, "q" for a quarter of x. A direction without a kernel of its own is left out.
Formula = dict[str, tuple[str, str]]
FROM_OUTPUT: Formula = {"forward": ("x", "y"), "backward": ("yy", "x"), "double backward": ("xy", "y")}
FROM_INPUT: Formula = {"forward": ("x", "y"), "backward": ("xy", "x"), "double backward": ("xxy", "xy")}
NORM: Formula = {"forward": ("x", "y"), "backward": ("xy", "x")}
LEARNED: Formula = {"forward": ("x", "y"), "backward": ("xy", "x")}
LINEAR: Formula = {"forward": ("x", "y"), "backward": ("y", "x")}  # double backward is forward again
FORMULAS: dict[str, Formula] = {
    "bias": FROM_OUTPUT,
    "residual": {"forward": ("xx", "y"), "backward": ("xy", "x"), "double backward": ("xy", "y")},
    "noise": FROM_OUTPUT,
    "synthesis": FROM_INPUT,
    "learned_noise": LEARNED,
    "learned_synthesis": LEARNED,
    "to_rgb": FROM_INPUT,  # the image and its gradients do not count
    "learned_to_rgb": LEARNED,
    "last_to_rgb": {"forward": ("x", ""), "backward": ("x", "x"), "double backward": ("xx", "x")},
    "upsample": LINEAR,
    "downsample": LINEAR,
    "blur": LINEAR,
    "filtered": NORM,
    "act_blur": NORM,
    "alias_free": LINEAR,  # double backward is backward with the filters exchanged, as forward
    "alias_free_up": LINEAR,
    "alias_free_radial": LINEAR,
    "alias_free_radial_up": LINEAR,
    "fork": {"forward": ("x", "q"), "backward": ("xq", "x")},
    "batch_norm_act": NORM,
    "adain": NORM,
    "style_epilogue": NORM,
    "pixel_norm": FROM_INPUT,
    "minibatch_stddev": FROM_INPUT,
    "lerp_samples": {"forward": ("xx", "y"), "backward": ("y", "xx")},
    "squared_norm": {"forward": ("x", ""), "backward": ("x", "x")},
    "image_batch": {"forward": ("p", "y")},
}


def _pixels(shape: Shape, normal: Normal) -> dict[str, Tensor]:
    n, c, h, w = shape
    return {
        "pixels": torch.zeros(n, h, w, c, dtype=torch.uint8),
        "index": torch.arange(n),
        "mirrored": torch.arange(n) % 2 == 1,
    }


IMAGE_BATCH = Form(
    operation="image_batch",
    name="image_batch",
    label="`image_batch`",
    fused=lambda x, pixels, index, mirrored: ops.image_batch(pixels, index, mirrored, x.dtype),
    textbook=ops.image_batch,
    tensors=_pixels,
    shapes={"cuda": ((32, 3, 256, 256),)},
    fixed=("pixels", "index", "mirrored"),
)
# A discriminator's skip connection, whose gradient joins that of the other branch.
FORK = Form(
    operation="upfirdn2d",
    name="fork",
    label="`forked_upfirdn2d`",
    fused=lambda x, taps: _joined(*forked_upfirdn2d(x, taps, down=2, padding=(1, 1, 1, 1))),
    textbook=forked_upfirdn2d,
    tensors=lambda shape, normal: {"taps": normal(4)},
    shapes={"cuda": FILTERED["cuda"]},
    fixed=("taps",),
)


def _joined(x: Tensor, smaller: Tensor) -> Tensor:
    return x + F.interpolate(smaller, scale_factor=2)


# Layers whose noise is optimised, in the projection of an image.
LEARNED_NOISE = [
    replace(form, name=f"learned_{form.name}", fixed=(), shapes={})
    for form in TIMED_FORMS
    if form.name in ("noise", "synthesis", "to_rgb")
]

FORMS: dict[str, Form] = {
    form.name: form for form in (*TIMED_FORMS, *LEARNED_NOISE, IMAGE_BATCH, FORK) if form.name in FORMULAS
}


@dataclass(frozen=True)
class Case:
    """A form at a shape of x [N, C, H, W] that is small, but has the traffic of a large one.

    A layout without a shape is not counted. `ends` is that of `count`.
    """

    form: str
    nhwc: Shape | None
    nchw: Shape | None
    ends: int | None = None

    def count(self, layout: str, dtype: torch.dtype) -> dict[str, Traffic]:
        """Traffic by direction; `layout` is one of `layouts`."""
        shape = self.nhwc if layout == "NHWC" else self.nchw
        return count(FORMS[self.form], shape, dtype, layout == "NHWC", self.ends)

    @property
    def layouts(self) -> list[str]:
        return [name for name, shape in (("NHWC", self.nhwc), ("NCHW", self.nchw)) if shape]


CASES = {
    "noise_bias_act: bias": Case("bias", (2, 64, 32, 32), (2, 64, 32, 32)),
    "noise_bias_act: residual": Case("residual", (2, 64, 32, 32), (2, 64, 32, 32)),
    "noise_bias_act: noise": Case("noise", (2, 64, 32, 32), (2, 64, 32, 32)),
    "noise_bias_act: all": Case("synthesis", (2, 64, 32, 32), (2, 64, 32, 32)),
    "noise_bias_act: learned noise": Case("learned_noise", (2, 64, 32, 32), (2, 64, 32, 32)),
    "noise_bias_act: all, learned noise": Case("learned_synthesis", (2, 64, 32, 32), (2, 64, 32, 32)),
    "noise_bias_act_to_rgb": Case("to_rgb", (2, 64, 32, 32), None),
    "noise_bias_act_to_rgb: wide": Case("to_rgb", (2, 512, 8, 16), None),
    "noise_bias_act_to_rgb: learned noise": Case("learned_to_rgb", (2, 64, 32, 32), None),
    "noise_bias_act_to_rgb: last": Case("last_to_rgb", (2, 64, 32, 32), None),
    "upfirdn2d: up 2": Case("upsample", (36, 64, 64, 64), (36, 64, 64, 64), ends=15),
    "upfirdn2d: up 2, RGB": Case("upsample", (32, 3, 128, 128), None, ends=30),
    "upfirdn2d: down 2": Case("downsample", (36, 64, 64, 64), (36, 64, 64, 64), ends=15),
    "upfirdn2d: down 2, RGB": Case("downsample", (32, 3, 128, 128), None, ends=30),
    "upfirdn2d: blur": Case("blur", (36, 64, 64, 64), (36, 64, 64, 64), ends=15),
    "upfirdn2d: down 2, forked": Case("fork", (36, 64, 64, 64), None, ends=15),
    "bias_act_blur": Case("act_blur", (36, 64, 64, 64), None, ends=15),
    "filtered_noise_bias_act": Case("filtered", (36, 64, 65, 65), (36, 64, 65, 65), ends=15),
    "filtered_lrelu: same size": Case("alias_free", (36, 16, 84, 84), (4, 16, 96, 96), ends=4),
    "filtered_lrelu: up 2": Case("alias_free_up", (36, 16, 42, 42), None, ends=4),
    "filtered_lrelu: odd channels": Case("alias_free", (12, 45, 84, 84), None, ends=4),
    "filtered_lrelu: radial filter": Case("alias_free_radial", (36, 16, 84, 84), (4, 16, 96, 96), ends=4),
    "filtered_lrelu: radial filter, up 2": Case("alias_free_radial_up", (36, 16, 42, 42), None, ends=4),
    "batch_norm_act": Case("batch_norm_act", (2, 64, 32, 32), (2, 64, 32, 32)),
    "adain: on chip": Case("adain", (4, 128, 16, 16), (4, 128, 16, 16)),
    "adain: large": Case("adain", (2, 64, 32, 32), (1, 2, 192, 192)),
    "style_epilogue: on chip": Case("style_epilogue", (4, 128, 16, 16), (4, 128, 16, 16)),
    "style_epilogue: large": Case("style_epilogue", (2, 64, 32, 32), (1, 2, 192, 192)),
    "pixel_norm": Case("pixel_norm", (2, 64, 32, 32), (2, 64, 32, 32)),
    "minibatch_stddev": Case("minibatch_stddev", (8, 512, 4, 4), (8, 512, 4, 4)),
    "lerp_samples": Case("lerp_samples", (2, 3, 64, 64), (2, 3, 64, 64)),
    "squared_norm": Case("squared_norm", (2, 3, 64, 64), (2, 3, 64, 64)),
    "image_batch": Case("image_batch", (4, 3, 64, 64), None),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # fp16 is as wide as bf16


def count(
    form: Form, shape: Shape, dtype: torch.dtype, channels_last: bool = True, ends: int | None = None
) -> dict[str, Traffic]:
    """Traffic of an operation in forward, backward and, where a kernel serves it, double backward.

    Args:
        form: of `FORMS`.
        shape: of x, [N, C, H, W].
        dtype: of activations: fp32 or bf16.
        channels_last: NHWC, else NCHW.
        ends: executes only so many blocks at the beginning and at the end of each launch, and scales the counts to the
            whole grid. None: all blocks. For large shapes.
    """
    with _counted_backend() as recorded, _only_ends(ends):
        records, size = run(form, shape, dtype, channels_last, recorded)
    return {
        direction: Traffic(
            launches, *(sum(size[which] for which in tensors) for tensors in FORMULAS[form.name][direction])
        )
        for direction, launches in records.items()
    }


def run(
    form: Form,
    shape: Shape,
    dtype: torch.dtype,
    channels_last: bool,
    recorded: Callable,
    directions: Collection[str] = ("forward", "backward", "double backward"),
) -> tuple[dict[str, Any], dict[str, int]]:
    """Runs each direction of an operation within `recorded(records, direction)`, on tensors without content.

    Returns the records, and the bytes of the tensors that `FORMULAS` names.
    """
    formula = {way: tensors for way, tensors in FORMULAS[form.name].items() if way in directions}

    def activation(size: Shape, requires_grad: bool = True) -> Tensor:
        n, c, h, w = size
        t = _zeros((n, h, w, c), dtype).permute(0, 3, 1, 2) if channels_last else _zeros(size, dtype)
        return t.requires_grad_(requires_grad)

    others = form.tensors(shape, lambda *size: torch.ones(()).expand(size) if size == shape else torch.ones(size))
    for name, tensor in others.items():
        wanted = name not in form.fixed
        others[name] = activation(shape) if tensor.shape == shape else tensor.requires_grad_(wanted)
    x = activation(shape)
    small = [t for t in others.values() if t.requires_grad]
    records: dict[str, Any] = {}
    with recorded(records, "forward"):
        results = present(form.fused(x, **others))
    y = results[0]
    dy = [
        activation(y.shape) if y.dim() == 4 and y.dtype == dtype else torch.zeros_like(y).requires_grad_()
        for y in results
    ]
    if "backward" in formula:
        with recorded(records, "backward"):
            torch.autograd.grad(results, [x, *small], dy, retain_graph=True)
    if "double backward" in formula:
        (dx,) = torch.autograd.grad(results, x, dy, create_graph=True)
        # Without a gradient of x where the derivative is taken from y: autograd would call backward for zeros.
        inputs = [*dy, x, *small] if "x" in formula["double backward"][1] else dy
        with recorded(records, "double backward"):
            torch.autograd.grad(dx, inputs, activation(shape, False), allow_unused=True)
    size = {"x": x.nbytes, "y": y.nbytes, "q": x.nbytes // 4}
    size["p"] = others["pixels"].nbytes if "pixels" in others else 0
    return records, size


def _zeros(size: Shape, dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory, nor time, until they are written; `torch.zeros` writes them."""
    return torch.frombuffer(mmap(-1, math.prod(size) * dtype.itemsize), dtype=dtype).view(size)


# ------------------------------------------------------------------------------------------------------------ recording


@cache
def library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(emulation.build_fastgan("traffic")))
    declare(library)
    return library


def declare(library: ctypes.CDLL) -> None:
    """Declares the functions of tests/emulation/traffic.cpp."""
    library.fastgan_traffic_stop.restype = ctypes.c_char_p
    library.fastgan_traffic_tensor.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64]


@contextmanager
def _counted_backend() -> Iterator:
    """Every operation runs on the counted kernels. Yields `recorded(records, name)`, which records a scope."""
    counts = library()
    module = emulation.load(emulation.build_fastgan("traffic"), "_emulated")

    def place(call: tuple, workspace: int) -> tuple:
        """Device, stream and scratch of a launch. The launcher calls this before each launch."""
        device, stream, scratch = extension.emulated(call, workspace)
        counts.fastgan_traffic_forget_tensors()
        for name, tensor in [*_tensors(call), *([("workspace", scratch)] if workspace else [])]:
            counts.fastgan_traffic_tensor(name.encode(), tensor.data_ptr(), tensor.nbytes)
        return device, stream, scratch

    @contextmanager
    def recorded(records: dict, name: str) -> Iterator[None]:
        counts.fastgan_traffic_start()
        yield
        records[name] = parse(counts.fastgan_traffic_stop().decode())

    launchers = cache(partial(extension.launchers, module.cuda, place=place))
    fastgan_kernels.BACKENDS["counted"] = fastgan_kernels.Backend(lambda operation, device: None, launchers)
    try:
        with ops.use_backend("counted"):
            yield recorded
    finally:
        del fastgan_kernels.BACKENDS["counted"]


def _tensors(call: tuple) -> Iterator[tuple[str, Tensor]]:
    for name, value in zip(call._fields, call, strict=True):
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            yield from _tensors(value)


@contextmanager
def _only_ends(ends: int | None) -> Iterator[None]:
    if ends is not None:
        os.environ["FASTGAN_EMULATED_ENDS"] = str(ends)
    yield
    if ends is not None:
        del os.environ["FASTGAN_EMULATED_ENDS"]


def parse(report: str) -> list[Launch]:
    """The launches of a report of fastgan_traffic_stop, scaled to all blocks where only some were executed."""
    launches: list[Launch] = []
    for line in report.splitlines():
        kind, *fields = line.split("\t")
        if kind == "launch":
            file, *numbers = fields
            line, kernel, shared, blocks, executed, threads, barriers = map(int, numbers)
            place = f"{file.split('csrc/')[-1]}:{line}"
            launches.append(Launch(place, kernel, shared, blocks, executed, threads, barriers / executed))
            scale = blocks / executed
        elif kind == "tensor":
            tensor, size, *numbers = fields
            if tensor in ACTIVATIONS:
                launches[-1].reuse = max(launches[-1].reuse, int(numbers[4]))
            for write, unique, by_block in ((False, *numbers[:2]), (True, *numbers[2:4])):
                if by_block := round(int(by_block) * scale):
                    launches[-1].unique[tensor, write] = min(round(int(unique) * scale), int(size))
                    launches[-1].by_block[tensor, write] = by_block
        else:
            offset, tensor, write, *numbers = fields
            counts = (round(int(number) * scale) for number in numbers)
            launches[-1].instructions.append(Instruction(int(offset), tensor, write == "1", *counts))
    return launches


@cache
def kernel_name(offset: int) -> str:
    """Mangled name of a kernel, by `Launch.kernel`. Raises OSError without binutils."""
    command = ["addr2line", "-f", "-e", str(emulation.build_fastgan("traffic")), hex(offset)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def source_lines(offsets: set[int]) -> dict[int, str]:
    """File and line of each return address, outside of the headers of csrc/common where they were inlined."""
    ordered = sorted(offsets)
    command = ["addr2line", "-e", str(emulation.build_fastgan("traffic")), "-i", "-a"]
    try:
        output = subprocess.run([*command, *(hex(o - 1) for o in ordered)], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # without binutils
        return {offset: hex(offset) for offset in ordered}
    places: dict[int, str] = {}
    for line in output.stdout.splitlines():
        if line.startswith("0x"):
            frames: list[str] = []
            offset = int(line, 16) + 1
        else:
            frames.append(line.split(" ")[0].split("csrc/")[-1])
            places[offset] = next((f for f in frames if not f.startswith("common/")), frames[0])
    return places


# ------------------------------------------------------------------------------------------------------------ the table

BEST = {"sectors": max, "noise": max, "bytes": min, "reads": min, "passes": min}
"""The figures of `Traffic.figures`, and which of two is the better one."""


def table() -> str:
    """All cases in markdown."""
    lines = ["| operation | layout | direction | launches | sectors | noise | bytes | reads | passes |"]
    lines += ["| --- | --- | --- | --: | --: | --: | --: | --: | --: |"]
    for name, case in CASES.items():
        for layout in case.layouts:
            counts = [case.count(layout, dtype) for dtype in DTYPES.values()]
            for direction in counts[0]:
                every = [count[direction].figures() for count in counts]
                cells = [name, layout, direction, str(max(len(count[direction].launches) for count in counts))]
                for figure, better in BEST.items():
                    worst = {max: min, min: max}[better](f[figure] for f in every) if figure in every[0] else None
                    cells.append("" if worst is None else f"{worst:.0%}" if better is max else f"{worst:.2f}")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
