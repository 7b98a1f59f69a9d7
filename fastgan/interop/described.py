"""Submodules, tensors and options of networks that a pickle of the official code describes."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fastgan.interop import unpickling

# ---- submodules and tensors -----------------------------------------------------------------------------------------


def children(module: unpickling.Module) -> dict[str, unpickling.Module]:
    """Submodules by their names."""
    found = table(module.state.get("_modules", {}))
    if not all(isinstance(name, str) and isinstance(child, unpickling.Module) for name, child in found.items()):
        raise ValueError("has a network whose submodules are not modules")
    return found


def at(module: unpickling.Module | None, *path: str) -> unpickling.Module | None:
    """The submodule at a path, or None."""
    for name in path:
        module = children(module).get(name) if module is not None else None
    return module


def table(value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError("has a network whose tensors or options are not in dictionaries")
    return value


def tensors(module: unpickling.Module, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """All entries of the state dictionary; frozen layers keep their weights as buffers."""
    seen = set() if seen is None else seen
    if id(module) in seen or prefix.count(".") > 8:
        raise ValueError("has a network that contains itself, or one module twice")
    seen.add(id(module))
    for kind in ("_parameters", "_buffers"):
        for name, value in table(module.state.get(kind, {})).items():
            if value is not None:
                if not isinstance(value, Tensor) or value.is_complex():
                    raise ValueError(f"has {prefix}{name}, which is not a real tensor")
                yield f"{prefix}{name}", value
    for name, child in children(module).items():
        yield from tensors(child, f"{prefix}{name}.", seen)


# ---- options --------------------------------------------------------------------------------------------------------

# Names of the official constructors' positional arguments.
_POSITIONS = {
    "G_ema": ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs"),
    "D": (
        *("c_dim", "img_resolution", "img_channels", "architecture", "channel_base", "channel_max", "num_fp16_res"),
        *("conv_clamp", "cmap_dim", "block_kwargs", "mapping_kwargs", "epilogue_kwargs"),
    ),
}
# Options without effect on results: speed, precision (fastgan's caller chooses it) and training.
_WITHOUT_EFFECT = frozenset({
    *("num_fp16_res", "use_fp16", "fp16_channels_last", "channels_last", "fused_modconv_default"),
    *("freeze_layers", "freeze_embed", "magnitude_ema_beta"),
})  # fmt: skip
_ONLY: dict[str, tuple[Any, ...]] = {"activation": ("lrelu",), "kernel_size": (3,)}  # only these values are supported
MAPPING_LAYERS = "mapping_kwargs.num_layers"  # StyleGAN3's synthesis network has an option num_layers as well


class Options:
    """The hyper-parameters of one network, flattened. Each getter removes its option; `finish` refuses the rest."""

    def __init__(self, network: str, module: unpickling.Module, groups: tuple[str, ...]):
        self.network = network
        values = module.state.get("_init_args", ())
        if not isinstance(values, tuple):
            raise ValueError(f"has options of {network} that are not a tuple")
        given = dict(zip(_POSITIONS[network], values, strict=False)) | table(module.state.get("_init_kwargs", {}))
        self.is_nested = "synthesis_kwargs" in given
        nested = [dict(table(given.pop(group, {}))) for group in groups]
        of_mapping = nested[groups.index("mapping_kwargs")]
        if "num_layers" in of_mapping:
            of_mapping[MAPPING_LAYERS] = of_mapping.pop("num_layers")
        self.given: dict[str, Any] = {}
        for name, value in [item for group in (given, *nested) for item in group.items()]:
            if name in self.given:
                raise self.wrong(name, value, "is given twice")
            if name not in _WITHOUT_EFFECT:
                self.given[name] = value
            if name in _ONLY:  # may be given for several submodules
                self.one_of(name, *_ONLY[name])

    def wrong(self, name: str, value: Any, why: str) -> ValueError:
        shown = value if isinstance(value, (str, int, float)) or value is None else f"a {type(value).__name__}"
        return ValueError(f"has {self.network} with {name} {str(shown)[:40]}, which {why}")

    def whole(self, name: str, default: int | None = None, least: int = 0, most: int = 2**20) -> int:
        """An integer option."""
        value = self.given.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, value, f"must be an integer from {least} to {most}")
        return value

    def number(self, name: str, default: float, most: float = 1e9) -> float:
        value = self.given.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            raise self.wrong(name, value, f"must be a number above 0 and at most {most:g}")
        return float(value)

    def one_of(self, name: str, *contained: Any) -> Any:
        """An option with these supported values; the first is the default."""
        value = self.given.pop(name, contained[0])
        if not any(type(value) is type(each) and value == each for each in contained):
            raise self.wrong(name, value, f"fastgan does not support; it has {' and '.join(map(str, contained))}")
        return value

    def width_of_labels(self, width: int, num_classes: int, layers: int) -> None:
        """Checks the widths of a mapping network, which must equal that of w; options of missing layers are ignored."""
        for name, matters in (("embed_features", num_classes > 0), ("layer_features", layers > 1)):
            value = self.given.pop(name, None)
            if matters and value is not None and value != width:
                raise self.wrong(name, value, f"fastgan does not support; it has {width} in all layers")

    def finish(self) -> None:
        """Refuses unknown options."""
        for name in self.given:
            raise self.wrong(str(name)[:40], self.given[name], "fastgan's networks do not have")


def shared(options: Options, conv_clamp: float | None) -> dict[str, Any]:
    """Fields of `ModelConfig` from options that generators and discriminators have."""
    return {
        "resolution": options.whole("img_resolution", least=1),
        "channels": options.whole("img_channels", least=1),
        "num_classes": options.whole("c_dim", 0),
        "channel_base": options.whole("channel_base", 32768, least=1),
        "channel_max": options.whole("channel_max", 512, least=1),
        "conv_clamp": conv_clamp,
    }


def mapping(options: Options, ema: unpickling.Module, layers: int, decay: float, num_classes: int) -> dict[str, Any]:
    """Fields of `ModelConfig` from options of a generator's mapping network; `layers` and `decay` are the defaults."""
    found: dict[str, Any] = {"z_dim": options.whole("z_dim", least=1)}
    width = options.whole("w_dim", least=1)
    found["w_dim"] = None if width == found["z_dim"] else width
    found["mapping_layers"] = options.whole(MAPPING_LAYERS, layers, least=1, most=64)
    found["mapping_lr"] = options.number("lr_multiplier", 0.01)
    network = at(ema, "mapping")
    decay = decay if network is None else network.state.get("w_avg_beta", decay)
    found["w_avg_decay"] = options.number("w_avg_beta", decay, most=1)
    options.width_of_labels(width, num_classes, found["mapping_layers"])
    return found


def clamp(options: Options, layer: unpickling.Module | None, default: float | None) -> float | None:
    """The clamp of activations: the layer's value if there is one, else the option."""
    value = options.given.pop("conv_clamp", default)
    if layer is not None:
        value = layer.state.get("conv_clamp", value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9):
        raise options.wrong("conv_clamp", value, "must be a number above 0, or None")
    return None if value is None else float(value)
