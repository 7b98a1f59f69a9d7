"""Functions of other code bases that `fastgan.patch_ops` replaces.

They are the public interface of `torch_utils.ops.bias_act`, `upfirdn2d`, `filtered_lrelu` and of `training.networks`
in NVIDIA's StyleGAN2 and StyleGAN3 for PyTorch, and of the `op` package in rosinality's stylegan2-pytorch. Calls that
fastgan cannot serve go to the original.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Container
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan.ops import filtered_lrelu, modulated_conv2d, noise_bias_act, upfirdn2d
from fastgan.patching import probe
from fastgan.patching.modules import filter_padding
from fastgan.patching.official import ACTIVATIONS
from fastgan.patching.probe import Draw

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class KnownFunction(NamedTuple):
    name: str
    replace: Callable[[Callable], Callable]  # original -> replacement with the same parameters
    calls: Callable[[Draw], list[tuple[tuple, dict]]]  # (args, kwargs) for the probe


def replacement(original: Callable, name: str) -> Callable | str:
    """Returns the replacement of a function, or the reason why there is none."""
    if hasattr(original, "_fastgan_replaces"):
        return "is replaced already"
    reason = "has other parameters than the known function"
    for known in KNOWN:
        if known.name != name:
            continue
        ours = known.replace(original)
        # A decorator such as the official profiler hides the parameters: then the probe alone decides.
        if not _takes_anything(original) and _parameters(original) != _parameters(ours):
            continue
        ours = functools.update_wrapper(ours, original)
        ours._fastgan_replaces = original
        reason = probe.why_functions_differ(original, ours, known.calls)
        if reason is None:
            return ours
    return reason


def names_in(module: ModuleType) -> set[str]:
    """Names of functions in a module that may be replaced."""
    return {known.name for known in KNOWN if inspect.isfunction(vars(module).get(known.name))}


def operation(name: str) -> str:
    """Name of the operation that replaces a function."""
    name = {"bias_act": "noise_bias_act", "fused_leaky_relu": "noise_bias_act"}.get(name, name)
    return f"fastgan.ops.{name}"


def modules_of_pickles() -> list[ModuleType]:
    """Modules that the official code created from source text in pickles."""
    return [module for name, module in list(sys.modules.items()) if name.startswith("_imported_module_")]


def other_holders(originals: Container[int], known: list[ModuleType]) -> list[tuple[ModuleType, str]]:
    """Other modules that refer to one of the functions (by id), each with the name there."""
    return [
        (module, name)
        for module in list(sys.modules.values())
        if isinstance(module, ModuleType) and module not in known
        for name, value in list(vars(module).items())
        if id(value) in originals and inspect.isfunction(value)
    ]


class Callers:
    """Collects layers that `patch` leaves and that call functions which `patch_ops` can replace."""

    def __init__(self):
        self._kinds: Counter[str] = Counter()
        self._modules: dict[str, None] = {}  # in order

    def note(self, module: nn.Module) -> None:
        forward = inspect.unwrap(type(module).forward)
        if not inspect.isfunction(forward):
            return
        called = [_known_function(forward.__globals__, name) for name in forward.__code__.co_names]
        names = {known.name for known in KNOWN}
        holders = [holder for holder, name in filter(None, called) if name in names]
        if holders:
            self._kinds[type(module).__name__] += 1
            self._modules |= dict.fromkeys(holders)

    def notes(self) -> list[str]:
        if not self._kinds:
            return []
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(self._kinds.items()))
        return [
            f"layers that call functions which fastgan.patch_ops can replace: {kinds}",
            f"  fastgan.patch_ops({', '.join(self._modules)})",
        ]


def _known_function(scope: dict, name: str) -> tuple[str, str] | None:
    """Module and name of the function behind a call `f` or `f.f`; None if it is not a function or is replaced."""
    value, holder = scope.get(name), scope.get("__name__", "")
    if isinstance(value, ModuleType):
        value, holder = vars(value).get(name), value.__name__
    if not inspect.isfunction(value) or hasattr(value, "_fastgan_replaces"):
        return None
    return (f"sys.modules[{holder!r}]" if holder.startswith("_imported_module_") else holder), name


def _takes_anything(function: Callable) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    return kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]


def _parameters(function: Callable) -> list[str]:
    return list(inspect.signature(function).parameters)


def change(module: ModuleType, name: str, function: Callable) -> Callable[[], bool]:
    """Sets the function in the module; returns a function that restores it, or returns False if it has changed."""
    original = getattr(module, name)
    setattr(module, name, function)

    def restore() -> bool:
        if getattr(module, name, None) is not function:
            return getattr(module, name, None) is original
        setattr(module, name, original)
        return True

    return restore


# bias_act -------------------------------------------------------------------------------------------------------------


def _bias_act(original: Callable) -> Callable:
    def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
        slope = 0.2 if alpha is None else alpha
        fits = (
            impl == "cuda"
            and act in ACTIVATIONS
            and isinstance(x, Tensor)
            and x.dim() >= 2
            and x.dtype in _DTYPES
            and (b is None or (dim == 1 and b.dtype == x.dtype and b.shape == x.shape[1:2]))
            and slope >= 0
            and (clamp is None or clamp > 0)
        )
        nothing_to_do = b is None and act == "linear" and gain in (None, 1) and clamp is None
        if not fits or nothing_to_do:
            return original(x, b=b, dim=dim, act=act, alpha=alpha, gain=gain, clamp=clamp, impl=impl)
        ours, usual = ACTIVATIONS[act]
        gain = usual if gain is None else float(gain)
        return noise_bias_act(x, bias=b, act=ours, slope=float(slope), gain=gain, clamp=clamp)

    return bias_act


def _bias_act_calls(draw: Draw) -> list[tuple[tuple, dict]]:
    x, b = draw.image(5), draw.tensor(5)
    return [
        ((x, b), {}),
        *(((x, b), {"act": act}) for act in ACTIVATIONS),
        ((x,), {"act": "lrelu", "alpha": 0.1, "gain": 0.7, "clamp": 0.5}),
        ((draw.vector(5), b), {"act": "lrelu", "dim": 1}),
    ]


def _fused_leaky_relu(original: Callable) -> Callable:
    def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=2**0.5):
        # On CPUs the original ignores `negative_slope` and takes 0.2: such calls go to it.
        same_slope = input.device.type != "cpu" or negative_slope == 0.2
        if not same_slope or input.dim() < 2 or negative_slope < 0 or input.dtype not in _DTYPES:
            return original(input, bias, negative_slope, scale)
        return noise_bias_act(input, bias=bias, act="lrelu", slope=negative_slope, gain=scale)

    return fused_leaky_relu


def _fused_leaky_relu_calls(draw: Draw) -> list[tuple[tuple, dict]]:
    return [((draw.image(5), draw.tensor(5)), {}), ((draw.vector(5), draw.tensor(5)), {"scale": 0.7})]


# upfirdn2d ------------------------------------------------------------------------------------------------------------


def _upfirdn2d(original: Callable) -> Callable:
    def upfirdn2d_(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
        fits = (
            impl == "cuda"
            and isinstance(x, Tensor)
            and x.dim() == 4
            and x.dtype in _DTYPES
            and isinstance(f, Tensor)
            and f.dim() in (1, 2)
        )
        if not fits:
            return original(x, f, up=up, down=down, padding=padding, flip_filter=flip_filter, gain=gain, impl=impl)
        sides = _official_sides(padding)
        return upfirdn2d(x, f, up=up, down=down, padding=sides, gain=float(gain), flip=flip_filter)

    return _named(upfirdn2d_, "upfirdn2d")


def _official_sides(padding) -> tuple[int, ...]:
    """(left, right, top, bottom) of a number, a pair (x, y) or all four; rosinality's pair is (before, after)."""
    around = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    return (around[0], around[0], around[1], around[1]) if len(around) == 2 else around


def _upfirdn2d_calls(draw: Draw) -> list[tuple[tuple, dict]]:
    x, square, row = draw.image(3, min_size=4), draw.tensor(4, 3).float(), draw.tensor(4).float()
    return [
        ((x,), {"f": square, "padding": [1, 2]}),
        ((x,), {"f": row, "up": 2, "padding": [2, 1, 3, -1], "gain": 4}),
        ((x,), {"f": square, "up": [1, 2], "down": [2, 1], "padding": 2, "flip_filter": True}),
    ]


# filtered_lrelu -------------------------------------------------------------------------------------------------------


def _filtered_lrelu(original: Callable) -> Callable:
    def filtered_lrelu_(
        x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=2**0.5, slope=0.2, clamp=None, flip_filter=False,
        impl="cuda",
    ):  # fmt: skip
        fits = (
            impl == "cuda"
            and isinstance(x, Tensor)
            and x.dim() == 4
            and x.dtype in _DTYPES
            and all(f is None or (f.dim() in (1, 2) and f.shape[0] == f.shape[-1]) for f in (fu, fd))
            and (b is None or b.shape == x.shape[1:2])
            and isinstance(up, int)
            and isinstance(down, int)
            and slope >= 0
            and (clamp is None or clamp > 0)
        )
        if not fits:
            return original(
                x, fu=fu, fd=fd, b=b, up=up, down=down, padding=padding, gain=gain, slope=slope, clamp=clamp,
                flip_filter=flip_filter, impl=impl,
            )  # fmt: skip
        return filtered_lrelu(
            x, fu, fd, b, up=up, down=down, padding=_official_sides(padding), gain=float(gain), slope=float(slope),
            clamp=clamp, flip=flip_filter,
        )  # fmt: skip

    return _named(filtered_lrelu_, "filtered_lrelu")


def _filtered_lrelu_calls(draw: Draw) -> list[tuple[tuple, dict]]:
    x, b, row, square = draw.image(3, min_size=4), draw.tensor(3), draw.tensor(4).float(), draw.tensor(3, 3).float()
    return [
        ((x,), {"b": b, "gain": 1, "slope": 0.5, "clamp": 0.5}),
        ((x,), {"fu": row, "fd": row, "b": b, "up": 2, "down": 2, "padding": [3, 2, 4, 3]}),
        ((x,), {"fu": row, "fd": square, "up": 4, "down": 2, "padding": 3, "clamp": 0.7, "flip_filter": True}),
    ]


def _upfirdn2d_rosinality(original: Callable) -> Callable:
    def upfirdn2d_(input, kernel, up=1, down=1, pad=(0, 0)):
        if input.dim() != 4 or input.dtype not in _DTYPES or kernel.dim() != 2:
            return original(input, kernel, up, down, pad)
        up = up if isinstance(up, int) else tuple(up)
        down = down if isinstance(down, int) else tuple(down)
        return upfirdn2d(input, kernel, up=up, down=down, padding=filter_padding(pad))

    return _named(upfirdn2d_, "upfirdn2d")


def _upfirdn2d_rosinality_calls(draw: Draw) -> list[tuple[tuple, dict]]:
    x, kernel = draw.image(3, min_size=4), draw.tensor(4, 3)
    options = [{"pad": (1, 2)}, {"up": 2, "pad": (2, 1)}, {"down": 2}]
    return [((x,), {"kernel": kernel, **each}) for each in options]


# modulated_conv2d -----------------------------------------------------------------------------------------------------


def _modulated_conv2d(original: Callable) -> Callable:
    def modulated_conv2d_(
        x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None, demodulate=True, flip_weight=True,
        fused_modconv=True,
    ):  # fmt: skip
        resampled = (up, down) != (1, 1)
        fits = (
            (up, down) in ((1, 1), (2, 1), (1, 2))
            and isinstance(padding, int)
            and padding >= 0
            and not (resampled and resample_filter is None)
            and x.dtype in _DTYPES
        )
        if not fits:
            return original(
                x=x, weight=weight, styles=styles, noise=noise, up=up, down=down, padding=padding,
                resample_filter=resample_filter, demodulate=demodulate, flip_weight=flip_weight,
                fused_modconv=fused_modconv,
            )  # fmt: skip
        if flip_weight != (up == 1) and weight.shape[2:].numel() > 1:
            weight = weight.flip([2, 3])
        taps = resample_filter if resampled else None
        y = modulated_conv2d(x, weight, styles, demodulate=demodulate, up=up, down=down, padding=padding, taps=taps)
        # The noise comes multiplied by its strength and needs a gradient, which `noise_bias_act` has no kernel for.
        return y if noise is None else y + noise.to(y.dtype)

    return _named(modulated_conv2d_, "modulated_conv2d")


def _modulated_conv2d_calls(draw: Draw) -> list[tuple[tuple, dict]]:
    x, styles, small = draw.image(4, min_size=3), draw.vector(4), draw.tensor(4, 4).float().abs()
    weight, point = draw.tensor(3, 4, 3, 3), draw.tensor(3, 4, 1, 1)
    noise = draw.tensor(len(x), 1, *x.shape[2:])
    small = small / small.sum()
    return [
        ((x, weight, styles, noise), {"padding": 1}),
        ((x, weight, styles), {"padding": 1, "up": 2, "flip_weight": False, "resample_filter": small}),
        ((x, weight, styles), {"padding": 1, "down": 2, "resample_filter": small, "flip_weight": False}),
        ((x, point, styles), {"demodulate": False, "fused_modconv": False}),
    ]


def _modulated_conv2d_stylegan3(original: Callable) -> Callable:
    def modulated_conv2d_(x, w, s, demodulate=True, padding=0, input_gain=None):
        if not (isinstance(padding, int) and padding >= 0) or x.dtype not in _DTYPES:
            return original(x=x, w=w, s=s, demodulate=demodulate, padding=padding, input_gain=input_gain)
        if demodulate:
            w = w * w.square().mean([1, 2, 3], keepdim=True).rsqrt()
            s = s * s.square().mean().rsqrt()
        if input_gain is None:
            return modulated_conv2d(x, w, s, demodulate=demodulate, padding=padding)
        # The gain scales the input only: the demodulation must not cancel it.
        x = noise_bias_act(x, scale=s * input_gain.expand(s.shape), act="linear")
        return modulated_conv2d(x, w, s, demodulate=demodulate, padding=padding, scaled=True)

    return _named(modulated_conv2d_, "modulated_conv2d")


def _modulated_conv2d_stylegan3_calls(draw: Draw) -> list[tuple[tuple, dict]]:
    x, weight, styles = draw.image(4, min_size=3), draw.tensor(3, 4, 3, 3), draw.vector(4)
    return [
        ((x, weight, styles), {"padding": 2}),
        ((x, weight, styles), {"padding": 2, "input_gain": draw.tensor().abs()}),
        ((x, draw.tensor(3, 4, 1, 1), styles), {"demodulate": False, "input_gain": draw.tensor(4)}),
    ]


def _named(function: Callable, name: str) -> Callable:
    function.__name__ = name
    return function


KNOWN = (
    KnownFunction("bias_act", _bias_act, _bias_act_calls),
    KnownFunction("fused_leaky_relu", _fused_leaky_relu, _fused_leaky_relu_calls),
    KnownFunction("upfirdn2d", _upfirdn2d, _upfirdn2d_calls),
    KnownFunction("upfirdn2d", _upfirdn2d_rosinality, _upfirdn2d_rosinality_calls),
    KnownFunction("filtered_lrelu", _filtered_lrelu, _filtered_lrelu_calls),
    KnownFunction("modulated_conv2d", _modulated_conv2d, _modulated_conv2d_calls),
    KnownFunction("modulated_conv2d", _modulated_conv2d_stylegan3, _modulated_conv2d_stylegan3_calls),
)
