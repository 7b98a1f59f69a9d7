"""Machine code of the CUDA and Triton kernels, held to limits without a GPU.

Every kernel of the compiled extension must keep the rules below. `LIMITS` states more for those that matter most.
`python -m bench.sass FILE [PATTERN]` prints the counters of a library or a cubin.
"""

import math
import re
from typing import NamedTuple

import pytest
import torch

import fastgan_kernels
from bench import sass
from tests.support import machine_code, traffic

MAX_BARRIERS = 8  # of a block
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}

# Kernels that break rules, and why: names, rules, reason.
EXCEPTIONS = [
    (r"^filter_tiles<\w+, [248], ", "stores", "upfirdn2d: the loop that reads is not the loop that writes"),
    (r"^any_filter<", "stores", "upfirdn2d: the loop over the filter's taps does not write"),
    (r"^to_rgb_backward<\w+, \d, \d, true>", "stores", "noise_bias_act_to_rgb: gradients of pixels are stored"),
    (r"^convert<", "loads", "image_batch: pixels are bytes, and those of a mirrored image are read one by one"),
    (r"^(for|back)ward_on_chip<", "loads stores", "instance_norm: one loop loads to shared memory, one stores"),
    (r"^backward<\w+, \d, \w+, false>", "barriers", "instance_norm: a block takes one of two ways, with 6 and 5"),
    (r"Element<\d, 1, ", "calls", "four curved activations, of which three are skipped; a division of rare operands"),
    (r"^(sum_of_squares|noise_gradient_n)", "stores", "sums alone are stored"),
    (r"^filter_(columns|planes)<", "stores barriers", "filtered_lrelu: rows pass through shared memory"),
    (r"^filter_columns<\w+, [48], 4, 2, 0,", "spills", "filtered_lrelu: one or two registers, for 16 warps to fit"),
    (r"^filter_columns<\w+, 1,", "spills", "filtered_lrelu: up to eight registers, for elements loaded one by one"),
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


def tiles(read: int, written: int, up_down: str, dtype: str = "bf16"):
    """Name of a kernel of csrc/upfirdn2d/tiles.h; its loop that moves the most bytes filters along one axis."""
    return f"filter_tiles<{dtype}, {read}, {written}, 4, {up_down}, AddingResult<{dtype}, {written}>>"


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
    Limit("  gradient of the noise from y",      "noise_gradient_nhwc<NoiseElement<1, 0, bf16, 8>>", 4, 44),
    Limit("  gradient of the noise from x",      "noise_gradient_nhwc<NoiseElement<2, 0, bf16, 8>>", 2, 34),
    Limit("  the same in NCHW",                  "noise_gradient_nchw<NoiseElement<2, 0, bf16, 8>>", 5, 90),
    Limit("upfirdn2d, blur",                     strips(),                               2,   40),
    Limit("  up 2",                              strips(up_down="2, 1"),                 3,   36),
    Limit("  down 2",                            strips(up_down="1, 2"),                 3,   36, 128),
    Limit("  up 2, with an addend",              strips(store="AddingStore", up_down="2, 1", clamp=""), 4, 35, 128),
    Limit("upfirdn2d in NCHW, blur",             tiles(8, 8, "1, 1"),                    4,   77),
    Limit("  up 2",                              tiles(4, 8, "2, 1"),                    4,  136),
    Limit("  down 2",                            tiles(8, 4, "1, 2"),                    4,   63),
    Limit("  RGB in fp32, up 2",                 tiles(2, 4, "2, 1", "fp32"),            4,   90),
    Limit("  down 2",                            tiles(4, 2, "1, 2", "fp32"),            4,   39),
    Limit("bias_act_blur forward",               strips("ActivatedLoad"),                3,   72, 128),
    Limit("  with a clamp",                      strips("ActivatedLoad", clamp=", true"),  3,   95, 128),
    Limit("  backward",                          strips(store="DerivativeStore"),        3,   45, 128),
    Limit("  with a clamp",                      strips(store="DerivativeStore", clamp=", true"), 3, 56, 128),
    Limit("filtered_noise_bias_act forward",     strips(store="EpilogueStore"),          3,   61, 128),
    Limit("  with a clamp",                      strips(store="EpilogueStore", clamp=", true"), 3, 70, 128),
    Limit("  backward",                          "backward_strips<bf16, 4, false, false>", 3, 85, 160),
    Limit("  with a clamp",                      "backward_strips<bf16, 4, false, true>", 3, 103, 160),
    Limit("  backward from y",                   "backward_strips<bf16, 4, true, false>", 3, 75, 160),
    Limit("filtered_lrelu, same size",           "filter_columns<bf16, 8, 2, 2, 0, false>", 1, 670, 512),
    Limit("  backward",                          "filter_columns<bf16, 8, 2, 2, 0, true>",  1, 600, 512),
    Limit("filtered_lrelu, up 2",                "filter_columns<bf16, 8, 4, 2, 0, false>", 1, 640, 512),
    Limit("  backward",                          "filter_columns<bf16, 8, 2, 4, 0, true>",  1, 545, 512),
    Limit("  double backward",                   "filter_columns<bf16, 8, 4, 2, 0, true>",  1, 615, 512),
    Limit("filtered_lrelu, radial filter",       "filter_columns<bf16, 8, 2, 2, 2, false>", 1, 875, 384),
    Limit("  backward",                          "filter_columns<bf16, 8, 2, 2, 1, true>",  1, 795, 384),
    Limit("  double backward",                   "filter_columns<bf16, 8, 2, 2, 2, true>",  1, 800, 384),
    Limit("filtered_lrelu, up 2, radial filter", "filter_columns<bf16, 8, 4, 2, 2, false>", 1, 835, 384),
    Limit("  backward",                          "filter_columns<bf16, 8, 2, 4, 1, true>",  1, 715, 384),
    Limit("  double backward",                   "filter_columns<bf16, 8, 4, 2, 2, true>",  1, 760, 384),
    Limit("noise_bias_act_to_rgb forward",       "to_rgb_forward<bf16, 8, 3>",           2,   23),
    Limit("  backward",                          "to_rgb_backward<bf16, 4, 3, false>",   2,  104),
    Limit("  double backward",                   "to_rgb_backward<bf16, 4, 3, true>",    2,  158),
    Limit("  gradient of the noise",             "noise_gradient_nhwc<NoiseElement<bf16, 4, 3>>", 2, 33),
    Limit("instance_norm forward, on chip",      "forward_on_chip<bf16, 8, true>",       2,  102),
    Limit("  in turns",                          "forward<bf16, 8, true, false>",        3,   57),
    Limit("  backward, on chip",                 "backward_on_chip<bf16, 8, true>",      2,   68),
    Limit("  in turns",                          "backward<bf16, 4, true, false>",       3,   73),
    Limit("batch_norm_act forward",              "forward<bf16, 8, true, true>",         3,   69),
    Limit("  backward",                          "backward<bf16, 4, true, true>",        3,   76),
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
    kernels = machine_code.kernels()
    broken = {f"{kernel.name} (sm_{kernel.arch})": faults(kernel) for kernel in kernels}
    broken = {name: found for name, found in broken.items() if found}
    assert not broken, "\n".join(f"{name}: {found}" for name, found in broken.items())
    assert len(kernels) > 400  # all of them have been read


@pytest.mark.slow
def test_occupancy_and_instructions_stay_within_limits():
    """All kernels in one test, so that one process reads the machine code."""
    found = {kernel.name: kernel for kernel in machine_code.kernels() if kernel.arch == 90}
    if not found:
        pytest.skip("the extension has no machine code for sm_90")
    beyond = [f"{limit.kernel} does not exist" for limit in LIMITS if limit.kernel not in found]
    for limit, kernel in ((limit, found[limit.kernel]) for limit in LIMITS if limit.kernel in found):
        if kernel.blocks(limit.threads) < limit.blocks or kernel.cost > limit.cost:
            used = f"{kernel.registers} registers, {kernel.shared} bytes of shared memory, cost {kernel.cost}"
            beyond.append(f"{used}: {limit}")
    assert not beyond, "\n".join(beyond)


# The counters can fail -----------------------------------------------------------------------------------------------

GOOD = """\
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   FADD R4, R4, R5 ;
        /*0030*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0040*/              @!P0 BRA 0x10 ;
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0060*/                   EXIT ;
"""


def seeded(replaced: str = "", by: str = "", registers: int = 40, local: int = 0) -> sass.Kernel:
    """A small kernel, with a part of its disassembly replaced."""
    assert replaced in GOOD
    resources = {"REG": registers, "SHARED": 0, "STACK": local, "LOCAL": 0}
    return sass.Kernel("map<0, bf16, 8>", 90, resources, sass.parse(GOOD.replace(replaced, by, 1)))


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
        (seeded("FADD R4, R4, R5", "CALL.REL.NOINC 0x80"), {"calls": "1 in the hot loop"}),
        (seeded("FADD R4, R4, R5", "BAR.SYNC.DEFER_BLOCKING 0x0"), {"barriers": "1001 (1,000 for one in a loop)"}),
        (seeded(BARRIER, BARRIER * 9), {"barriers": "9 (1,000 for one in a loop)"}),
    ],
    ids=lambda value: "" if isinstance(value, sass.Kernel) else next(iter(value)),
)
def test_a_bad_kernel_is_found(kernel, fault):
    assert faults(kernel) == fault


DIVERGING = """\
        /*0000*/                   BRA.DIV UR4, 0x60 ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0030*/              @!P0 BRA 0x10 ;
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0050*/                   EXIT ;
        /*0060*/                   WARPSYNC.COLLECTIVE R6, 0x70 ;
        /*0070*/                   BRA 0x10 ;
"""


def test_code_for_diverged_warps_is_no_loop():
    """It lies behind the kernel and returns into it, past a barrier."""
    kernel = sass.Kernel(
        "map<0, bf16, 8>", 90, dict.fromkeys(("REG", "SHARED", "STACK", "LOCAL"), 0), sass.parse(DIVERGING)
    )
    assert (len(kernel.loops), kernel.barriers) == (1, 1)


def test_registers_and_instructions_count():
    assert seeded(registers=80).blocks() == 3
    assert seeded(registers=96).blocks(threads=128) == 5
    assert seeded("FADD R4, R4, R5 ;", "FADD R4, R4, R5 ;\n        /*0028*/    FADD R4, R4, R5 ;").cost == 2.5


# Triton ---------------------------------------------------------------------------------------------------------------

# Operations whose activations are not read 16 bytes at a time, and why.
NARROW = {"minibatch_stddev": "rows of y have an odd number of channels", "image_batch": "pixels are bytes"}
UNCOMPILED = {"filtered_lrelu": "a compilation takes 16 CPU seconds"}
# Forms whose kernels test_triton_*.py compile for sm_80 and sm_100: without spills and to vector accesses.
ELSEWHERE = {"bias", "noise", "synthesis", "learned_noise", "learned_synthesis", "style_epilogue", "batch_norm_act"}
ELSEWHERE |= {"pixel_norm", "minibatch_stddev", "lerp_samples", "squared_norm", "image_batch"}
SPILLS = {("segment_sums", 90): 8}  # bytes: one pointer is loaded again in every step, to keep 56 registers

# For sm_90, bf16 and NHWC, by form, direction and kernel, at several shapes of a training: blocks on a multiprocessor,
# at least; instructions of the hot loop for 16 bytes, and barriers, at most. Triton adds up one sum after the other,
# each with barriers of its own; an image's sums over channels are within the loop (1,000 for a barrier there).
TRITON_LIMITS: dict[str, tuple[int, float, int]] = {
    "bias forward _elements": (16, 51, 0),
    "bias backward _elements": (12, 36, 11),
    "bias backward add_pieces": (9, 0, 3),
    "bias double backward _elements": (16, 36, 0),
    "noise forward _elements": (12, 57, 0),
    "noise backward _elements": (10, 41, 13),
    "noise backward add_pieces": (10, 0, 5),
    "noise double backward _elements": (16, 37, 0),
    "synthesis forward _elements": (9, 61, 0),
    "synthesis backward _elements": (4, 69, 37),
    "synthesis backward add_pieces": (6, 0, 12),
    "synthesis double backward _elements": (5, 66, 19),
    "synthesis double backward add_pieces": (6, 0, 12),
    "learned_noise forward _elements": (12, 57, 0),
    "learned_noise backward _elements": (10, 41, 7),
    "learned_noise backward add_pieces": (10, 0, 5),
    "learned_noise backward _noise_gradient": (12, 63, 1),
    "learned_synthesis forward _elements": (9, 61, 0),
    "learned_synthesis backward _elements": (5, 68, 19),
    "learned_synthesis backward add_pieces": (6, 0, 12),
    "learned_synthesis backward _noise_gradient": (10, 23, 1),
    "upsample forward _strips": (8, 34, 0),
    "upsample backward _strips": (5, 33, 0),
    "upsample forward _filter": (16, 0, 0),
    "upsample backward _filter": (12, 0, 0),
    "downsample forward _strips": (5, 33, 0),
    "downsample backward _strips": (8, 34, 0),
    "blur forward _strips": (4, 38, 0),
    "blur backward _strips": (4, 38, 0),
    "adain forward segment_moments": (8, 185, 33),
    "adain forward _merge_moments": (16, 0, 0),
    "adain forward normalise": (10, 46, 0),
    "adain backward segment_sums": (10, 71, 17),
    "adain backward _merge_sums": (16, 0, 0),
    "adain backward input_gradients": (12, 53, 0),
    "adain forward _whole_forward": (4, 119, 15),
    "adain backward _whole_backward": (2, 79, 15),
    "batch_norm_act forward segment_moments": (8, 185, 33),
    "batch_norm_act forward _merge_moments": (2, 0, 11),
    "batch_norm_act forward normalise": (10, 44, 0),
    "batch_norm_act backward segment_sums": (9, 77, 17),
    "batch_norm_act backward _merge_sums": (9, 0, 11),
    "batch_norm_act backward input_gradients": (12, 54, 0),
    "style_epilogue forward segment_moments": (6, 213, 33),
    "style_epilogue forward _merge_moments": (16, 0, 0),
    "style_epilogue forward normalise": (8, 58, 0),
    "style_epilogue backward segment_sums": (9, 87, 17),
    "style_epilogue backward _merge_sums": (16, 0, 0),
    "style_epilogue backward input_gradients": (7, 71, 11),
    "style_epilogue backward add_pieces": (8, 0, 7),
    "style_epilogue forward _whole_forward": (4, 87, 17),
    "style_epilogue backward _whole_backward": (2, 83, 29),
    "lerp_samples forward _lerp": (12, 24, 0),
    "lerp_samples backward _split": (10, 21, 0),
    "squared_norm forward _sum_of_squares": (16, 52, 1),
    "squared_norm forward _add_pieces": (16, 0, 1),
    "squared_norm backward _scale": (16, 25, 0),
    "image_batch forward _image_batch": (4, 245, 3),
    "minibatch_stddev forward _walk": (10, 0, 1),
    "minibatch_stddev forward _add_pieces": (16, 0, 1),
    "minibatch_stddev forward _append": (10, 0, 0),
    "minibatch_stddev backward _gradient_of_maps": (12, 0, 1),
    "minibatch_stddev backward _walk": (9, 0, 0),
    "minibatch_stddev double backward _gradient_of_maps": (12, 0, 1),
    "minibatch_stddev double backward _walk": (7, 0, 1),
    "minibatch_stddev double backward _add_pieces": (16, 0, 1),
    "minibatch_stddev double backward _append": (10, 0, 0),
    "pixel_norm forward _normalize": (16, 19, 1),
    "pixel_norm backward _normalize": (12, 25, 3),
    "pixel_norm double backward _normalize": (8, 25, 7),
    "residual forward _elements": (12, 42, 0),
    "residual backward _elements": (12, 41, 11),
    "residual backward add_pieces": (9, 0, 3),
    "residual double backward _elements": (12, 37, 0),
    "filtered forward _filtered": (3, 53, 0),
    "filtered backward _filtered": (4, 64, 19),
    "filtered backward add_pieces": (6, 0, 12),
    "filtered backward _strips": (4, 38, 0),
    "act_blur forward _blur": (3, 61, 0),
    "act_blur backward _blur": (3, 43, 5),
    "act_blur backward add_pieces": (9, 0, 3),
    "fork forward _strips": (5, 33, 0),
    "fork backward _strips": (6, 31, 0),
    "to_rgb forward _forward": (9, 79, 10006),
    "to_rgb backward _backward": (4, 118, 2043),
    "to_rgb backward add_pieces": (6, 0, 12),
    "to_rgb backward _add_samples": (9, 0, 3),
    "learned_to_rgb forward _forward": (10, 18, 5),
    "learned_to_rgb backward _backward": (4, 98, 37),
    "learned_to_rgb backward add_pieces": (6, 0, 12),
    "learned_to_rgb backward _add_samples": (9, 0, 3),
    "learned_to_rgb backward _noise_gradient": (10, 18, 1),
    "last_to_rgb forward _forward": (8, 100, 8006),
    "last_to_rgb backward _backward": (5, 160, 2035),
    "last_to_rgb backward add_pieces": (9, 0, 8),
    "last_to_rgb backward _add_samples": (9, 0, 3),
}


def triton_kernels(form: traffic.Form) -> dict[str, list[tuple[sass.Kernel, int, bool]]]:
    """By "direction kernel": each compilation, the blocks on a multiprocessor, and whether it reads activations."""
    from tests.support.compiled_triton import compiled_for, launches

    shapes = form.shapes.get("cuda") or [(32, 64, 256, 256)]
    shapes = {shape: (90,) for shape in (shapes[-1], *[(32, 512, 16, 16)] * (shapes[0][1] == 512))} | {
        shapes[0]: (90,) if form.name in ELSEWHERE else (80, 90, 100)
    }
    compilations = []
    for shape, cards in shapes.items():
        for direction, launched in launches(form, shape, torch.bfloat16).items():
            for launch in launched:
                of_activations = [t for t in launch.tensors if t.dtype == torch.bfloat16 and t.shape[1:2] != (3,)]
                large = any(t.numel() >= math.prod(shape) // 4 for t in of_activations)
                for card in cards:
                    compiled = compiled_for(card, launch.kernel, launch.arguments, launch.named)
                    compilations.append((direction, compiled, large))
    kernels = sass.read_cubins(compiled.asm["cubin"] for _, compiled, _ in compilations)
    found: dict[str, list] = {}
    for (direction, compiled, large), [kernel] in zip(compilations, kernels, strict=True):
        blocks = kernel.blocks(32 * compiled.metadata.num_warps, compiled.metadata.shared)
        found.setdefault(f"{direction} {kernel.name}", []).append((kernel, blocks, large))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", [name for name, form in traffic.FORMS.items() if form.operation not in UNCOMPILED])
def test_triton_kernels_keep_the_rules(form):
    triton = pytest.importorskip("triton")
    if reason := sass.why_unavailable():
        pytest.skip(reason)
    if triton.knobs.runtime.interpret:
        pytest.skip("kernels decorated for the interpreter cannot be compiled")
    operation = traffic.FORMS[form].operation
    if fastgan_kernels.BACKENDS["triton"].why_not(operation, torch.device("cpu")) == "has no kernel for it":
        pytest.skip("has no Triton kernel")
    worst = {}
    for name, compilations in triton_kernels(traffic.FORMS[form]).items():
        for kernel, _, reads_activations in compilations:
            assert kernel.local <= SPILLS.get((kernel.name, kernel.arch), 0), f"{name}, sm_{kernel.arch}"
            if reads_activations and operation not in NARROW:
                stores, loads = dict(kernel.widths("STG")), dict(kernel.widths("LDG"))
                what = f"{name}, sm_{kernel.arch}: {loads}, {stores}, {kernel.calls} calls"
                assert kernel.calls == 0, what
                assert not {1, 2} & {*loads, *stores}, what
                assert max(loads) >= 8 and max(stores, default=8) >= 8, what
        on_sm_90 = [(kernel, blocks) for kernel, blocks, _ in compilations if kernel.arch == 90]
        worst[f"{form} {name}"] = (
            min(blocks for _, blocks in on_sm_90),
            math.ceil(max(kernel.cost for kernel, _ in on_sm_90)),
            max(kernel.barriers for kernel, _ in on_sm_90),
        )
    limits = {name: limit for name, limit in TRITON_LIMITS.items() if name.split(" ")[0] == form}
    assert worst.keys() == limits.keys()
    for name, (blocks, cost, barriers) in worst.items():
        least, *most = limits[name]
        assert blocks >= least and cost <= most[0] and barriers <= most[1], (name, (blocks, cost, barriers))
