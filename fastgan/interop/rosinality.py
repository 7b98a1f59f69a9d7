"""Converts StyleGAN2 networks from and to the .pt files of rosinality/stylegan2-pytorch.

A file is a dict saved by `torch.save`: `g_ema`, `g` and `d` are state dictionaries, `latent_avg` is the mean of w. Many
projects convert to this layout. It holds no options: sizes follow from the shapes, and that code fixes the rest: no
classes, square RGB images, architectures "skip" and "resnet", no clamp, mapping learning rate 0.01.
"""

import argparse
import dataclasses
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.interop.official import Networks, Tensors, plain_networks
from fastgan.interop.stylegan2 import filter_of
from fastgan.interop.unpickling import printable, user_errors_for
from fastgan.models import ModelConfig, stylegan2
from fastgan.models.style_based import MappingNetwork
from fastgan.ops.upfirdn2d import BILINEAR, taps

STATES = {"generator": "g", "ema": "g_ema", "discriminator": "d"}  # fastgan's name -> key in the file
MAPPING_LR = 0.01
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # magic number of torch.save's legacy format
_USUAL_BASES = (32768, 16384)  # channel_multiplier 2 (the default) and 1
_LATENT, _MLP = 512, 8  # size of z and depth of the mapping network in its scripts
_LR, _INTERVALS = 0.002, {"g": 4, "d": 16}  # its defaults: learning rate, regularisation intervals
_MEAN_SAMPLES = 4096  # latents for the mean of w if a file has none, as in that code's generate.py


def is_torch_file(start: bytes) -> bool:
    """Whether the first bytes of a file are those of `torch.save`, or of another zip archive."""
    return start.startswith((b"PK\3\4", _LEGACY))


def read(path: str | Path) -> Networks:
    """Reads a file without executing anything in it. Raises UserError, naming the file, if it does not fit."""
    try:
        # A training stores its options as a Namespace; they are ignored. torch.load judges a path by its suffix.
        with (
            open(path, "rb") as file,
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore"),
        ):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # torch.load raises various errors for damaged files
        raise UserError(f"{path} is not a network file of torch.save: {_first_line(error)}") from None
    with user_errors_for(path):
        return _networks(path, content)


def to_bytes(config: ModelConfig, tensors: Mapping[str, Tensors]) -> bytes:
    """Returns the content of a .pt file.

    `tensors` holds the networks "ema" and, optionally, "generator" and "discriminator", by fastgan's tensor names. A
    fresh optimizer with that code's defaults goes with each of the latter, since its training needs one. A mapping
    learning rate other than 0.01 is converted by scaling the weights, which changes no image. Raises ValueError for
    networks that the layout cannot hold.
    """
    if reason := _why_not(config):
        raise ValueError(reason)
    content: dict[str, Any] = {}
    for name, plain in zip(("ema", "generator", "discriminator"), _plain(config), strict=True):
        if name not in tensors:
            continue
        state = content[STATES[name]] = {}
        for own, theirs in _names(plain).items():
            value = tensors[name][own].detach().cpu().float()
            if own.startswith("mapping.layers."):
                value = value * (config.mapping_lr / MAPPING_LR)
            state[theirs] = value.reshape(_shape(own, value.shape)).clone(memory_format=torch.contiguous_format)
        state |= _kernels(plain, config)
        if name != "ema":
            content[f"{STATES[name]}_optim"] = _optimizer(plain, _INTERVALS[STATES[name]])
    content["latent_avg"] = tensors["ema"]["mapping.w_avg"].detach().cpu().float().clone()
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def differences(config: ModelConfig) -> list[str]:
    """Settings that the layout loses and the reader must set by hand, a sentence each."""
    found = []
    widths = {r: config.features(r) for r in config.resolutions}
    usual = [{r: min(512, base // r) for r in widths} for base in _USUAL_BASES]
    if widths not in usual or any(config.discriminator_features(r) != width for r, width in widths.items()):
        of_discriminator = {r: config.discriminator_features(r) for r in config.resolutions}
        found.append(
            f"these networks have other widths than that code's channel_multiplier gives: set `channels` to {widths} "
            f"in its Generator and to {of_discriminator} in its Discriminator"
        )
    if (config.z_dim, config.mapping_layers) != (_LATENT, _MLP):
        found.append(
            f"that code's scripts have `latent` {_LATENT} and `n_mlp` {_MLP}: set them to {config.z_dim} and "
            f"{config.mapping_layers}"
        )
    if (count := len(config.resample_filter)) != len(BILINEAR):
        found.append(
            f"that code's networks have a filter of {len(BILINEAR)} taps: give them a `blur_kernel` of {count}"
        )
    if config.stddev_features and config.stddev_group != 4:
        group = "the whole batch" if config.stddev_group is None else f"groups of {config.stddev_group}"
        found.append(f"that code's discriminator compares groups of 4 images, this one compares {group}")
    return found


def _optimizer(network: nn.Module, interval: int) -> dict[str, Any]:
    """The state of a fresh Adam with that code's correction for lazy regularisation."""
    share = interval / (interval + 1)
    return torch.optim.Adam(network.parameters(), lr=_LR * share, betas=(0**share, 0.99**share)).state_dict()


def _why_not(config: ModelConfig) -> str | None:
    for name, value, right in (
        ("num_classes", config.num_classes, 0),
        ("channels", config.channels, 3),
        ("base_size", config.base_size, (4, 4)),
        ("w_dim", config.style_dim, config.z_dim),
        ("generator_architecture", config.generator_architecture, "skip"),
        ("discriminator_architecture", config.discriminator_architecture, "resnet"),
        ("noise", config.noise, True),
        ("stddev_features", config.stddev_features, 1),
    ):
        if value != right:
            return (
                f"rosinality's layout holds unconditional StyleGAN2 of square RGB images only: it has {name} {right}, "
                f"these networks have {value}"
            )
    return None


def _first_line(error: Exception) -> str:
    return printable((str(error) or type(error).__name__).splitlines()[0])


# ---- names and shapes -----------------------------------------------------------------------------------------------


def _names(network: nn.Module) -> dict[str, str]:
    """Maps fastgan's name of every tensor to rosinality's."""
    pairs = _generator_names(network) if isinstance(network, stylegan2.Generator) else _discriminator_names(network)
    return dict(pairs)


def _dense(own: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{own}.{tensor}", f"{theirs}.{tensor}") for tensor in ("weight", "bias"))


def _generator_names(generator: stylegan2.Generator) -> Iterator[tuple[str, str]]:
    for i in range(len(generator.mapping.layers)):
        yield from _dense(f"mapping.layers.{i}", f"style.{i + 1}")  # style.0 is PixelNorm
    yield "synthesis.const", "input.input"
    layers = ["first"] + [f"{kind}.{i}" for i in range(len(generator.synthesis.up)) for kind in ("up", "same")]
    for i, layer in enumerate(layers):
        own, theirs = f"synthesis.{layer}", f"convs.{i - 1}" if i else "conv1"
        yield f"{own}.conv.weight", f"{theirs}.conv.weight"
        yield from _dense(f"{own}.affine", f"{theirs}.conv.modulation")
        yield f"{own}.epilogue.strength", f"{theirs}.noise.weight"
        yield f"{own}.epilogue.bias", f"{theirs}.activate.bias"
        yield f"{own}.noise_const", f"noises.noise_{i}"
    for i in range(len(generator.synthesis.to_rgb)):
        own, theirs = f"synthesis.to_rgb.{i}", f"to_rgbs.{i - 1}" if i else "to_rgb1"
        yield f"{own}.weight", f"{theirs}.conv.weight"
        yield from _dense(f"{own}.affine", f"{theirs}.conv.modulation")
        yield f"{own}.bias", f"{theirs}.bias"


def _discriminator_names(discriminator: stylegan2.Discriminator) -> Iterator[tuple[str, str]]:
    def convolution(own: str, theirs: str, place: int) -> Iterator[tuple[str, str]]:
        yield f"{own}.weight", f"{theirs}.{place}.weight"
        yield f"{own}.bias", f"{theirs}.{place + 1}.bias"

    yield from convolution("from_rgb", "convs.0", 0)
    for i in range(len(discriminator.blocks)):
        yield from convolution(f"blocks.{i}.conv", f"convs.{i + 1}.conv1", 0)
        yield from convolution(f"blocks.{i}.down", f"convs.{i + 1}.conv2", 1)  # after the blur
        yield f"blocks.{i}.skip.weight", f"convs.{i + 1}.skip.1.weight"
    yield from convolution("conv", "final_conv", 0)
    yield from _dense("dense", "final_linear.0")
    yield from _dense("out", "final_linear.1")


def _shape(own: str, shape: torch.Size) -> tuple[int, ...]:
    """The shape in rosinality's file of a tensor with fastgan's shape."""
    if own.endswith("strength"):
        return (1,)
    if own == "synthesis.const" or (own.startswith("synthesis.") and own.endswith("weight") and len(shape) == 4):
        return (1, *shape)
    if own.startswith("synthesis.to_rgb") and own.endswith("bias") and "affine" not in own:
        return (1, *shape, 1, 1)
    return tuple(shape)


def _kernels(network: nn.Module, config: ModelConfig) -> Tensors:
    """Filter buffers of rosinality's modules."""
    filter = taps(config.resample_filter)
    filter = torch.outer(filter, filter) if filter.dim() == 1 else filter
    if isinstance(network, stylegan2.Generator):
        levels = range(len(network.synthesis.up))
        places = [place for i in levels for place in (f"convs.{2 * i}.conv.blur", f"to_rgbs.{i}.upsample")]
        filter = 4 * filter
    else:
        levels = range(len(network.blocks))
        places = [place for i in levels for place in (f"convs.{i + 1}.conv2.0", f"convs.{i + 1}.skip.0")]
    return {f"{place}.kernel": filter.clone() for place in places}


# ---- reading --------------------------------------------------------------------------------------------------------


def _plain(config: ModelConfig) -> tuple[nn.Module, nn.Module, nn.Module]:
    """EMA generator, generator and discriminator on the meta device."""
    generator, discriminator = plain_networks(config)
    return generator, generator, discriminator


def _networks(path: str | Path, content: Any) -> Networks:
    content = content if isinstance(content, dict) else {}
    states = {name: content[theirs] for name, theirs in STATES.items() if content.get(theirs) is not None}
    if "ema" not in states:
        raise ValueError("has no g_ema: it is not a checkpoint of rosinality's stylegan2-pytorch")
    for name, state in states.items():
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(f"has a {STATES[name]} that is not a state dictionary")
    config = _generator_config(states["ema"])
    ema = _renamed(states["ema"], "ema", config)
    mean = content.get("latent_avg")
    if isinstance(mean, Tensor) and mean.numel() == config.z_dim:
        ema["mapping.w_avg"] = mean.detach().float().reshape(-1)
    else:
        ema["mapping.w_avg"] = _mean_of_w(config, ema)

    def load_state_dicts() -> tuple[ModelConfig, dict[str, Tensors]]:
        with user_errors_for(path):
            whole = _with_discriminator(config, states["discriminator"]) if "discriminator" in states else config
            tensors = {"ema": ema}
            for name in states.keys() - {"ema"}:
                tensors[name] = _renamed(states[name], name, whole)
        if "generator" in tensors:
            tensors["generator"]["mapping.w_avg"] = ema["mapping.w_avg"].clone()
        return whole, tensors

    return Networks(config, ema, load_state_dicts)


def _renamed(state: Tensors, name: str, config: ModelConfig) -> Tensors:
    """Renames tensors to fastgan's names. Raises ValueError if they do not fit the configuration."""
    plain = dict(zip(("ema", "generator", "discriminator"), _plain(config), strict=True))[name]
    there, shapes = dict(state), {key: value.shape for key, value in plain.state_dict().items()}
    for key, expected in _kernels(plain, config).items():
        found = there.pop(key, expected)
        if found.shape != expected.shape or not torch.allclose(found.float(), expected, atol=1e-6):
            raise ValueError(
                f"has another filter in {STATES[name]}.{key} than elsewhere; fastgan uses one filter everywhere"
            )
    tensors = {}
    for own, theirs in _names(plain).items():
        if theirs not in there:
            raise ValueError(f"lacks the tensor {STATES[name]}.{theirs}")
        value, shape = there.pop(theirs), _shape(own, shapes[own])
        if value.shape != shape:
            raise ValueError(f"has {STATES[name]}.{theirs} of shape {list(value.shape)}, which must be {list(shape)}")
        tensors[own] = value.detach().reshape(shapes[own])
    if there:
        raise ValueError(f"has the tensor {STATES[name]}.{min(map(str, there))}, which that StyleGAN2 does not have")
    return tensors


def _sizes(state: Tensors, name: str, *keys: str) -> list[tuple[int, ...]]:
    for key in keys:
        if key not in state:
            raise ValueError(f"lacks the tensor {name}.{key}: it is not a StyleGAN2 of rosinality's stylegan2-pytorch")
    return [tuple(state[key].shape) for key in keys]


def _generator_config(state: Tensors) -> ModelConfig:
    """Derives the configuration from the shapes of a generator."""
    levels = sum(f"to_rgbs.{i}.bias" in state for i in range(len(state)))
    layers = sum(f"style.{i + 1}.weight" in state for i in range(len(state)))
    up = [f"convs.{2 * i}.conv.weight" for i in range(levels)]
    dense, const, rgb, *convs = _sizes(state, "g_ema", "style.1.weight", "input.input", "to_rgb1.conv.weight", *up)
    if [len(shape) for shape in (dense, const, rgb, *convs)] != [2, 4, *[5] * (1 + levels)]:
        raise ValueError("has a g_ema that is not a StyleGAN2 of rosinality's stylegan2-pytorch")
    base, maximum = _widths([const[1], *(shape[1] for shape in convs)])
    kernel = state.get("convs.0.conv.blur.kernel")
    return ModelConfig(
        arch="stylegan2",
        resolution=4 << levels,
        channels=rgb[1],
        z_dim=dense[1],
        channel_base=base,
        channel_max=maximum,
        mapping_layers=layers,
        mapping_lr=MAPPING_LR,
        conv_clamp=None,
        resample_filter=BILINEAR if kernel is None else filter_of(kernel),
    )


def _with_discriminator(config: ModelConfig, state: Tensors) -> ModelConfig:
    down = [f"convs.{i + 1}.conv2.1.weight" for i in range(len(config.resolutions) - 1)]
    first, last, *convs = _sizes(state, "d", "convs.0.0.weight", "final_conv.0.weight", *down)
    if any(len(shape) != 4 for shape in (first, last, *convs)):
        raise ValueError("has a d that is not a StyleGAN2 of rosinality's stylegan2-pytorch")
    base, maximum = _widths([first[0], *(shape[0] for shape in convs)][::-1])
    return dataclasses.replace(
        config,
        discriminator_channel_base=None if base == config.channel_base else base,
        discriminator_channel_max=None if maximum == config.channel_max else maximum,
        stddev_features=last[1] - last[0],
    )


def _widths(widths: list[int]) -> tuple[int, int]:
    """`channel_base` and `channel_max` for feature maps at 4x4, 8x8, ...; that code's own values if they fit."""
    maximum = max(widths)
    for base in (*_USUAL_BASES, widths[-1] * (2 << len(widths))):
        if [min(base // (4 << i), maximum) for i in range(len(widths))] == widths:
            return base, maximum
    raise ValueError(f"has feature maps of {widths} channels; fastgan has min(base / resolution, max)")


def _mean_of_w(config: ModelConfig, ema: Tensors) -> Tensor:
    """Estimates the mean of w as that code does, from fixed latents."""
    mapping = MappingNetwork(config).requires_grad_(False).eval()
    own = {name.removeprefix("mapping."): value for name, value in ema.items() if name.startswith("mapping.")}
    mapping.load_state_dict(own | {"w_avg": mapping.w_avg})
    z = torch.randn(_MEAN_SAMPLES, config.z_dim, generator=torch.Generator().manual_seed(0))
    return mapping(z).mean(0)
