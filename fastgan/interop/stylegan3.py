"""Converts StyleGAN3's generator between the official code's names and options and those of fastgan."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fastgan.interop import unpickling
from fastgan.interop.described import Options, at, children, clamp, mapping, shared
from fastgan.interop.stylegan2 import shared_arguments
from fastgan.models import ModelConfig, alias_free, stylegan3

_KERNELS = {"t": 3, "r": 1}  # side of the convolutions of a variant
# Numbers that fastgan's StyleGAN3 has built in, by the names of the official options.
_FIXED = {
    "first_cutoff": alias_free.FIRST_CUTOFF,
    "first_stopband": alias_free.FIRST_STOPBAND,
    "last_stopband_rel": alias_free.LAST_STOPBAND,
    "filter_size": alias_free.TAPS,
    "lrelu_upsampling": 2,
    "output_scale": stylegan3.OUTPUT_GAIN,
}


def places(generator: stylegan3.Generator) -> Iterator[tuple[str, str]]:
    """Pairs (fastgan's name, official name) of modules with tensors."""
    yield "mapping", "mapping"
    yield "mapping.embed", "mapping.embed"
    for i in range(len(generator.mapping.layers)):
        yield f"mapping.layers.{i}", f"mapping.fc{i}"
    for part in ("", ".affine"):
        yield f"synthesis.input{part}", f"synthesis.input{part}"
        for own, official in _layers(generator):
            yield f"synthesis.{own}{part}", f"synthesis.{official}{part}"


def _layers(generator: stylegan3.Generator) -> Iterator[tuple[str, str]]:
    for i, layer in enumerate(generator.synthesis.layers):
        yield f"layers.{i}", f"L{i}_{layer.size}_{layer.weight.shape[0]}"


def filters(generator: stylegan3.Generator) -> dict[str, Tensor]:
    """Filters that the official modules store, by official name; fastgan's layers do not save theirs."""
    found = {}
    for layer, (_, official) in zip(generator.synthesis.layers, _layers(generator), strict=True):
        for name in ("up_filter", "down_filter"):
            if (filter := getattr(layer, name)) is not None:
                found[f"synthesis.{official}.{name}"] = filter.detach().cpu().clone()
    return found


def used_filters(generator: stylegan3.Generator, config: ModelConfig) -> dict[str, Tensor]:
    """All filters. Those of a network on the meta device have numbers as well: NumPy computes them."""
    return filters(generator)


def generator_arguments(config: ModelConfig) -> dict[str, Any]:
    """Constructor arguments of the official Generator."""
    return {
        **shared_arguments(config),
        "channel_base": config.channel_base,
        "channel_max": config.channel_max,
        "num_layers": config.synthesis_layers,
        "num_critical": config.critical_layers,
        "margin_size": config.margin,
        "num_fp16_res": 0,
        "conv_clamp": config.conv_clamp,
        "conv_kernel": _KERNELS[config.variant or "t"],
        "use_radial_filters": config.variant == "r",
    }


def generator_config(ema: unpickling.Module) -> ModelConfig:
    """The configuration of the EMA generator. Raises ValueError if fastgan does not support it."""
    options = Options("G_ema", ema, ("mapping_kwargs", "synthesis_kwargs"))
    synthesis = at(ema, "synthesis")
    layers = {} if synthesis is None else children(synthesis)
    layer = next((each for name, each in layers.items() if name.startswith("L0_")), None)
    config = shared(options, clamp(options, layer, 256))
    config |= mapping(options, ema, 2, 0.998, config["num_classes"])
    config["synthesis_layers"] = options.whole("num_layers", 14, least=1, most=64)
    config["critical_layers"] = options.whole("num_critical", 2, most=63)
    config["margin"] = options.whole("margin_size", 10, most=1000)
    kernel = options.one_of("conv_kernel", *_KERNELS.values())
    radial = options.one_of("use_radial_filters", False, True)
    if radial != (kernel == _KERNELS["r"]):
        raise options.wrong("conv_kernel", kernel, f"does not go with use_radial_filters {radial} in fastgan")
    config["variant"] = "r" if radial else "t"
    for name, value in _FIXED.items():
        if abs((given := options.number(name, value)) - value) > 1e-6:
            raise options.wrong(name, given, f"must be {value:g}")
    options.finish()
    return ModelConfig(arch="stylegan3", **config)
