"""Networks of stylegan2-ada-pytorch and stylegan3: StyleGAN2, StyleGAN3, and the discriminator that both have.

Reads their .pkl files, and gives fastgan's networks back under official names. Networks that fastgan's families do not
support are refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import models
from fastgan.data.urls import local_path
from fastgan.interop import described, stylegan2, stylegan3, unpickling
from fastgan.models import ARCHITECTURES, ModelConfig

NETWORKS = {"generator": "G", "ema": "G_ema", "discriminator": "D"}  # fastgan's name -> official name
FAMILIES = {"stylegan2": stylegan2, "stylegan3": stylegan3}  # by ModelConfig.arch
_GENERATORS = tuple(ARCHITECTURES[arch].Generator for arch in FAMILIES)
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
class OfficialNetworks:
    """The networks of a file, in eval mode and fp32.

    Attributes:
        ema: the EMA generator (`G_ema`), without gradients; it draws the images.
        generator: the trained generator (`G`), or None if the file has none.
        discriminator: `D`, or None if the file has none.
        config: configuration of all three; `arch` is "stylegan2" or "stylegan3".
    """

    ema: models.stylegan2.Generator | models.stylegan3.Generator
    generator: models.stylegan2.Generator | models.stylegan3.Generator | None
    discriminator: models.stylegan2.Discriminator | None
    config: ModelConfig


def load_official(path: str | Path, device: str | torch.device = "cpu") -> OfficialNetworks:
    """Loads a .pkl file of stylegan2-ada-pytorch or stylegan3, from a path or URL.

    The file is read, never executed. `ema(z, label)` maps z [N, z_dim] and label [N] int64 (None for a network without
    classes) to images [N, C, R, R] of nominal range [-1, 1]. `truncation` and `noise` correspond to the official
    `truncation_psi` and `noise_mode`; StyleGAN3 has no noise.

    Raises UserError, naming the file, if it is damaged, has unexpected content, or holds networks that
    `fastgan.models.stylegan2` and `stylegan3` do not support.
    """
    config, tensors = read_official(local_path(path)).load_state_dicts()
    networks: dict[str, Any] = {
        name: build(name, config, tensors[name], device) if name in tensors else None for name in NETWORKS
    }
    networks["ema"].requires_grad_(False)
    return OfficialNetworks(**networks, config=config)


def read_official(path: str | Path) -> Networks:
    """Reads a file for `load_official`. Raises UserError as it does."""
    content = unpickling.load(path)
    with unpickling.user_errors_for(path):
        modules = _modules(content)
        config = _family(modules["ema"]).generator_config(modules["ema"])
        ema = _renamed(modules["ema"], "ema", config, plain_networks(config)[0])

    def load_state_dicts() -> tuple[ModelConfig, dict[str, Tensors]]:
        with unpickling.user_errors_for(path):
            whole = (
                stylegan2.with_discriminator(config, modules["discriminator"]) if "discriminator" in modules else config
            )
            tensors = {"ema": ema}
            for name, plain in zip(("generator", "discriminator"), plain_networks(whole), strict=True):
                if name in modules:
                    tensors[name] = _renamed(modules[name], name, whole, plain)
            return whole, tensors

    return Networks(config, ema, load_state_dicts)


def _family(ema: unpickling.Module) -> Any:
    """The module of the EMA generator's family."""
    if described.at(ema, "synthesis", "input") is not None:
        return stylegan3
    if described.at(ema, "synthesis", "b4") is not None:
        return stylegan2
    raise ValueError(
        "has a G_ema that is not a StyleGAN2 or StyleGAN3 (its synthesis network has neither a block b4 nor an input)"
    )


def build(
    name: str, config: ModelConfig, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu"
) -> nn.Module:
    """Builds one of `NETWORKS`, in eval mode, with the given tensors."""
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: leave the RNG state alone
        family = ARCHITECTURES[config.arch]
        network = (family.Discriminator if name == "discriminator" else family.Generator)(config)
    network.load_state_dict(dict(tensors))
    return network.to(device=device, memory_format=torch.channels_last).eval()


def official_state_dict(network: nn.Module) -> Tensors:
    """The official state dictionary of a generator or discriminator of `fastgan.models.stylegan2` or `stylegan3`.

    Names, shapes and constant filters fit the official `load_state_dict(..., strict=True)`. Tensors are contiguous
    copies on the CPU. Raises TypeError for another network, and ValueError for non-square images, tanh or pixel
    shuffling, which the official classes do not support.
    """
    if not isinstance(network, (*_GENERATORS, models.stylegan2.Discriminator)):
        raise TypeError(
            f"official_state_dict: {type(network).__name__} is not a network of fastgan.models.stylegan2 or stylegan3"
        )
    own = network.state_dict()
    if isinstance(network, _GENERATORS) and network.synthesis.tanh:
        raise ValueError("the official networks have no tanh at the end; train with --tanh False for them")
    if getattr(network, "pixel_shuffle", False):
        raise ValueError("the official networks have no pixel shuffle; train with --pixel-shuffle False for them")
    const, dense = own.get("synthesis.const"), own.get("dense.weight")  # StyleGAN3's generator has neither
    wide = const is not None and const.shape[1:] != (4, 4)
    if wide or (dense is not None and dense.shape[1] != 16 * dense.shape[0]):
        raise ValueError("the official networks support square images only")
    tensors = {}
    for name, official in official_names(network).items():
        value = own[name].detach().cpu()
        value = value[0, 0] if official.endswith("noise_const") else value
        tensors[official] = value.clone(memory_format=torch.contiguous_format)
    return tensors | _family_of(network).filters(network)


def official_arguments(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Constructor arguments of the official classes, by the names of `NETWORKS`."""
    generator = FAMILIES[config.arch].generator_arguments(config)
    return {"generator": generator, "ema": generator, "discriminator": stylegan2.discriminator_arguments(config)}


def plain_networks(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator on the meta device. Raises ValueError for an invalid configuration."""
    try:
        with torch.device("meta"):
            return models.build(config)
    except ValueError as error:
        raise ValueError(f"has networks that fastgan does not support: {error}") from None


def official_names(network: nn.Module) -> dict[str, str]:
    """Maps fastgan's name of every tensor to the official name."""
    places, names = dict(_family_of(network).places(network)), {}
    for name in network.state_dict():
        module, _, tensor = name.rpartition(".")
        names[name] = f"{places[module]}.{'noise_strength' if tensor == 'strength' else tensor}"
    return names


def _family_of(network: nn.Module) -> Any:
    return stylegan3 if isinstance(network, models.stylegan3.Generator) else stylegan2


def _modules(content: Any) -> dict[str, unpickling.Module]:
    """The networks of a file, by the names of `NETWORKS`."""
    if not isinstance(content, dict) or not isinstance(content.get("G_ema"), unpickling.Module):
        raise ValueError("has no G_ema: it is not a network snapshot of stylegan2-ada-pytorch or stylegan3")
    modules: dict[str, Any] = {name: content.get(official) for name, official in NETWORKS.items()}
    modules = {name: module for name, module in modules.items() if module is not None}
    for name, module in modules.items():
        if not isinstance(module, unpickling.Module):
            raise ValueError(f"has a {NETWORKS[name]} that is not a network")
    return modules


def _renamed(module: unpickling.Module, name: str, config: ModelConfig, plain: nn.Module) -> Tensors:
    """Renames tensors to fastgan's names. Raises ValueError unless they fit `plain`, a network on the meta device."""
    there = dict(described.tensors(module))
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
    for key, expected in _family_of(plain).used_filters(plain, config).items():
        found = there.pop(key, expected)
        if found.shape != expected.shape or not torch.allclose(found.float(), expected, atol=1e-6):
            raise ValueError(f"has another filter in {NETWORKS[name]}.{key} than the options of G_ema give")
    unknown = [key for key in there if not key.endswith("resample_filter")]  # others of these have no effect
    if unknown:
        raise ValueError(f"has the tensor {NETWORKS[name]}.{min(unknown)}, which fastgan's {config.arch} does not have")
    return tensors
