"""Writes pickles for stylegan2-ada-pytorch and stylegan3; `fastgan.interop.unpickling` reads them.

That code stores the Python source of a network's class with the network, and runs it to load the file. Its own source
may not be redistributed. `SOURCE` takes its place: where the file is read, it builds the network with the official
class found there. The loaded network is an instance of that class, and is saved again as such.
"""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastgan.interop.official import NETWORKS, Tensors, build, official_arguments, official_names, official_state_dict
from fastgan.models import ModelConfig

SOURCE = '''"""Written by fastgan. Builds networks with the classes of the official repository that reads this file."""

import importlib
import inspect


def official_class(name, places):
    for place in places:
        try:
            return getattr(importlib.import_module(place), name)
        except ModuleNotFoundError as error:
            if error.name not in (place, "training"):
                raise
    raise ImportError("this file needs the code of stylegan2-ada-pytorch or stylegan3: run it there, or set PYTHONPATH")


def takes_synthesis_kwargs(network):
    own = [inspect.signature(each.__init__).parameters for each in network.__mro__ if "__init__" in vars(each)]
    found = [parameters["synthesis_kwargs"] for parameters in own if "synthesis_kwargs" in parameters]
    return any(parameter.kind is not parameter.VAR_KEYWORD for parameter in found)


def tensors_of(state, prefix=""):
    for kind in ("_parameters", "_buffers"):
        for name, value in state[kind].items():
            yield prefix + name, value
    for name, part in state["_modules"].items():
        yield from tensors_of(vars(part), prefix + name + ".")


class Part:
    """A submodule: holds its tensors until the network is built."""


class Generator:
    name, places = "Generator", ("training.networks_stylegan2", "training.networks")  # stylegan3, stylegan2-ada-pytorch

    def __setstate__(self, state):
        network = official_class(self.name, self.places)
        options = dict(state["_init_kwargs"])
        if not takes_synthesis_kwargs(network):
            options.update(options.pop("synthesis_kwargs", {}))
        made = network(**options).eval().requires_grad_(False)
        made.load_state_dict(dict(tensors_of(state)))
        self.__class__, self.__dict__ = made.__class__, made.__dict__


class AliasFreeGenerator(Generator):
    places = ("training.networks_stylegan3",)


class Discriminator(Generator):
    name = "Discriminator"
'''


@dataclass
class _Module:
    """A module as a file stores it."""

    class_name: str
    parameters: Tensors = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)
    modules: dict[str, "_Module"] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def at(self, path: list[str]) -> "_Module":
        """The submodule at a path, created if missing."""
        return self if not path else self.modules.setdefault(path[0], _Module("Part")).at(path[1:])

    def described(self) -> dict[str, Any]:
        state = {
            "training": False,
            "_parameters": self.parameters,
            "_buffers": self.buffers,
            "_non_persistent_buffers_set": set(),
            "_modules": self.modules,
            "_init_args": (),
            "_init_kwargs": self.options,
        }
        return {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": state}


class _Pickler(pickle._Pickler):
    """Writes calls of a function that cannot be imported here; Python's own pickler refuses them."""

    def save_module(self, module: _Module) -> None:
        self.save("torch_utils.persistence")
        self.save("_reconstruct_persistent_obj")
        self.write(pickle.STACK_GLOBAL)
        self.save((module.described(),))
        self.write(pickle.REDUCE)

    dispatch = pickle._Pickler.dispatch | {_Module: save_module}


def to_bytes(config: ModelConfig, tensors: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """Returns the content of a .pkl file with G, D and G_ema, which the official code can load and train.

    `tensors` holds "generator", "discriminator" and "ema". Raises ValueError if one is missing, or if the networks are
    not of square images.
    """
    if missing := [official for name, official in NETWORKS.items() if name not in tensors]:
        raise ValueError(f"{' and '.join(missing)} missing: the official code loads all three networks only")
    content: dict[str, Any] = {"training_set_kwargs": None, "augment_pipe": None}
    arguments = official_arguments(config)
    generator = "AliasFreeGenerator" if config.arch == "stylegan3" else "Generator"
    for name, official in NETWORKS.items():
        network = build(name, config, tensors[name])
        class_name = "Discriminator" if name == "discriminator" else generator
        content[official] = _described(network, class_name, arguments[name])
    file = io.BytesIO()
    _Pickler(file, protocol=4).dump(content)
    return file.getvalue()


def _described(network: nn.Module, class_name: str, options: dict[str, Any]) -> _Module:
    described, names = _Module(class_name, options=options), official_names(network)
    parameters = {names[name] for name, _ in network.named_parameters()}
    for name, value in official_state_dict(network).items():
        *path, last = name.split(".")
        module = described.at(path)
        if name in parameters:
            module.parameters[last] = nn.Parameter(value, requires_grad=False)
        else:
            module.buffers[last] = value
    return described
