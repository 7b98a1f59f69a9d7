"""Converts StyleGAN2's networks between the official code's names and options and those of fastgan.

stylegan2-ada-pytorch and stylegan3 have the same StyleGAN2, whose discriminator is StyleGAN3's as well. stylegan2-ada
has the synthesis network's hyper-parameters in `synthesis_kwargs`, stylegan3 beside the others.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.interop import unpickling
from fastgan.interop.described import MAPPING_LAYERS, Options, at, clamp, mapping, shared, table
from fastgan.models import ModelConfig, stylegan2
from fastgan.ops.upfirdn2d import BILINEAR, taps

_MAX_TAPS = 64

# ---- names ----------------------------------------------------------------------------------------------------------


def places(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Pairs (fastgan's name, official name) of modules with tensors."""
    return _generator_places(network) if isinstance(network, stylegan2.Generator) else _discriminator_places(network)


def _generator_places(generator: stylegan2.Generator) -> Iterator[tuple[str, str]]:
    yield "mapping", "mapping"
    yield "mapping.embed", "mapping.embed"
    for i in range(len(generator.mapping.layers)):
        yield f"mapping.layers.{i}", f"mapping.fc{i}"
    yield "synthesis", "synthesis.b4"
    layers = [("first", "b4.conv1")]
    for i in range(len(generator.synthesis.up)):
        layers += [(f"up.{i}", f"b{8 << i}.conv0"), (f"same.{i}", f"b{8 << i}.conv1")]
    resolutions = [4 << i for i in range(len(generator.synthesis.up) + 1)]
    with_rgb = resolutions if generator.synthesis.sums_images else resolutions[-1:]
    layers += [(f"to_rgb.{i}", f"b{r}.torgb") for i, r in enumerate(with_rgb)]
    layers += [(f"skip.{i}", f"b{8 << i}.skip") for i in range(len(generator.synthesis.skip))]
    for own, official in layers:
        for part in ("", ".conv", ".epilogue"):
            yield f"synthesis.{own}{part}", f"synthesis.{official}"
        yield f"synthesis.{own}.affine", f"synthesis.{official}.affine"


def _discriminator_places(discriminator: stylegan2.Discriminator) -> Iterator[tuple[str, str]]:
    resolution = 4 << len(discriminator.blocks)
    yield "from_rgb", f"b{resolution}.fromrgb"
    for i in range(len(discriminator.blocks)):
        for own, official in (("conv", "conv0"), ("down", "conv1"), ("skip", "skip")):
            yield f"blocks.{i}.{own}", f"b{resolution >> i}.{official}"
    for i in range(len(discriminator.from_smaller)):
        yield f"from_smaller.{i}", f"b{resolution >> i + 1}.fromrgb"
    yield from (("conv", "b4.conv"), ("dense", "b4.fc"), ("out", "b4.out"), ("embed", "mapping.embed"))
    for i in range(len(discriminator.directions)):
        yield f"directions.{i}", f"mapping.fc{i}"


# ---- filters --------------------------------------------------------------------------------------------------------


def filter_of(kernel: Tensor) -> tuple:
    """Converts a filter [k] or [kh, kw] of non-zero sum to `ModelConfig.resample_filter`; separable if it can be."""
    kernel = kernel.detach().double() / kernel.sum()
    if kernel.dim() == 2 and kernel.shape[0] == kernel.shape[1]:
        row = kernel.sum(0)
        kernel = row if torch.allclose(torch.outer(row, row), kernel, atol=1e-6) else kernel
    if kernel.shape == (4,) and torch.allclose(kernel, taps().double(), atol=1e-6):
        return BILINEAR
    return tuple(map(tuple, kernel.tolist())) if kernel.dim() == 2 else tuple(kernel.tolist())


def _as_kept(filter: Tensor) -> Tensor:
    """The filter as an official module stores it: two-dimensional if it is short."""
    return torch.outer(filter, filter) if filter.dim() == 1 and len(filter) < 8 else filter.clone()


def filters(network: nn.Module) -> dict[str, Tensor]:
    """Filters that the official modules store, by official name; fastgan's layers do not save theirs.

    Blocks and convolutions have one, whether they resample or not; those that do not have the default one.
    """
    up = isinstance(network, stylegan2.Generator)
    own = _as_kept((network.synthesis.upsample.filter if up else network.blocks[0].down.resample_filter).cpu())
    return {name: own if resamples else _as_kept(taps()) for name, resamples in _filter_names(network)}


def used_filters(network: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    """Filters of layers that resample; `network` may be on the meta device."""
    kept = _as_kept(taps(config.resample_filter))
    return {name: kept for name, resamples in _filter_names(network) if resamples}


def _filter_names(network: nn.Module) -> Iterator[tuple[str, bool]]:
    """Official names of filters, and whether their layers resample."""
    with_tensors = {name.rpartition(".")[0] for name in network.state_dict()}
    modules = [official for own, official in places(network) if own in with_tensors]
    convolutions = {
        name for name in modules if name.rpartition(".")[2] in ("conv", "conv0", "conv1", "skip", "fromrgb")
    }
    blocks = {name.rpartition(".")[0] for name in convolutions} - {"b4"}  # the discriminator's last block has none
    without = ("conv1",) if isinstance(network, stylegan2.Generator) else ("conv0", "conv", "fromrgb")
    for name in convolutions | blocks:
        yield f"{name}.resample_filter", name.rpartition(".")[2] not in without


# ---- options --------------------------------------------------------------------------------------------------------


def generator_arguments(config: ModelConfig) -> dict[str, Any]:
    """Constructor arguments of the official Generator, nested as in stylegan2-ada.

    stylegan3's takes the content of `synthesis_kwargs` beside the others.
    """
    return {
        **shared_arguments(config),
        "synthesis_kwargs": {
            "channel_base": config.channel_base,
            "channel_max": config.channel_max,
            "num_fp16_res": 0,
            "conv_clamp": config.conv_clamp,
            "architecture": config.generator_architecture,
            "resample_filter": _as_list(config.resample_filter),
            "use_noise": config.noise,
        },
    }


def discriminator_arguments(config: ModelConfig) -> dict[str, Any]:
    """Constructor arguments of the official Discriminator."""
    own = {"base": config.discriminator_channel_base, "max": config.discriminator_channel_max}
    return {
        **_image_arguments(config),
        "architecture": config.discriminator_architecture,
        "channel_base": config.channel_base if own["base"] is None else own["base"],
        "channel_max": config.channel_max if own["max"] is None else own["max"],
        "num_fp16_res": 0,
        "conv_clamp": config.conv_clamp,
        "block_kwargs": {"resample_filter": _as_list(config.resample_filter)},
        "mapping_kwargs": {
            "num_layers": config.discriminator_mapping_layers,
            "lr_multiplier": config.projection_lr,
        },
        "epilogue_kwargs": {"mbstd_group_size": config.stddev_group, "mbstd_num_channels": config.stddev_features},
    }


def shared_arguments(config: ModelConfig) -> dict[str, Any]:
    """Constructor arguments that the official generators of both families have."""
    return {
        "z_dim": config.z_dim,
        "w_dim": config.style_dim,
        **_image_arguments(config),
        "mapping_kwargs": {
            "num_layers": config.mapping_layers,
            "lr_multiplier": config.mapping_lr,
            "w_avg_beta": config.w_avg_decay,
        },
    }


def _image_arguments(config: ModelConfig) -> dict[str, Any]:
    return {"c_dim": config.num_classes, "img_resolution": config.resolution, "img_channels": config.channels}


def _as_list(value: Any) -> Any:
    return [_as_list(each) for each in value] if isinstance(value, tuple) else value


def generator_config(ema: unpickling.Module) -> ModelConfig:
    """The configuration of the EMA generator. Raises ValueError if fastgan does not support it."""
    options = Options("G_ema", ema, ("mapping_kwargs", "synthesis_kwargs"))
    # Defaults: stylegan2-ada does not clamp activations; stylegan3, whose options are flat, clamps at 256.
    default_clamp, decay = (None, 0.995) if options.is_nested else (256, 0.998)
    config = shared(options, clamp(options, at(ema, "synthesis", "b4", "conv1"), default_clamp))
    config |= mapping(options, ema, 8, decay, config["num_classes"])
    config["generator_architecture"] = options.one_of("architecture", "skip", "resnet", "orig")
    config["noise"] = options.one_of("use_noise", True, False)
    layer = at(ema, "synthesis", "b8", "conv0")
    kept = table(layer.state.get("_buffers", {})).get("resample_filter") if layer is not None else None
    config["resample_filter"] = _filter(options, kept if isinstance(kept, Tensor) else None)
    options.finish()
    return ModelConfig(arch="stylegan2", **config)


def with_discriminator(config: ModelConfig, discriminator: unpickling.Module) -> ModelConfig:
    """Adds the discriminator's options; shared ones must equal the generator's."""
    options = Options("D", discriminator, ("block_kwargs", "mapping_kwargs", "epilogue_kwargs"))
    own = shared(options, clamp(options, at(discriminator, "b4", "conv"), config.conv_clamp))
    for name in ("resolution", "channels", "num_classes", "conv_clamp"):
        if own[name] != getattr(config, name):
            raise ValueError(
                f"has {name} {own[name]} in D and {getattr(config, name)} in G_ema; fastgan has one value for both"
            )
    options.given.pop("resample_filter", None)  # the reader compares the layers' filters with the generator's
    found = {
        f"discriminator_{name}": None if own[name] == getattr(config, name) else own[name]
        for name in ("channel_base", "channel_max")
    }
    found["discriminator_architecture"] = options.one_of("architecture", "resnet", "skip", "orig")
    rate = options.number("lr_multiplier", 0.01)
    found["discriminator_mapping_lr"] = None if rate == config.mapping_lr else rate
    layers = options.whole(MAPPING_LAYERS, 8, most=64)
    found["discriminator_mapping_layers"] = layers if config.num_classes else 0
    width = min(own["channel_base"] // 4, own["channel_max"])
    projected = options.given.pop("cmap_dim", None)
    if config.num_classes and projected not in (None, width):
        raise options.wrong("cmap_dim", projected, f"fastgan does not support; it has {width}, the features at 4x4")
    options.width_of_labels(width, config.num_classes, found["discriminator_mapping_layers"])
    group = options.given.pop("mbstd_group_size", 4)
    if group is not None:
        options.given["mbstd_group_size"] = group
        group = options.whole("mbstd_group_size", least=1)
    found["stddev_group"] = group
    found["stddev_features"] = options.whole("mbstd_num_channels", 1)
    options.finish()
    return dataclasses.replace(config, **found)


def _filter(options: Options, kept: Tensor | None) -> tuple:
    """The resampling filter: the option if it is a list, else the layers' buffer."""
    value = options.given.pop("resample_filter", [1, 3, 3, 1])
    if not isinstance(value, (list, tuple)):
        value = filter_of(kept) if kept is not None and kept.dim() in (1, 2) and kept.sum() != 0 else value
    right = f"must be a list of at most {_MAX_TAPS} numbers, or of lists of equal length, with a sum other than 0"
    wrong = options.wrong("resample_filter", value, right)
    if not isinstance(value, (list, tuple)):
        raise wrong
    two = any(isinstance(row, (list, tuple)) for row in value)
    rows = list(value) if two else [value]
    if not all(isinstance(row, (list, tuple)) and len(row) == len(rows[0]) <= _MAX_TAPS for row in rows):
        raise wrong
    flat = [each for row in rows for each in row]
    if len(rows) > _MAX_TAPS or not all(isinstance(x, (int, float)) and abs(x) < 1e9 for x in flat):
        raise wrong
    if not abs(sum(flat)) > 1e-9:
        raise wrong
    rows = tuple(tuple(map(float, row)) for row in rows)
    return rows if two else rows[0]
