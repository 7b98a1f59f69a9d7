"""The StyleGAN2 networks of stylegan2-ada-pytorch and stylegan3 (.pkl) as fastgan's, and back to their names.

Both repositories have the same networks, with the same names of tensors; they differ in where the hyper-parameters
stand: stylegan2-ada keeps those of the synthesis network in `synthesis_kwargs`, stylegan3 among the others. Semantics
are those of `fastgan.models.stylegan2`, configured; what it does not contain is refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import models
from fastgan.errors import UserError
from fastgan.interop import unpickling
from fastgan.models import ModelConfig, stylegan2
from fastgan.ops.upfirdn2d import taps

NETWORKS = {"generator": "G", "ema": "G_ema", "critic": "D"}  # by the names fastgan has for them
_CLASSES = {"generator": stylegan2.Generator, "ema": stylegan2.Generator, "critic": stylegan2.Critic}


@dataclass(frozen=True)
class StyleGAN2:
    """What a file held; networks are in eval mode, in fp32.

    Attributes:
        ema: the averaged generator (`G_ema`), without gradients; images are drawn by it.
        generator: the one that was trained (`G`); None if the file has none.
        critic: (`D`); None if the file has none.
        config: what determines the shape of all three.
    """

    ema: stylegan2.Generator
    generator: stylegan2.Generator | None
    critic: stylegan2.Critic | None
    config: ModelConfig


def load_stylegan2(path: str | Path, device: str | torch.device = "cpu") -> StyleGAN2:
    """The networks of a .pkl file of stylegan2-ada-pytorch, or of stylegan3's StyleGAN2 configurations.

    The file is read, never executed. `ema(z, label)` maps z [N, z_dim] and label [N] int64 (None for a network without
    classes) to images [N, C, R, R] of nominal range [-1, 1]; `truncation` and `noise` are what `truncation_psi` and
    `noise_mode` are there.

    Raises UserError, naming the file, if it is damaged, holds anything that these networks have no use for, or networks
    that `fastgan.models.stylegan2` does not contain.
    """
    config, tensors = read_stylegan2(path)
    networks = {name: build(name, config, tensors[name], device) if name in tensors else None for name in NETWORKS}
    networks["ema"].requires_grad_(False)
    return StyleGAN2(**networks, config=config)


def read_stylegan2(path: str | Path) -> tuple[ModelConfig, dict[str, dict[str, Tensor]]]:
    """What `load_stylegan2` makes networks of: for each of `NETWORKS` that is there, its tensors by fastgan's names.

    They have been checked to be those of a network of that configuration. Raises UserError as it does.
    """
    content = unpickling.load(path)
    try:
        modules = _modules(content)
        config = _configuration(modules)
        generator, critic = _without_memory(config)
        plain = {"generator": generator, "ema": generator, "critic": critic}
        return config, {name: _renamed(module, name, plain[name]) for name, module in modules.items()}
    except ValueError as error:
        raise UserError(f"{path} {unpickling.shown(str(error))}") from None


def build(
    name: str, config: ModelConfig, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu"
) -> nn.Module:
    """One of `NETWORKS`, in eval mode, out of what `read_stylegan2` returned."""
    with torch.random.fork_rng(devices=[]):  # what it is filled with first is of no interest
        network = _CLASSES[name](config)
    network.load_state_dict(dict(tensors))
    return network.to(device=device, memory_format=torch.channels_last).eval()


def official_state_dict(network: stylegan2.Generator | stylegan2.Critic) -> dict[str, Tensor]:
    """The state dictionary that the official class has, for any generator or critic of `fastgan.models.stylegan2`.

    Names, shapes and the constant filters are those that `load_state_dict(..., strict=True)` there asks for. Tensors
    are contiguous copies on the CPU. Raises TypeError for another network, and ValueError for one of images that are
    not square, which the official classes do not know.
    """
    if not isinstance(network, (stylegan2.Generator, stylegan2.Critic)):
        raise TypeError(f"official_state_dict: {type(network).__name__} is no network of fastgan.models.stylegan2")
    own = network.state_dict()
    if isinstance(network, stylegan2.Generator):
        square = own["synthesis.const"].shape[1:] == (4, 4)
    else:
        square = own["dense.weight"].shape[1] == 16 * own["dense.weight"].shape[0]
    if not square:
        raise ValueError("official_state_dict: the official networks know square images only")
    tensors = {}
    for name, official in _names(network).items():
        value = own[name].detach().cpu()
        value = value[0, 0] if official.endswith("noise_const") else value
        tensors[official] = value.clone(memory_format=torch.contiguous_format)
    return tensors | {f"{place}.resample_filter": _filter() for place in _places_of_filters(network)}


def _without_memory(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    try:
        with torch.device("meta"):
            return models.build(config)
    except ValueError as error:
        raise ValueError(f"has networks that fastgan does not contain: {error}") from None


def _filter() -> Tensor:
    return torch.outer(taps(), taps())


# ---- names ----------------------------------------------------------------------------------------------------------


def _names(network: nn.Module) -> dict[str, str]:
    """fastgan's name of every tensor to the official one."""
    places = dict(_generator_places(network) if isinstance(network, stylegan2.Generator) else _critic_places(network))
    names = {}
    for name in network.state_dict():
        module, _, tensor = name.rpartition(".")
        names[name] = f"{places[module]}.{'noise_strength' if tensor == 'strength' else tensor}"
    return names


def _generator_places(generator: stylegan2.Generator) -> Iterator[tuple[str, str]]:
    """fastgan's name of every module that has tensors, and the official one."""
    yield "mapping", "mapping"
    yield "mapping.embed", "mapping.embed"
    for i in range(len(generator.mapping.layers)):
        yield f"mapping.layers.{i}", f"mapping.fc{i}"
    yield "synthesis", "synthesis.b4"
    layers = [("first", "b4.conv1")]
    for i in range(len(generator.synthesis.up)):
        layers += [(f"up.{i}", f"b{8 << i}.conv0"), (f"same.{i}", f"b{8 << i}.conv1")]
    layers += [(f"to_rgb.{i}", f"b{4 << i}.torgb") for i in range(len(generator.synthesis.to_rgb))]
    for own, official in layers:
        for part in ("", ".conv", ".epilogue"):
            yield f"synthesis.{own}{part}", f"synthesis.{official}"
        yield f"synthesis.{own}.affine", f"synthesis.{official}.affine"


def _critic_places(critic: stylegan2.Critic) -> Iterator[tuple[str, str]]:
    resolution = 4 << len(critic.blocks)
    yield "from_rgb", f"b{resolution}.fromrgb"
    for i in range(len(critic.blocks)):
        for own, official in (("conv", "conv0"), ("down", "conv1"), ("skip", "skip")):
            yield f"blocks.{i}.{own}", f"b{resolution >> i}.{official}"
    yield from (("conv", "b4.conv"), ("dense", "b4.fc"), ("out", "b4.out"), ("embed", "mapping.embed"))
    for i in range(len(critic.directions)):
        yield f"directions.{i}", f"mapping.fc{i}"


def _places_of_filters(network: nn.Module) -> set[str]:
    """The modules of the official network that keep the filter, whether they resample or not: blocks, convolutions."""
    names = [name.rpartition(".")[0] for name in _names(network).values()]
    convolutions = {name for name in names if name.rpartition(".")[2] in ("conv", "conv0", "conv1", "skip", "fromrgb")}
    blocks = {name.rpartition(".")[0] for name in convolutions}
    return convolutions | blocks - {"b4"}  # the critic's last block, which has no filter of its own


# ---- tensors --------------------------------------------------------------------------------------------------------


def _modules(content: Any) -> dict[str, unpickling.Module]:
    """Those of `NETWORKS` that are there."""
    if not isinstance(content, dict) or not isinstance(content.get("G_ema"), unpickling.Module):
        raise ValueError("holds no G_ema: it is not a network snapshot of stylegan2-ada-pytorch or stylegan3")
    modules = {name: content.get(official) for name, official in NETWORKS.items()}
    modules = {name: module for name, module in modules.items() if module is not None}
    for name, module in modules.items():
        if not isinstance(module, unpickling.Module):
            raise ValueError(f"has a {NETWORKS[name]} that is no network")
    return modules


def _children(module: unpickling.Module) -> dict[str, unpickling.Module]:
    children = _table(module.state.get("_modules", {}))
    if not all(isinstance(name, str) and isinstance(child, unpickling.Module) for name, child in children.items()):
        raise ValueError("has a network whose parts are no modules")
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
    """Everything in the state dictionary; frozen layers have their weights among the buffers."""
    seen = set() if seen is None else seen
    if id(module) in seen or prefix.count(".") > 8:
        raise ValueError("has a network that contains itself, or one module twice")
    seen.add(id(module))
    for kind in ("_parameters", "_buffers"):
        for name, value in _table(module.state.get(kind, {})).items():
            if value is not None:
                if not isinstance(value, Tensor):
                    raise ValueError(f"has something else than a tensor in {prefix}{name}")
                yield f"{prefix}{name}", value
    for name, child in _children(module).items():
        yield from _tensors(child, f"{prefix}{name}.", seen)


def _renamed(module: unpickling.Module, name: str, plain: nn.Module) -> dict[str, Tensor]:
    """Tensors by fastgan's names. Raises ValueError unless they are those of `plain`, a network without memory."""
    there = dict(_tensors(module))
    for key in [key for key in there if key.endswith("resample_filter")]:
        found = there.pop(key)
        if found.shape != (4, 4) or not torch.allclose(found.float(), _filter(), atol=1e-6):
            raise ValueError(f"has another filter than [1, 3, 3, 1] in {NETWORKS[name]}.{key}, which fastgan lacks")
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    tensors = {}
    for own, official in _names(plain).items():
        if official not in there:
            raise ValueError(f"lacks the tensor {NETWORKS[name]}.{official}")
        value = there.pop(official)
        shape = shapes[own][2:] if official.endswith("noise_const") else shapes[own]
        if value.shape != shape:
            shown = f"{NETWORKS[name]}.{official} of shape {list(value.shape)}"
            raise ValueError(f"has {shown}, which its options make {list(shape)}")
        tensors[own] = value.detach().reshape(shapes[own])
    if there:
        raise ValueError(f"has the tensor {NETWORKS[name]}.{min(there)}, which fastgan's StyleGAN2 does not know")
    return tensors


# ---- hyper-parameters -----------------------------------------------------------------------------------------------

# What the official constructors call their arguments, where these were given without their names.
_POSITIONS = {
    "G_ema": ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs"),
    "D": (
        *("c_dim", "img_resolution", "img_channels", "architecture", "channel_base", "channel_max", "num_fp16_res"),
        *("conv_clamp", "cmap_dim", "block_kwargs", "mapping_kwargs", "epilogue_kwargs"),
    ),
}
# What does not change the numbers: speed, precision (that of fastgan is its caller's), and what training does.
_WITHOUT_EFFECT = frozenset({
    *("num_fp16_res", "use_fp16", "fp16_channels_last", "channels_last", "fused_modconv_default"),
    *("w_avg_beta", "freeze_layers", "freeze_embed"),
})  # fmt: skip
# What is contained in one form only.
_ONLY: dict[str, tuple[Any, ...]] = {
    "activation": ("lrelu",),
    "resample_filter": ([1, 3, 3, 1], (1, 3, 3, 1)),
    "kernel_size": (3,),
    "use_noise": (True,),
}


class _Options:
    """The hyper-parameters of one network, flat, taken one by one; what is left over has no meaning here."""

    def __init__(self, network: str, module: unpickling.Module, groups: tuple[str, ...]):
        self.network = network
        values = module.state.get("_init_args", ())
        if not isinstance(values, tuple):
            raise ValueError(f"has options of {network} that are no tuple")
        given = dict(zip(_POSITIONS[network], values, strict=False)) | _table(module.state.get("_init_kwargs", {}))
        self.is_nested = "synthesis_kwargs" in given
        nested = [_table(given.pop(group, {})) for group in groups]
        self.given: dict[str, Any] = {}
        for name, value in [item for group in (given, *nested) for item in group.items()]:
            if name in self.given:
                raise self.wrong(name, value, "is given twice")
            if name not in _WITHOUT_EFFECT:
                self.given[name] = value
            if name in _ONLY:  # may be given for several parts
                self.one_of(name, *_ONLY[name])

    def wrong(self, name: str, value: Any, why: str) -> ValueError:
        shown = value if isinstance(value, (str, int, float)) or value is None else f"a {type(value).__name__}"
        return ValueError(f"has {self.network} with {name} {str(shown)[:40]}, which {why}")

    def whole(self, name: str, default: int | None = None, least: int = 0, most: int = 2**20) -> int:
        """A whole number."""
        value = self.given.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, value, f"must be a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.given.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise self.wrong(name, value, "must be a number above 0")
        return float(value)

    def one_of(self, name: str, *contained: Any) -> Any:
        """An option of which fastgan contains these values; the first is the default."""
        value = self.given.pop(name, contained[0])
        if not any(type(value) is type(each) and value == each for each in contained):
            raise self.wrong(name, value, f"fastgan does not contain; it has {' and '.join(map(str, contained))}")
        return value

    def finish(self) -> None:
        """Refuse what nobody asked for."""
        for name in self.given:
            raise self.wrong(str(name)[:40], self.given[name], "fastgan's StyleGAN2 does not know")


def _configuration(modules: dict[str, unpickling.Module]) -> ModelConfig:
    """That of all networks, which must agree. Raises ValueError for what fastgan does not contain."""
    ema, critic = modules["ema"], modules.get("critic")
    if _at(ema, "synthesis", "b4") is None:
        raise ValueError("has a G_ema that is no StyleGAN2 (its synthesis network has no block b4)")
    options = _Options("G_ema", ema, ("mapping_kwargs", "synthesis_kwargs"))
    # stylegan2-ada limits activations only if told to; stylegan3, whose options are flat, unless told not to.
    default_clamp = None if options.is_nested else 256
    width = options.whole("z_dim", least=1)
    for name in ("w_dim", "embed_features", "layer_features"):
        options.one_of(name, width, *([] if name == "w_dim" else [None]))
    options.one_of("architecture", "skip")
    shared = _shared(options, _clamp(options, _at(ema, "synthesis", "b4", "conv1"), default_clamp))
    shared["mapping_lr"] = options.number("lr_multiplier", 0.01)
    config = shared | {"z_dim": width, "mapping_layers": options.whole("num_layers", 8, least=1, most=64)}
    options.finish()
    if critic is not None:
        config |= _critic_options(critic, shared, default_clamp)
    return ModelConfig(arch="stylegan2", **config)


def _critic_options(critic: unpickling.Module, shared: dict[str, Any], default_clamp: float | None) -> dict[str, Any]:
    """What only the critic has; the rest must be as in the generator."""
    options = _Options("D", critic, ("block_kwargs", "mapping_kwargs", "epilogue_kwargs"))
    config = {"residual_critic": options.one_of("architecture", "resnet", "orig") == "resnet"}
    own = _shared(options, _clamp(options, _at(critic, "b4", "conv"), default_clamp))
    own["mapping_lr"] = options.number("lr_multiplier", 0.01) if own["num_classes"] else shared["mapping_lr"]
    options.given.pop("lr_multiplier", None)
    for name, value in own.items():
        if value != shared[name]:
            raise ValueError(f"has {name} {value} in D and {shared[name]} in G_ema; fastgan has one for both")
    width = min(own["channel_base"] // 4, own["channel_max"])
    for name, contained in (("cmap_dim", width), ("embed_features", width), ("layer_features", width)):
        options.one_of(name, None, contained, *([] if own["num_classes"] else [0]))
    layers = options.whole("num_layers", 8, most=64)
    config["critic_mapping_layers"] = layers if own["num_classes"] else 0
    config["stddev_group"] = options.whole("mbstd_group_size", 4, least=1)
    config["stddev_features"] = options.whole("mbstd_num_channels", 1)
    options.finish()
    return config


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
    """The limit of activations: as the layer has it, else as the options have it."""
    value = options.given.pop("conv_clamp", default)
    if layer is not None:
        value = layer.state.get("conv_clamp", value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9):
        raise options.wrong("conv_clamp", value, "must be a number above 0, or None")
    return None if value is None else float(value)
