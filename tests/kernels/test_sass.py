"""Machine code of the CUDA and Triton kernels, held to limits without a GPU.

Every kernel of the compiled extension must keep the rules below. `LIMITS` states more for those that matter most.
`python -m bench.sass FILE [PATTERN]` prints the counters of a library or a cubin.
"""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from bench import sass
from fastgan_kernels import extension

MAX_BARRIERS = 8  # of a block
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}

# Kernels that break rules, and why: names, rules, reason.
EXCEPTIONS = [
    (r"^nchw<\w+, \d, \d, \d>", "barriers stores loads calls", "upfirdn2d: single elements, by tiles in shared memory"),
    (r"^nhwc_any_filter<", "calls", "upfirdn2d: indices of any filter take a division"),
    (r"^convert<", "loads", "image_batch: pixels are bytes, and those of a mirrored image are read one by one"),
    (r"^forward<\w+, \d, \w+, false>", "calls", "instance_norm: one division in 16 steps"),
    (r"Element<\d, 1, ", "calls", "four curved activations, of which three are skipped; a division of rare operands"),
    (r"^(sum_of_squares|forward<\w+, \d, \w+, false|backward<\w+, \d, \w+, false)", "stores", "sums alone are stored"),
]


class Limit(NamedTuple):
    """Limits of a kernel for sm_90, bf16 and NHWC.

    blocks: that fit on a multiprocessor by registers and static shared memory, at least.
    cost: instructions of the hot loop for each 16 bytes that it moves, at most.
    """

    what: str
    kernel: str  # as `sass.read_kernels` names it
    blocks: int
    cost: float
    threads: int = sass.BLOCK


def strips(
    load: str = "PlainLoad", store: str = "PlainStore", v: int = 8, up_down: str = "1, 1", clamp: str = ", false"
):
    """Name of a kernel of csrc/upfirdn2d/gpu.h."""
    parts = [f"{name}<bf16, {v}{'' if name.startswith('Plain') else clamp}>" for name in (load, store)]
    return f"filter_strips<bf16, {v}, {up_down}, {', '.join(parts)}>"


# fmt: off
LIMITS = [
    #     what                                   kernel                             blocks  cost
    Limit("noise_bias_act forward",              "nhwc<Element<0, 0, bf16, 8>, 8>",      4,   64),
    Limit("  backward from y",                   "nhwc<Element<1, 0, bf16, 8>, 8>",      5,   46),
    Limit("  backward from x",                   "nhwc<Element<2, 0, bf16, 4>, 4>",      3,   93),
    Limit("  double backward from y",            "nhwc<Element<3, 0, bf16, 8>, 8>",      6,   46),
    Limit("  double backward from x",            "nhwc<Element<4, 0, bf16, 4>, 4>",      2,   92),
    Limit("  forward with a residual",           "nhwc<Element<5, 0, bf16, 8>, 8>",      4,   48),
    Limit("  backward from x and a bias",        "nhwc<Element<6, 0, bf16, 8>, 8>",      5,   46),
    Limit("upfirdn2d, blur",                     strips(),                               2,   40),
    Limit("  up 2",                              strips(up_down="2, 1"),                 3,   36),
    Limit("  down 2",                            strips(up_down="1, 2"),                 3,   36, 128),
    Limit("  up 2, with an addend",              strips(store="AddingStore", up_down="2, 1", clamp=""), 4, 35, 128),
    Limit("bias_act_blur forward",               strips("ActivatedLoad"),                3,   72, 128),
    Limit("  with a clamp",                      strips("ActivatedLoad", clamp=", true"),  3,   95, 128),
    Limit("  backward",                          strips(store="DerivativeStore"),        3,   45, 128),
    Limit("  with a clamp",                      strips(store="DerivativeStore", clamp=", true"), 3, 56, 128),
    Limit("filtered_noise_bias_act forward",     strips(store="EpilogueStore"),          3,   61, 128),
    Limit("  with a clamp",                      strips(store="EpilogueStore", clamp=", true"), 3, 70, 128),
    Limit("  backward",                          strips(store="GradientStore", v=4),     2,   85),
    Limit("  with a clamp",                      strips(store="GradientStore", v=4, clamp=", true"), 2, 100),
    Limit("instance_norm forward, on chip",      "forward<bf16, 8, true, true>",         2,   61),
    Limit("  moments of pieces",                 "forward<bf16, 8, true, false>",        2,  155),
    Limit("  the rest",                          "normalise<bf16, 8, true, false>",      3,   52),
    Limit("  backward, on chip",                 "backward<bf16, 8, true, true, false>", 2,   71),
    Limit("  sums of pieces",                    "backward<bf16, 8, true, false, false>",3,   57),
    Limit("  the rest",                          "gradients<bf16, 8, true, false>",      2,   55),
    Limit("batch_norm_act forward, the rest",    "normalise<bf16, 8, true, true>",       3,   65),
    Limit("  backward, sums of pieces",          "backward<bf16, 8, true, false, true>", 2,   74),
    Limit("  the rest",                          "gradients<bf16, 8, true, true>",       2,   58),
    Limit("pixel_norm forward",                  "nhwc<0, bf16, 8>",                     8,   22),
    Limit("  backward",                          "nhwc<1, bf16, 8>",                     8,   23),
    Limit("  double backward",                   "nhwc<2, bf16, 4>",                     8,   30),
    Limit("squared_norm forward",                "sum_of_squares<bf16, 8>",              8,  137),
    Limit("  backward",                          "map<0, bf16, 8>",                      8,   40),
    Limit("lerp_samples forward",                "map<1, bf16, 8>",                      8,   34),
    Limit("  backward",                          "map<2, bf16, 8>",                      8,   33),
    Limit("second stage of sums",                "add_pieces<fp32>",                     1,    0, 1024),
]
# fmt: on


@cache
def kernels() -> list[sass.Kernel]:
    if reason := extension.why_no_part("cuda") or sass.why_unavailable():
        pytest.skip(reason)
    return sass.read_kernels(Path(extension.module().__file__))


def faults(kernel: sass.Kernel) -> dict[str, str]:
    """The rules that a kernel breaks, without those that `EXCEPTIONS` allows it to."""
    found = {}
    if kernel.local or kernel.local_accesses:
        found["spills"] = f"{kernel.local} bytes of local memory, {kernel.local_accesses} accesses"
    if kernel.barriers > MAX_BARRIERS:
        found["barriers"] = f"{kernel.barriers} (1,000 for one in a loop)"
    if (size := _vector_bytes(kernel.name)) >= 8:  # else for small or unaligned tensors
        stores, loads = dict(kernel.widths("STG")), dict(kernel.widths("LDG"))
        if not stores or min(stores) < size:
            found["stores"] = f"of {stores} bytes instead of {size}"
        if max(loads, default=0) < size or 2 in loads:
            found["loads"] = f"of {loads} bytes instead of {size}"
        if kernel.calls:
            found["calls"] = f"{kernel.calls} in the hot loop"
    excepted = {rule for name, rules, _ in EXCEPTIONS if re.search(name, kernel.name) for rule in rules.split()}
    return {rule: fault for rule, fault in found.items() if rule not in excepted}


def _vector_bytes(name: str) -> int:
    """Bytes of a thread's access to activations, by the template arguments: "..., bf16, 8, ...>". 0 for none."""
    match = re.search(r"\b(fp32|bf16|fp16), (\d)\b", name)
    return ELEMENT_BYTES[match[1]] * int(match[2]) if match else 0


@pytest.mark.slow
def test_every_kernel_keeps_the_rules():
    broken = {f"{kernel.name} (sm_{kernel.arch})": faults(kernel) for kernel in kernels()}
    broken = {name: found for name, found in broken.items() if found}
    assert not broken, "\n".join(f"{name}: {found}" for name, found in broken.items())
    assert len(kernels()) > 400  # all of them have been read


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.kernel)
def test_occupancy_and_instructions_stay_within_limits(limit):
    found = [kernel for kernel in kernels() if kernel.arch == 90 and kernel.name == limit.kernel]
    if not found and not any(kernel.arch == 90 for kernel in kernels()):
        pytest.skip("the extension has no machine code for sm_90")
    [kernel] = found
    assert kernel.blocks(limit.threads) >= limit.blocks, (
        f"{kernel.registers} registers, {kernel.shared} bytes of shared memory"
    )
    assert kernel.cost <= limit.cost


# The counters can fail -----------------------------------------------------------------------------------------------

GOOD = """\
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   FADD R4, R4, R5 ;
        /*0030*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0060*/                   EXIT ;
"""


def seeded(replaced: str = "", by: str = "", registers: int = 40, local: int = 0) -> sass.Kernel:
    """A small kernel, with a part of its disassembly replaced."""
    assert replaced in GOOD
    resources = {"REG": registers, "SHARED": 0, "STACK": local, "LOCAL": 0}
    return sass.Kernel("map<0, bf16, 8>", 90, resources, GOOD.replace(replaced, by, 1).splitlines())


def test_a_good_kernel_has_no_faults():
    good = seeded()
    assert faults(good) == {}
    assert (good.barriers, good.calls, good.cost, good.blocks()) == (1, 0, 2.0, 6)


BARRIER = "        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;\n"


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        (seeded("STG.E.128", "STG.E"), {"stores": "of {4: 1} bytes instead of 16"}),
        (seeded("STG.E.128", "STG.E.U16"), {"stores": "of {2: 1} bytes instead of 16"}),
        (seeded("STG.E.128", "STG.E.64"), {"stores": "of {8: 1} bytes instead of 16"}),
        (seeded("LDG.E.128", "LDG.E.U16"), {"loads": "of {2: 1} bytes instead of 16"}),
        (seeded("FADD R4, R4, R5", "STL.64 [R1], R4"), {"spills": "0 bytes of local memory, 1 accesses"}),
        (seeded(local=16), {"spills": "16 bytes of local memory, 0 accesses"}),
        (seeded("FADD R4, R4, R5", "CALL.REL.NOINC `($__internal_0)"), {"calls": "1 in the hot loop"}),
        (seeded("FADD R4, R4, R5", "BAR.SYNC.DEFER_BLOCKING 0x0"), {"barriers": "1001 (1,000 for one in a loop)"}),
        (seeded(BARRIER, BARRIER * 9), {"barriers": "9 (1,000 for one in a loop)"}),
    ],
    ids=lambda value: "" if isinstance(value, sass.Kernel) else next(iter(value)),
)
def test_a_bad_kernel_is_found(kernel, fault):
    assert faults(kernel) == fault


def test_registers_and_instructions_count():
    assert seeded(registers=80).blocks() == 3
    assert seeded(registers=96).blocks(threads=128) == 5
    assert seeded("FADD R4, R4, R5 ;", "FADD R4, R4, R5 ;\n        /*0028*/    FADD R4, R4, R5 ;").cost == 2.5


# Triton ---------------------------------------------------------------------------------------------------------------

# Blocks of 128 threads on a multiprocessor at least; instructions of the hot loop for 16 bytes, and barriers, at most.
# Triton adds up one sum after the other, each with barriers of its own.
TRITON_LIMITS = {"forward": (8, 64, 0), "backward": (5, 71, 31), "double_backward": (4, 80, 19)}


@pytest.mark.parametrize("launcher", TRITON_LIMITS)
def test_triton_kernels_keep_the_rules(launcher, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    if reason := sass.why_unavailable():
        pytest.skip(reason)
    from tests.kernels import test_triton_noise_bias_act as cases
    from tests.support.compiled_triton import compiled_for

    if cases.INTERPRETED:
        pytest.skip("kernels decorated for the interpreter cannot be compiled")
    call = cases.Call(launcher, "nhwc", torch.bfloat16)
    for kernel, arguments, named in cases.launches_of(call, monkeypatch):
        compiled = compiled_for(90, kernel, arguments, named)
        path = tmp_path / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        [found] = sass.read_kernels(path)
        assert found.local == found.local_accesses == 0
        if kernel.__name__ == "_elements":
            size = 8 if launcher == "double_backward" else 16
            assert set(found.widths("STG")) == {size} and max(found.widths("LDG")) == size
            blocks, cost, barriers = TRITON_LIMITS[launcher]
            assert found.blocks(128, compiled.metadata.shared) >= blocks
            assert found.cost <= cost and found.calls == 0 and found.barriers <= barriers
