"""Converts StyleGAN2 networks from the .pkl files of stylegan2-ada-pytorch and stylegan3, and back to official names.

Both repositories have the same networks and tensor names. stylegan2-ada keeps the synthesis network's hyper-parameters
in `synthesis_kwargs`, stylegan3 beside the others. Networks that `fastgan.models.stylegan2` does not support are
refused.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import models
from fastgan.data.urls import local_path
from fastgan.interop import unpickling
from fastgan.models import ModelConfig, stylegan2
from fastgan.ops.upfirdn2d import BILINEAR, taps

NETWORKS = {"generator": "G", "ema": "G_ema", "discriminator": "D"}  # fastgan's name -> official name
_CLASSES = {"generator": stylegan2.Generator, "ema": stylegan2.Generator, "discriminator": stylegan2.Discriminator}
Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Networks:
    """The content of another program's file.

    Attributes:
        config: configuration of the EMA generator.
        ema: its state dict, with fastgan's names.
        load_state_dicts: returns the configuration of all networks in the file, and the state dict of each by its name
            in `NETWORKS`. Raises UserError if the generator or discriminator is not supported: drawing does not need
            them.
    """

    config: ModelConfig
    ema: Tensors
    load_state_dicts: Callable[[], tuple[ModelConfig, dict[str, Tensors]]]


@dataclass(frozen=True)
class StyleGAN2:
    """The networks of a file, in eval mode and fp32.

    Attributes:
        ema: the EMA generator (`G_ema`), without gradients; it draws the images.
        generator: the trained generator (`G`), or None if the file has none.
        discriminator: `D`, or None if the file has none.
        config: configuration of all three.
    """

    ema: stylegan2.Generator
    generator: stylegan2.Generator | None
    discriminator: stylegan2.Discriminator | None
    config: ModelConfig


def load_stylegan2(path: str | Path, device: str | torch.device = "cpu") -> StyleGAN2:
    """Loads a .pkl file of stylegan2-ada-pytorch, or of stylegan3's StyleGAN2, from a path or URL.

    The file is read, never executed. `ema(z, label)` maps z [N, z_dim] and label [N] int64 (None for a network without
    classes) to images [N, C, R, R] of nominal range [-1, 1]. `truncation` and `noise` correspond to the official
    `truncation_psi` and `noise_mode`.

    Raises UserError, naming the file, if it is damaged, has unexpected content, or holds networks that
    `fastgan.models.stylegan2` does not support.
    """
    config, tensors = read_stylegan2(local_path(path)).load_state_dicts()
    networks = {name: build(name, config, tensors[name], device) if name in tensors else None for name in NETWORKS}
    networks["ema"].requires_grad_(False)
    return StyleGAN2(**networks, config=config)


def read_stylegan2(path: str | Path) -> Networks:
    """Reads a file for `load_stylegan2`. Raises UserError as it does."""
    content = unpickling.load(path)
    with unpickling.user_errors_for(path):
        modules = _modules(content)
        config = _generator_options(modules["ema"])
        ema = _renamed(modules["ema"], "ema", config, plain_networks(config)[0])

    def load_state_dicts() -> tuple[ModelConfig, dict[str, Tensors]]:
        with unpickling.user_errors_for(path):
            whole = (
                _with_discriminator_options(config, modules["discriminator"]) if "discriminator" in modules else config
            )
            tensors = {"ema": ema}
            for name, plain in zip(("generator", "discriminator"), plain_networks(whole), strict=True):
                if name in modules:
                    tensors[name] = _renamed(modules[name], name, whole, plain)
            return whole, tensors

    return Networks(config, ema, load_state_dicts)


def build(
    name: str, config: ModelConfig, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu"
) -> nn.Module:
    """Builds one of `NETWORKS`, in eval mode, with the given tensors."""
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: leave the RNG state alone
        network = _CLASSES[name](config)
    network.load_state_dict(dict(tensors))
    return network.to(device=device, memory_format=torch.channels_last).eval()


def official_state_dict(network: stylegan2.Generator | stylegan2.Discriminator) -> Tensors:
    """The official state dictionary of a generator or discriminator of `fastgan.models.stylegan2`.

    Names, shapes and constant filters fit the official `load_state_dict(..., strict=True)`. Tensors are contiguous
    copies on the CPU. Raises TypeError for another network, and ValueError for non-square images or tanh, which the
    official classes do not support.
    """
    if not isinstance(network, (stylegan2.Generator, stylegan2.Discriminator)):
        raise TypeError(f"official_state_dict: {type(network).__name__} is not a network of fastgan.models.stylegan2")
    own = network.state_dict()
    if isinstance(network, stylegan2.Generator):
        if network.synthesis.tanh:
            raise ValueError("the official networks have no tanh at the end; train with --tanh False for them")
        square = own["synthesis.const"].shape[1:] == (4, 4)
        filter = network.synthesis.upsample.filter
    else:
        square = own["dense.weight"].shape[1] == 16 * own["dense.weight"].shape[0]
        filter = network.blocks[0].down.resample_filter
    if not square:
        raise ValueError("the official networks support square images only")
    tensors = {}
    for name, official in official_names(network).items():
        value = own[name].detach().cpu()
        value = value[0, 0] if official.endswith("noise_const") else value
        tensors[official] = value.clone(memory_format=torch.contiguous_format)
    for place in _places_of_filters(network):
        tensors[f"{place}.resample_filter"] = _as_kept(filter.cpu() if _resamples(network, place) else taps())
    return tensors


def official_options(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Constructor arguments of the official classes, by the names of `NETWORKS`, nested as in stylegan2-ada.

    stylegan3's Generator takes the content of `synthesis_kwargs` beside the others.
    """
    image = {"c_dim": config.num_classes, "img_resolution": config.resolution, "img_channels": config.channels}
    filter = _as_list(config.resample_filter)
    precision = {"num_fp16_res": 0, "conv_clamp": config.conv_clamp}
    generator = {
        "z_dim": config.z_dim,
        "w_dim": config.style_dim,
        **image,
        "mapping_kwargs": {
            "num_layers": config.mapping_layers,
            "lr_multiplier": config.mapping_lr,
            "w_avg_beta": config.w_avg_decay,
        },
        "synthesis_kwargs": {
            "channel_base": config.channel_base,
            "channel_max": config.channel_max,
            **precision,
            "architecture": config.generator_architecture,
            "resample_filter": filter,
            "use_noise": config.noise,
        },
    }
    own = {"base": config.discriminator_channel_base, "max": config.discriminator_channel_max}
    discriminator = {
        **image,
        "architecture": config.discriminator_architecture,
        "channel_base": config.channel_base if own["base"] is None else own["base"],
        "channel_max": config.channel_max if own["max"] is None else own["max"],
        **precision,
        "block_kwargs": {"resample_filter": filter},
        "mapping_kwargs": {
            "num_layers": config.discriminator_mapping_layers,
            "lr_multiplier": config.projection_lr,
        },
        "epilogue_kwargs": {"mbstd_group_size": config.stddev_group, "mbstd_num_channels": config.stddev_features},
    }
    return {"generator": generator, "ema": generator, "discriminator": discriminator}


def _as_list(value: Any) -> Any:
    return [_as_list(each) for each in value] if isinstance(value, tuple) else value


def plain_networks(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator on the meta device. Raises ValueError for an invalid configuration."""
    try:
        with torch.device("meta"):
            return models.build(config)
    except ValueError as error:
        raise ValueError(f"has networks that fastgan does not support: {error}") from None


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


# ---- names ----------------------------------------------------------------------------------------------------------


def official_names(network: nn.Module) -> dict[str, str]:
    """Maps fastgan's name of every tensor to the official name."""
    places = dict(
        _generator_places(network) if isinstance(network, stylegan2.Generator) else _discriminator_places(network)
    )
    names = {}
    for name in network.state_dict():
        module, _, tensor = name.rpartition(".")
        names[name] = f"{places[module]}.{'noise_strength' if tensor == 'strength' else tensor}"
    return names


def _generator_places(generator: stylegan2.Generator) -> Iterator[tuple[str, str]]:
    """Pairs (fastgan's name, official name) of modules with tensors."""
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


def _places_of_filters(network: nn.Module) -> set[str]:
    """Official modules with a filter buffer: blocks and convolutions, whether they resample or not."""
    names = [name.rpartition(".")[0] for name in official_names(network).values()]
    convolutions = {name for name in names if name.rpartition(".")[2] in ("conv", "conv0", "conv1", "skip", "fromrgb")}
    blocks = {name.rpartition(".")[0] for name in convolutions}
    return convolutions | blocks - {"b4"}  # the discriminator's last block, which has no filter of its own


def _resamples(network: nn.Module, place: str) -> bool:
    """Whether an official module resamples. Modules that do not store the default filter."""
    layer = place.rpartition(".")[2]
    return layer not in (("conv1",) if isinstance(network, stylegan2.Generator) else ("conv0", "conv", "fromrgb"))


# ---- tensors --------------------------------------------------------------------------------------------------------


def _modules(content: Any) -> dict[str, unpickling.Module]:
    """The networks of a file, by the names of `NETWORKS`."""
    if not isinstance(content, dict) or not isinstance(content.get("G_ema"), unpickling.Module):
        raise ValueError("has no G_ema: it is not a network snapshot of stylegan2-ada-pytorch or stylegan3")
    modules = {name: content.get(official) for name, official in NETWORKS.items()}
    modules = {name: module for name, module in modules.items() if module is not None}
    for name, module in modules.items():
        if not isinstance(module, unpickling.Module):
            raise ValueError(f"has a {NETWORKS[name]} that is not a network")
    return modules


def _children(module: unpickling.Module) -> dict[str, unpickling.Module]:
    children = _table(module.state.get("_modules", {}))
    if not all(isinstance(name, str) and isinstance(child, unpickling.Module) for name, child in children.items()):
        raise ValueError("has a network whose submodules are not modules")
    return children


def _at(module: unpickling.Module, *path: str) -> unpickling.Module | None:
    for name in path:
        module = _children(module).get(name) if module is not None else None
    return module


def _table(value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError("has a network whose tensors or options are not in dictionaries")
    return value


def _tensors(module: unpickling.Module, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """All entries of the state dictionary; frozen layers keep their weights as buffers."""
    seen = set() if seen is None else seen
    if id(module) in seen or prefix.count(".") > 8:
        raise ValueError("has a network that contains itself, or one module twice")
    seen.add(id(module))
    for kind in ("_parameters", "_buffers"):
        for name, value in _table(module.state.get(kind, {})).items():
            if value is not None:
                if not isinstance(value, Tensor) or value.is_complex():
                    raise ValueError(f"has {prefix}{name}, which is not a real tensor")
                yield f"{prefix}{name}", value
    for name, child in _children(module).items():
        yield from _tensors(child, f"{prefix}{name}.", seen)


def _renamed(module: unpickling.Module, name: str, config: ModelConfig, plain: nn.Module) -> Tensors:
    """Renames tensors to fastgan's names. Raises ValueError unless they fit `plain`, a network on the meta device."""
    there = dict(_tensors(module))
    expected = _as_kept(taps(config.resample_filter))
    for key in [key for key in there if key.endswith("resample_filter")]:
        found = there.pop(key)
        if _resamples(plain, key.rpartition(".")[0]) and (
            found.shape != expected.shape or not torch.allclose(found.float(), expected, atol=1e-6)
        ):
            raise ValueError(
                f"has another filter in {NETWORKS[name]}.{key} than in G_ema; fastgan uses one filter everywhere"
            )
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    tensors = {}
    for own, official in official_names(plain).items():
        if official not in there:
            raise ValueError(f"lacks the tensor {NETWORKS[name]}.{official}")
        value = there.pop(official)
        shape = shapes[own][2:] if official.endswith("noise_const") else shapes[own]
        if value.shape != shape:
            found = f"{NETWORKS[name]}.{official} of shape {list(value.shape)}"
            raise ValueError(f"has {found}, but its options give {list(shape)}")
        tensors[own] = value.detach().reshape(shapes[own])
    if there:
        raise ValueError(f"has the tensor {NETWORKS[name]}.{min(there)}, which fastgan's StyleGAN2 does not have")
    return tensors


# ---- hyper-parameters -----------------------------------------------------------------------------------------------

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
    *("freeze_layers", "freeze_embed"),
})  # fmt: skip
_ONLY: dict[str, tuple[Any, ...]] = {"activation": ("lrelu",), "kernel_size": (3,)}  # only these values are supported
_MAX_TAPS = 64


class _Options:
    """The hyper-parameters of one network, flattened. Each getter removes its option; `finish` refuses the rest."""

    def __init__(self, network: str, module: unpickling.Module, groups: tuple[str, ...]):
        self.network = network
        values = module.state.get("_init_args", ())
        if not isinstance(values, tuple):
            raise ValueError(f"has options of {network} that are not a tuple")
        given = dict(zip(_POSITIONS[network], values, strict=False)) | _table(module.state.get("_init_kwargs", {}))
        self.is_nested = "synthesis_kwargs" in given
        nested = [_table(given.pop(group, {})) for group in groups]
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

    def filter(self, kept: Tensor | None) -> tuple:
        """The resampling filter: the option if it is a list, else the layers' buffer."""
        value = self.given.pop("resample_filter", [1, 3, 3, 1])
        if not isinstance(value, (list, tuple)):
            value = filter_of(kept) if kept is not None and kept.dim() in (1, 2) and kept.sum() != 0 else value
        right = f"must be a list of at most {_MAX_TAPS} numbers, or of lists of equal length, with a sum other than 0"
        wrong = self.wrong("resample_filter", value, right)
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
            raise self.wrong(str(name)[:40], self.given[name], "fastgan's StyleGAN2 does not have")


def _generator_options(ema: unpickling.Module) -> ModelConfig:
    """The configuration of the EMA generator. Raises ValueError if fastgan does not support it."""
    if _at(ema, "synthesis", "input") is not None:
        raise ValueError(
            "holds an alias-free generator of stylegan3 (stylegan3-t or stylegan3-r), which fastgan does not support; "
            "it reads the StyleGAN2 networks of that repository (--cfg=stylegan2)"
        )
    if _at(ema, "synthesis", "b4") is None:
        raise ValueError("has a G_ema that is not a StyleGAN2 (its synthesis network has no block b4)")
    options = _Options("G_ema", ema, ("mapping_kwargs", "synthesis_kwargs"))
    # Defaults: stylegan2-ada does not clamp activations; stylegan3, whose options are flat, clamps at 256.
    default_clamp, decay = (None, 0.995) if options.is_nested else (256, 0.998)
    config = _shared(options, _clamp(options, _at(ema, "synthesis", "b4", "conv1"), default_clamp))
    config["z_dim"] = options.whole("z_dim", least=1)
    width = options.whole("w_dim", least=1)
    config["w_dim"] = None if width == config["z_dim"] else width
    config["mapping_layers"] = options.whole("num_layers", 8, least=1, most=64)
    config["mapping_lr"] = options.number("lr_multiplier", 0.01)
    decay = _at(ema, "mapping").state.get("w_avg_beta", decay) if _at(ema, "mapping") is not None else decay
    config["w_avg_decay"] = options.number("w_avg_beta", decay, most=1)
    options.width_of_labels(width, config["num_classes"], config["mapping_layers"])
    config["generator_architecture"] = options.one_of("architecture", "skip", "resnet", "orig")
    config["noise"] = options.one_of("use_noise", True, False)
    layer = _at(ema, "synthesis", "b8", "conv0")
    kept = _table(layer.state.get("_buffers", {})).get("resample_filter") if layer is not None else None
    config["resample_filter"] = options.filter(kept if isinstance(kept, Tensor) else None)
    options.finish()
    return ModelConfig(arch="stylegan2", **config)


def _with_discriminator_options(config: ModelConfig, discriminator: unpickling.Module) -> ModelConfig:
    """Adds the discriminator's options; shared ones must equal the generator's."""
    options = _Options("D", discriminator, ("block_kwargs", "mapping_kwargs", "epilogue_kwargs"))
    own = _shared(options, _clamp(options, _at(discriminator, "b4", "conv"), config.conv_clamp))
    for name in ("resolution", "channels", "num_classes", "conv_clamp"):
        if own[name] != getattr(config, name):
            raise ValueError(
                f"has {name} {own[name]} in D and {getattr(config, name)} in G_ema; fastgan has one value for both"
            )
    options.given.pop("resample_filter", None)  # `_renamed` compares the layers' filters with the generator's
    found = {
        f"discriminator_{name}": None if own[name] == getattr(config, name) else own[name]
        for name in ("channel_base", "channel_max")
    }
    found["discriminator_architecture"] = options.one_of("architecture", "resnet", "skip", "orig")
    rate = options.number("lr_multiplier", 0.01)
    found["discriminator_mapping_lr"] = None if rate == config.mapping_lr else rate
    layers = options.whole("num_layers", 8, most=64)
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


def _shared(options: _Options, clamp: float | None) -> dict[str, Any]:
    return {
        "resolution": options.whole("img_resolution", least=1),
        "channels": options.whole("img_channels", least=1),
        "num_classes": options.whole("c_dim", 0),
        "channel_base": options.whole("channel_base", 32768, least=1),
        "channel_max": options.whole("channel_max", 512, least=1),
        "conv_clamp": clamp,
    }


def _clamp(options: _Options, layer: unpickling.Module | None, default: float | None) -> float | None:
    """The clamp of activations: the layer's value if there is one, else the option."""
    value = options.given.pop("conv_clamp", default)
    if layer is not None:
        value = layer.state.get("conv_clamp", value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9):
        raise options.wrong("conv_clamp", value, "must be a number above 0, or None")
    return None if value is None else float(value)
