"""Tensors of any strides for every kernel: permuted, expanded, with gaps, overlapping, at odd addresses.

Each argument, the gradient of the result and the cotangents of the gradients lie in memory of exactly the size that
their strides reach. Results are compared with those of plain PyTorch on contiguous copies. Every launch is checked for
tensors in the layouts that kernels assume. The same test runs under AddressSanitizer in a separate process.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import fastgan_kernels
from fastgan import ops
from fastgan.ops.convolution import conv2d, conv_transpose2d
from fastgan.ops.layout import has_uniform_taps, view_of
from fastgan.ops.upfirdn2d import forked_upfirdn2d
from tests.support import backends

F32, BF16 = torch.float32, torch.bfloat16
ROUNDS = 2  # each with other strides


class Call(NamedTuple):
    """A function and the shapes of its named tensors."""

    function: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]
    fixed: tuple[str, ...] = ()  # tensors without a gradient
    dtypes: tuple[torch.dtype, ...] = (F32, BF16)  # of activations; the small tensors are fp32


def small(n: int, c: int, *spatial: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs of noise_bias_act other than x."""
    return {"noise": (n, 1, *spatial), "strength": (c,), "bias": (c,), "scale": (n, c), "post": (n, c)}


def _feature_maps_and_image(x: Tensor, **others: Tensor) -> Tensor:
    y, rgb = ops.noise_bias_act_to_rgb(x, **others)
    return torch.cat([y, rgb.to(x.dtype)], 1)


def _image(x: Tensor, **others: Tensor) -> Tensor:
    return ops.noise_bias_act_to_rgb(x, **others)[1]


def _calls():
    noise_bias_act = lambda act: partial(ops.noise_bias_act, act=act, gain=1.4)
    for x in ((3, 5, 4, 6), (2, 16, 5, 1), (4, 1, 3, 3), (3, 7), (2, 3, 9), (2, 3, 2, 3, 4), (1, 8, 1, 1)):
        yield f"lrelu {x}", Call(noise_bias_act("lrelu"), {"x": x, **small(*x)}, ("noise",))
        yield f"lrelu of a bias {x}", Call(noise_bias_act("lrelu"), {"x": x, "bias": x[1:2]})
        yield f"linear {x}", Call(noise_bias_act("linear"), {"x": x, "bias": x[1:2]})
        yield f"silu {x}", Call(noise_bias_act("silu"), {"x": x, **small(*x)}, ("noise",))
        yield f"pixel_norm {x}", Call(partial(ops.pixel_norm, eps=0.1), {"x": x})
        yield f"squared_norm {x}", Call(ops.squared_norm, {"x": x})
        yield f"lerp_samples {x}", Call(ops.lerp_samples, {"a": x, "b": x, "t": x[:1]}, ("t",))
    for x in ((3, 5, 4, 6), (2, 16, 5, 1), (4, 1, 3, 3), (1, 8, 1, 1), (3, 7)):
        shapes = {"x": x, "to_rgb": (x[0], 3, x[1]), **small(*x), "strength": ()}
        yield f"noise_bias_act_to_rgb {x}", Call(_feature_maps_and_image, shapes, ("noise",))
        last = {name: shape for name, shape in shapes.items() if name != "post"}
        yield f"noise_bias_act_to_rgb {x}, the last", Call(_image, last, ("noise",))
    for x in ((3, 5, 4, 6), (2, 16, 5, 1), (4, 1, 3, 3), (2, 3, 9), (2, 3, 2, 3, 4)):
        style = {"style_scale": x[:2], "style_bias": x[:2]}
        epilogue = {"x": x, "noise": (1, 1, *x[2:]), "strength": x[1:2], "bias": x[1:2], **style}
        yield f"style_epilogue {x}", Call(partial(ops.style_epilogue, eps=0.1), epilogue, ("noise",))
        yield f"adain {x}", Call(partial(ops.adain, eps=0.1), {"x": x, "scale": x[1:2], "bias": x[:2]})
        of_batch = {"x": x, "weight": x[1:2], "bias": x[1:2]}
        yield f"batch_norm_act {x}", Call(partial(ops.batch_norm_act, eps=0.1), of_batch)
    halves = partial(ops.batch_norm_act, eps=0.1, batches=2)
    yield "batch_norm_act of two", Call(halves, {"x": (4, 6, 3, 5), "weight": (6,), "bias": (6,)})
    for x in ((4, 6, 4, 5), (4, 2, 3, 1), (4, 1, 2, 3), (4, 6), (4, 4, 2, 3, 2)):
        yield f"minibatch_stddev {x}", Call(partial(ops.minibatch_stddev, group_size=2), {"x": x})
    for x in ((2, 3, 6, 5), (2, 16, 7, 1), (3, 1, 4, 4), (2, 5, 1, 6)):
        for taps in ((4,), (3, 2)):
            filter = partial(ops.upfirdn2d, up=2, down=(1, 2), padding=(2, 1, 2, 1))
            yield f"upfirdn2d {x} {taps}", Call(filter, {"x": x, "taps": taps}, ("taps",))
    filtered = partial(ops.filtered_noise_bias_act, padding=(2, 1, 2, 1), fir_gain=4.0)
    for x in ((2, 8, 4, 5), (2, 3, 4, 1)):
        shapes = {"x": x, "taps": (4,), **small(*x)}
        yield f"filtered_noise_bias_act {x}", Call(filtered, shapes, ("taps", "noise"))
        yield (
            f"filtered_noise_bias_act of a bias {x}",
            Call(filtered, {"x": x, "taps": (4,), "bias": x[1:2]}, ("taps",)),
        )
    blurred = partial(ops.bias_act_blur, padding=(2, 2, 2, 2))
    activated = partial(ops.filtered_lrelu, up=2, down=2, padding=4)
    for x in ((2, 18, 4, 5), (2, 3, 4, 1)):
        shapes = {"x": x, "up_taps": (4,), "down_taps": (3, 3), "bias": x[1:2]}
        # In bf16 plain PyTorch rounds between the filters, and some signs differ.
        yield f"filtered_lrelu {x}", Call(activated, shapes, ("up_taps", "down_taps"), (F32,))
    for x in ((2, 32, 4, 5), (2, 3, 4, 1)):
        yield f"bias_act_blur {x}", Call(blurred, {"x": x, "taps": (4,), "bias": x[1:2]}, ("taps",))
        residual = lambda x, bias, residual: ops.noise_bias_act(x, bias=bias, residual=residual.to(x.dtype))
        yield f"residual {x}", Call(residual, {"x": x, "bias": x[1:2], "residual": x})
    joined = lambda x, y: x + torch.nn.functional.interpolate(y, scale_factor=2)
    fork = lambda x, taps: joined(*forked_upfirdn2d(x, taps, down=2, padding=(1, 1, 1, 1)))
    yield "fork", Call(fork, {"x": (2, 5, 4, 6), "taps": (4,)}, ("taps",))
    images = lambda bytes, order: ops.image_batch(bytes.mul(50).to(torch.uint8), order.argsort(), order > 0)
    yield "image_batch", Call(images, {"bytes": (4, 5, 6, 3), "order": (4,)}, ("bytes", "order"), (F32,))

    # Outputs, inputs, kernel, options: few_channels, weight_gradient, and the library's.
    for outputs, inputs, kernel, options in (
        (64, 3, (3, 3), {"padding": 1}),
        (16, 3, (3, 3), {"padding": 1}),
        (16, 1, (5, 3), {"padding": (2, 1), "stride": 2}),
        (3, 16, (3, 3), {"padding": 1}),
        (1, 18, (2, 3), {}),
        (2, 16, (1, 1), {}),
        (16, 64, (3, 3), {"padding": 1}),
        (16, 16, (4, 4), {"padding": 1, "stride": 2}),
    ):
        shapes = {"x": (4, inputs, 16, 18), "weight": (outputs, inputs, *kernel)}
        yield f"conv2d {outputs}x{inputs} {kernel}", Call(partial(conv2d, **options), shapes)
    for outputs, inputs, kernel in ((1, 32, (4, 4)), (3, 16, (2, 3)), (16, 64, (4, 4))):
        shapes = {"x": (4, inputs, 8, 9), "weight": (inputs, outputs, *kernel)}
        yield f"conv_transpose2d {outputs}x{inputs}", Call(partial(conv_transpose2d, stride=2, padding=1), shapes)
    layer = {"x": (2, 6, 5, 4), "weight": (4, 6, 3, 3), "bias": (4,)}
    yield "upsample_conv2d", Call(ops.upsample_conv2d, layer)
    yield "conv_downsample2d", Call(ops.conv_downsample2d, layer)
    for name, options in (("", {}), (" up", {"up": 2}), (" down", {"down": 2})):
        function = partial(ops.modulated_conv2d, act="silu", **options)
        yield f"modulated_conv2d{name}", Call(function, {**layer, "style": (2, 6)})


CALLS = dict(_calls())


def strange(shape: tuple[int, ...], dtype: torch.dtype, draw: random.Random) -> Tensor:
    """Random numbers with unusual strides, in memory of exactly the size that they reach."""
    kind = draw.choice(["contiguous", "channels last", "permuted", "expanded", "gaps", "offset", "overlapping"])
    order = list(range(len(shape)))[::-1]  # innermost first
    if kind == "channels last" and len(shape) > 2:
        order = [1, *order[:-2], 0]
    elif kind not in ("contiguous", "channels last", "offset"):
        draw.shuffle(order)
    strides, step = [0] * len(shape), 1
    for d in order:
        strides[d] = draw.randint(0, 9) if shape[d] == 1 else step
        if kind == "overlapping":
            strides[d] = draw.randint(0, 3)
        if kind == "expanded" and draw.random() < 0.4:
            strides[d] = 0
        elif shape[d] > 1:
            step *= shape[d]
        if kind == "gaps":
            step += draw.randint(0, 3)
    offset = draw.randint(1, 7) if kind in ("offset", "gaps") else 0
    reached = offset + 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    numbers = torch.randn(reached, generator=torch.Generator().manual_seed(draw.randrange(1 << 30)))
    return numbers.to(dtype).as_strided(shape, strides, offset)


def tensors_of(call: Call, dtype: torch.dtype, draw: random.Random) -> dict[str, Tensor]:
    activations = ("x", "a", "b", *(["weight"] if len(call.shapes.get("weight", ())) == 4 else []))
    return {n: strange(shape, dtype if n in activations else F32, draw) for n, shape in call.shapes.items()}


def derivatives(call: Call, tensors: dict[str, Tensor], other: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    """The result, its gradients for a gradient `other(y)`, and second derivatives for cotangents from `other`."""
    tensors = {name: t.detach().requires_grad_(name not in call.fixed) for name, t in tensors.items()}
    leaves = [t for t in tensors.values() if t.requires_grad]
    y = call.function(**tensors)
    if not leaves:
        return [y]
    dy = other(y).requires_grad_()
    first = torch.autograd.grad(y, leaves, dy, create_graph=True)
    graphs = [g for g in first if g.requires_grad]
    if not graphs:
        return [y, *first]
    second = torch.autograd.grad(graphs, [dy, *leaves], [other(g) for g in graphs], allow_unused=True)
    return [y, *first, *second]


@pytest.fixture
def every_launch_is_checked(monkeypatch):
    """Asserts that activations are dense, in one layout for all of a shape, and other tensors contiguous."""

    def check(name, arguments):
        layouts = {}
        for t in arguments:
            if name.startswith("few_channels") and t.dim() == 4:
                assert has_uniform_taps(t), f"{name}: {t.shape}, {t.stride()}"
                continue
            view = view_of(t) if t.dim() > 1 else t.is_contiguous() or None
            assert view is not None, f"{name}: {t.shape} with strides {t.stride()}"
            assert layouts.setdefault(t.shape, view) == view, f"{name}: {t.shape} in two layouts"

    class Watched:
        def __init__(self, launchers, name):
            self._launchers, self._name = launchers, name

        def __getattr__(self, attribute):
            found, name = getattr(self._launchers, attribute), f"{self._name}.{attribute}"
            if attribute == "of":
                return lambda operation: Watched(found(operation), operation)
            return lambda call: (check(name, tensors_in(call)), found(call))[1]

    for key, backend in fastgan_kernels.BACKENDS.items():
        launchers = lambda operation, of=backend.launchers: Watched(of(operation), operation)
        monkeypatch.setitem(fastgan_kernels.BACKENDS, key, replace(backend, launchers=launchers))


def tensors_in(call: tuple) -> list[Tensor]:
    """The tensors of a call and of the calls nested in it."""
    found = [tensors_in(field) if isinstance(field, tuple) else [field] for field in call]
    return [t for each in found for t in each if isinstance(t, Tensor)]


def assert_strides_make_no_difference(call: Call, given: dict[str, Tensor], draw: random.Random) -> None:
    others = []

    def strange_like(t):
        others.append(strange(t.shape, t.dtype, draw).to(t.device))
        return others[-1].detach()

    got = derivatives(call, given, strange_like)
    copies = iter([t.contiguous() for t in others])
    with ops.use_backend("torch"):
        contiguous = {key: t.contiguous() for key, t in given.items()}
        plain = derivatives(call, contiguous, lambda t: next(copies).detach())
    exact = all(t.dtype == F32 for t in given.values())  # else fp32 sums are of numbers rounded to 16 bits
    for i, (a, b) in enumerate(zip(got, plain, strict=True)):
        assert (a is None) == (b is None), f"tensor {i}"
        if a is None:
            continue
        error, largest = (a.double() - b.double()).abs().max(), b.double().abs().max()
        allowed = (1e-3 if exact else 0.06) * largest + 1e-5
        layouts = {key: (list(t.shape), t.stride(), t.storage_offset()) for key, t in given.items()}
        assert error <= allowed, f"tensor {i} in {a.dtype}: error {error:.3g} of {largest:.3g}, {layouts}"


@pytest.mark.parametrize("name", CALLS)
def test_strides_do_not_change_results(name, backend, every_launch_is_checked):
    for dtype in CALLS[name].dtypes:
        # Which layout a kernel gets does not depend on the instruction set.
        for round in range(1 if backend in backends.SLOWER_CPP and not backends.SANITIZER else ROUNDS):
            draw = random.Random(f"{name} {dtype} {round}")
            given = tensors_of(CALLS[name], dtype, draw)
            given = {key: t.to(backends.device(backend)) for key, t in given.items()}
            assert_strides_make_no_difference(CALLS[name], given, draw)


SHAPE = "(3, 5, 4, 6)"
OF_A_LAYOUT = [f"{name} {SHAPE}" for name in ("lrelu", "lrelu of a bias", "silu", "style_epilogue", "batch_norm_act")]
OF_A_LAYOUT += [f"{name} {SHAPE}" for name in ("noise_bias_act_to_rgb", "pixel_norm", "squared_norm")]
OF_A_LAYOUT += ["minibatch_stddev (4, 6, 4, 5)", "conv2d 64x3 (3, 3)", "filtered_noise_bias_act (2, 8, 4, 5)"]
OF_A_LAYOUT += ["bias_act_blur (2, 32, 4, 5)", "filtered_lrelu (2, 18, 4, 5)"]


@pytest.mark.parametrize("name", OF_A_LAYOUT)
@backends.one_instruction_set
def test_saved_tensors_may_come_back_in_another_layout(name, backend, every_launch_is_checked):
    """`torch.autograd.graph.save_on_cpu` with pinned memory returns contiguous tensors."""
    given = {}
    for key, t in tensors_of(CALLS[name], F32, random.Random(0)).items():
        t = t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.contiguous()
        given[key] = t.to(backends.device(backend))
    other = lambda t: torch.linspace(-1, 1, t.numel(), device=t.device).reshape(t.shape)
    expected = derivatives(CALLS[name], given, other)
    copy = lambda t: t.clone(memory_format=torch.contiguous_format)
    with torch.autograd.graph.saved_tensors_hooks(copy, lambda t: t):
        got = derivatives(CALLS[name], given, other)
    for a, b in zip(got, expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
