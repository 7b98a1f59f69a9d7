"""`--init-from`: trained networks that a new training starts with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastgan import models
from fastgan.data.images import size_text
from fastgan.errors import UserError
from fastgan.models import ModelConfig
from fastgan.runs import checkpoint
from fastgan.runs.config import Config, flag, pyramid
from fastgan.runs.networks import open_networks
from fastgan.training.configure import STYLES


@dataclass(frozen=True, eq=False)
class InitialNetworks:
    """Trained networks to start with: their file, model configuration, and tensors named as in a checkpoint."""

    path: Path
    model: ModelConfig
    tensors: dict[str, Tensor]

    def fill_auto(self, config: Config) -> Config:
        """`config` (not resolved) with the sizes of these networks wherever it says "auto".

        `ema_rampup` becomes 0: the EMA starts from trained weights, which it should not forget. Raises UserError for
        another architecture or variant.
        """
        model, data = self.model, config.data
        for name in ("arch", "variant"):
            given, own = getattr(config.network, name), getattr(model, name)
            if given not in ("auto", own):
                raise UserError(f"{flag(name)} {given}: the networks of --init-from {self.path} are {own}; give that")
        network = {name: getattr(model, name) for name, value in vars(config.network).items() if value == "auto"}
        if config.network.discriminator not in ("auto", model.discriminator):  # sizes are those of its own
            network.pop("projected_size", None)
        growth, training = config.growth, config.training
        if growth.grow_from == "auto":  # these have grown
            growth = dataclasses.replace(growth, grow_from=0)
        if training.ema_rampup == "auto":
            training = dataclasses.replace(training, ema_rampup=0.0)
        return dataclasses.replace(
            config,
            network=dataclasses.replace(config.network, **network),
            data=dataclasses.replace(
                data,
                resolution=size_text(tuple(reversed(model.feature_size(model.resolution))))
                if data.resolution == "auto"
                else data.resolution,
                channels=model.channels if data.channels == "auto" else data.channels,
                labels=model.num_classes > 0 if data.labels == "auto" else data.labels,
            ),
            growth=growth,
            training=training,
        )

    def model_config(self, config: Config, num_classes: int) -> ModelConfig:
        """These networks' configuration, with the sizes of a resolved training configuration and `num_classes`.

        An option for both networks, if it differs from the file, overrides sizes that the discriminator had of its own.
        The size of w stays, so that layers that take w can be copied.
        """
        model, network = self.model, vars(config.network)
        resolution, first = pyramid(config.data.resolution)
        image = {"resolution": resolution, "base_size": first, "channels": config.data.channels}
        given = {name for name, value in network.items() if value != getattr(model, name)}
        of_discriminator = {
            f"discriminator_{name}": None for name in given & {"channel_base", "channel_max", "mapping_lr"}
        }
        styles = {"w_dim": model.style_dim} if "z_dim" in given and model.arch in STYLES else {}
        return dataclasses.replace(model, **network, **image, **of_discriminator, **styles, num_classes=num_classes)

    @torch.no_grad()
    def copy_into(self, state: checkpoint.State, model: ModelConfig) -> str | None:
        """Copy the tensors into freshly initialised networks of `model`, in place, and release them.

        A tensor is copied if the same layer, at its resolution, has one of the same shape. Returns a line that names
        the tensors left fresh, or None if there are none. Raises UserError if nothing fits, or if a frozen layer would
        stay fresh.
        """
        there, here = _names(self.model), _names(model)
        saved = {_identity(name, there): value for name, value in self.tensors.items()}
        gains = {  # stored weights are divided by the layers' learning-rate multiplier
            ("generator.mapping.layers", "ema.mapping.layers"): self.model.mapping_lr / model.mapping_lr,
            ("discriminator.directions",): self.model.projection_lr / model.projection_lr,
        }
        fresh, weights, every = [], 0, []
        for network in checkpoint.NETWORKS:
            for key, value in state.modules()[network].state_dict().items():  # aliases of the module's own
                name = f"{network}.{key}"
                every.append(name)
                found = saved.get(_identity(name, here))
                if found is None or found.shape != value.shape:
                    fresh.append(name)
                    continue
                gain = next((gain for starts, gain in gains.items() if name.startswith(starts)), 1)
                value.copy_(found * gain if gain != 1 else found)
                weights += value.dim() > 1 and not key.endswith("noise_const")
        self.tensors.clear()
        for other in state.other_emas:
            other.load_state_dict(state.ema.state_dict())
        if not weights:
            raise UserError(
                f"--init-from {self.path}: none of its weights fits these networks; leave out the options of sizes, or "
                "start without it"
            )
        frozen = {
            f"discriminator.{name}" for name, each in state.discriminator.named_parameters() if not each.requires_grad
        }
        if untrained := [name for name in fresh if name in frozen]:
            raise UserError(
                f"--freeze-d: would keep {_summary(every, untrained)} as it is, which --init-from {self.path} does not "
                "have; give less, or leave it out"
            )
        if not fresh:
            return None
        shown = _summary(every, [name for name in fresh if not name.startswith("ema.")])  # same as the generator's
        return f"{len(every) - len(fresh)} of {len(every)} tensors are those of {self.path}; fresh: {shown}"


def read(path: str) -> InitialNetworks:
    """Read networks from any file that `open_networks` knows.

    Raises UserError, naming the file, if it cannot be read, has no discriminator, or has not grown to full size.
    """
    found = open_networks(path)
    stage = found.header.stage if found.header else None
    if stage not in (None, (found.model.resolution, 1.0)):
        raise UserError(f"{found.path} has grown to {stage[0]}x{stage[0]} only; go on with it by --resume first")
    model, networks = found.load_state_dicts()
    networks = {"generator": networks["ema"]} | networks
    if "discriminator" not in networks:
        raise UserError(f"{found.path} has no D: a training needs a discriminator as well")
    named = {f"{name}.{tensor}": value for name, each in networks.items() for tensor, value in each.items()}
    return InitialNetworks(found.path, model, named)


def _names(model: ModelConfig) -> dict[str, str]:
    """Names of a checkpoint's layers that depend on the resolution, to names that do not."""
    generator, discriminator = models.resolution_independent_names(model)
    of_networks = {"generator": generator, "ema": generator, "discriminator": discriminator}
    return {
        f"{network}.{old}": f"{network}.{new}" for network, each in of_networks.items() for old, new in each.items()
    }


def _identity(name: str, known: dict[str, str]) -> str:
    """Name of a tensor that is the same at any resolution."""
    return next((known[start] + name[len(start) :] for start in _starts(name) if start in known), name)


def _starts(name: str) -> Iterator[str]:
    """Prefixes at module boundaries: "a.b.c" gives "a", "a.b", "a.b.c"."""
    ends = [match.start() for match in re.finditer(r"\.", name)]
    return (name[:end] for end in [*ends, len(name)])


def _summary(every: Iterable[str], chosen: Iterable[str]) -> str:
    """Short text for `chosen` tensors: the largest modules that are all chosen, with indices of a list joined."""
    chosen = dict.fromkeys(chosen)
    others = {start for name in every if name not in chosen for start in _starts(name)}
    modules = dict.fromkeys(next(start for start in _starts(name) if start not in others) for name in chosen)
    lists: dict[str, list[int]] = {}
    for module in modules:
        number = re.search(r"(?<=\.)\d+(?=\.|$)", module)
        shape = module if number is None else f"{module[: number.start()]}{{}}{module[number.end() :]}"
        lists.setdefault(shape, []).extend([] if number is None else [int(number[0])])
    return ", ".join(shape.format(_ranges(numbers)) for shape, numbers in lists.items())


def _ranges(numbers: list[int]) -> str:
    whole = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if whole else ",".join(map(str, numbers))
