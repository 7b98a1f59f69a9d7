"""Files as rosinality/stylegan2-pytorch writes them: names and shapes from tables, and their official names."""

import argparse
import io
from collections.abc import Iterator

import torch
from torch import Tensor

from tests.support.official import FILTER, Sizes

State = dict[str, Tensor]


def _dense(name: str, i: int, o: int, lr: float = 1.0, bias: float = 0.0) -> State:
    return {f"{name}.weight": torch.randn(o, i) / lr, f"{name}.bias": (bias + 0.3 * torch.randn(o)) / lr}


def _modulated(name: str, s: Sizes, i: int, o: int, k: int) -> State:
    return {f"{name}.weight": torch.randn(1, o, i, k, k)} | _dense(f"{name}.modulation", s.z_dim, i, bias=1.0)


def _styled(name: str, s: Sizes, i: int, o: int) -> State:
    own = {f"{name}.noise.weight": torch.randn(1), f"{name}.activate.bias": torch.randn(o)}
    return _modulated(f"{name}.conv", s, i, o, 3) | own


def _rgb(name: str, s: Sizes, i: int) -> State:
    return _modulated(f"{name}.conv", s, i, 3, 1) | {f"{name}.bias": torch.randn(1, 3, 1, 1)}


def generator(s: Sizes) -> State:
    c = s.width(4)
    state = {"input.input": torch.randn(1, c, 4, 4)}
    for i in range(s.num_layers):
        state |= _dense(f"style.{i + 1}", s.z_dim, s.z_dim, s.lr_multiplier)
    state |= _styled("conv1", s, c, c) | _rgb("to_rgb1", s, c) | {"noises.noise_0": torch.randn(1, 1, 4, 4)}
    for n, r in enumerate(s.resolutions[1:]):
        before, c = c, s.width(r)
        state |= _styled(f"convs.{2 * n}", s, before, c) | _styled(f"convs.{2 * n + 1}", s, c, c)
        state |= {f"convs.{2 * n}.conv.blur.kernel": 4 * FILTER, f"to_rgbs.{n}.upsample.kernel": 4 * FILTER}
        state |= _rgb(f"to_rgbs.{n}", s, c)
        state |= {f"noises.noise_{2 * n + more}": torch.randn(1, 1, r, r) for more in (1, 2)}
    return state


def _conv(name: str, i: int, o: int, k: int, at: int = 0) -> State:
    return {f"{name}.{at}.weight": torch.randn(o, i, k, k), f"{name}.{at + 1}.bias": torch.randn(o)}


def discriminator(s: Sizes) -> State:
    state = _conv("convs.0", 3, s.width(s.img_resolution), 1)
    for n, r in enumerate(s.resolutions[:0:-1]):
        i, o, name = s.width(r), s.width(r // 2), f"convs.{n + 1}"
        state |= _conv(f"{name}.conv1", i, i, 3) | _conv(f"{name}.conv2", i, o, 3, at=1)
        state |= {f"{name}.conv2.0.kernel": FILTER, f"{name}.skip.0.kernel": FILTER}
        state |= {f"{name}.skip.1.weight": torch.randn(o, i, 1, 1)}
    c = s.width(4)
    state |= _conv("final_conv", c + 1, c, 3)
    return state | _dense("final_linear.0", 16 * c, c) | _dense("final_linear.1", c, 1)


def checkpoint(s: Sizes) -> dict:
    """Checkpoint of that code, and the mean of w that its converter adds."""
    torch.manual_seed(0)
    return {
        "g": generator(s),
        "d": discriminator(s),
        "g_ema": generator(s),
        "g_optim": {"state": {0: {"step": 1, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.002}]},
        "args": argparse.Namespace(size=s.img_resolution, r1=10.0),
        "ada_aug_p": 0.0,
        "latent_avg": torch.randn(s.z_dim),
    }


def saved(content: dict, archive: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


def _official(name: str) -> Iterator[str]:
    """Official name of a generator's tensor; nothing if the official code lacks the tensor."""
    first, _, rest = name.partition(".")
    if first == "style":
        number, _, last = rest.partition(".")
        yield f"mapping.fc{int(number) - 1}.{last}"
    elif first == "input":
        yield "synthesis.b4.const"
    elif first == "noises":
        number = int(rest.removeprefix("noise_"))
        yield f"{_layer(number)}.noise_const"
    elif not name.endswith("kernel"):
        if first in ("convs", "to_rgbs"):
            number, _, rest = rest.partition(".")
        place = {
            "conv1": lambda: _layer(0),
            "convs": lambda: _layer(int(number) + 1),
            "to_rgb1": lambda: "synthesis.b4.torgb",
            "to_rgbs": lambda: f"synthesis.b{8 << int(number)}.torgb",
        }[first]()
        for theirs, official in (
            ("conv.modulation", "affine"),
            ("conv.weight", "weight"),
            ("noise.weight", "noise_strength"),
            ("activate.bias", "bias"),
        ):
            rest = rest.replace(theirs, official)
        yield f"{place}.{rest}"


def _layer(number: int) -> str:
    """Official prefix of a layer with noise. `number` counts these layers from the input."""
    return f"synthesis.b{4 << (number + 1) // 2}.conv{(number + 1) % 2}" if number else "synthesis.b4.conv1"


def official_generator(state: State, mean: Tensor) -> State:
    """Generator state under the official names and shapes, for `tests.support.official.image_of`."""
    found = {official: value for name, value in state.items() for official in _official(name)}
    for name, value in found.items():
        if name.endswith("noise_const"):
            found[name] = value[0, 0]
        elif name.endswith("noise_strength") or name == "synthesis.b4.const" or value.dim() == 5:
            found[name] = value[0]
        elif value.dim() == 4:
            found[name] = value.flatten()
    return found | {"mapping.w_avg": mean}


def official_discriminator(state: State, s: Sizes) -> State:
    names = {"final_conv.0.weight": "b4.conv.weight", "final_conv.1.bias": "b4.conv.bias"}
    names |= {"convs.0.0.weight": f"b{s.img_resolution}.fromrgb.weight"}
    names |= {"convs.0.1.bias": f"b{s.img_resolution}.fromrgb.bias"}
    for theirs, official in (("final_linear.0", "b4.fc"), ("final_linear.1", "b4.out")):
        names |= {f"{theirs}.{last}": f"{official}.{last}" for last in ("weight", "bias")}
    for n, r in enumerate(s.resolutions[:0:-1]):
        theirs, official = f"convs.{n + 1}", f"b{r}"
        names |= {f"{theirs}.conv1.0.weight": f"{official}.conv0.weight"}
        names |= {f"{theirs}.conv1.1.bias": f"{official}.conv0.bias"}
        names |= {f"{theirs}.conv2.1.weight": f"{official}.conv1.weight"}
        names |= {f"{theirs}.conv2.2.bias": f"{official}.conv1.bias"}
        names |= {f"{theirs}.skip.1.weight": f"{official}.skip.weight"}
    return {official: state[name] for name, official in names.items()}
