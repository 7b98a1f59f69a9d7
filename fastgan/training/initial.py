"""Networks to start a training with instead of fresh ones: `--init-from`."""

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


@dataclass(frozen=True, eq=False)
class Start:
    """Trained networks: where they come from, what they are, and their tensors, named as in a checkpoint."""

    path: Path
    model: ModelConfig
    tensors: dict[str, Tensor]

    def adopted(self, config: Config) -> Config:
        """`config` (not resolved) with the sizes of these networks wherever it says "auto".

        Raises UserError for another architecture, or variant of it. The average starts with all that it has, instead of
        forgetting it as that of fresh networks should (`ema_rampup` 0).
        """
        model, data = self.model, config.data
        for name in ("arch", "variant"):
            given, own = getattr(config.network, name), getattr(model, name)
            if given not in ("auto", own):
                raise UserError(f"{flag(name)} {given}: the networks of --init-from {self.path} are {own}; give that")
        network = {name: getattr(model, name) for name, value in vars(config.network).items() if value == "auto"}
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

    def fitted(self, config: Config, num_classes: int) -> ModelConfig:
        """Networks like these, but of the sizes that a resolved configuration has, and of so many classes.

        An option that is for both networks is so where they were of different sizes, if it says something new. The size
        of w stays: the layers that take it can be taken then.
        """
        model, network = self.model, vars(config.network)
        resolution, first = pyramid(config.data.resolution)
        image = {"resolution": resolution, "base_size": first, "channels": config.data.channels}
        given = {name for name, value in network.items() if value != getattr(model, name)}
        of_discriminator = {
            f"discriminator_{name}": None for name in given & {"channel_base", "channel_max", "mapping_lr"}
        }
        styles = {"w_dim": model.style_dim} if "z_dim" in given and model.arch in ("stylegan", "stylegan2") else {}
        return dataclasses.replace(model, **network, **image, **of_discriminator, **styles, num_classes=num_classes)

    @torch.no_grad()
    def put_into(self, state: checkpoint.State, model: ModelConfig) -> str | None:
        """Copy the tensors into fresh networks of `model`, in place, and let them go.

        A layer takes what the same layer had, wherever its name and the resolution have moved it, if the shapes agree.
        Returns what has stayed fresh, for people; None if nothing has. Raises UserError if nothing fits, or what has
        stayed fresh is not to be trained.
        """
        there, here = _names(self.model), _names(model)
        saved = {_identity(name, there): value for name, value in self.tensors.items()}
        gains = {  # parameters are as large as their layers learn slowly
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
        shown = _summary(every, [name for name in fresh if not name.startswith("ema.")])  # as the generator's
        return f"{len(every) - len(fresh)} of {len(every)} tensors are those of {self.path}; fresh: {shown}"


def read(path: str) -> Start:
    """The networks of all that `open_networks` knows.

    Raises UserError, naming the file, if they cannot be read, or are no full-grown pair.
    """
    found = open_networks(path)
    stage = found.header.stage if found.header else None
    if stage not in (None, (found.model.resolution, 1.0)):
        raise UserError(f"{found.path} has grown to {stage[0]}x{stage[0]} only; go on with it by --resume first")
    model, networks = found.everything()
    networks = {"generator": networks["ema"]} | networks
    if "discriminator" not in networks:
        raise UserError(f"{found.path} has no D: a training needs a discriminator as well")
    named = {f"{name}.{tensor}": value for name, each in networks.items() for tensor, value in each.items()}
    return Start(found.path, model, named)


def _names(model: ModelConfig) -> dict[str, str]:
    """The layers of a checkpoint of `model` whose names depend on its resolution, each with one that does not."""
    generator, discriminator = models.resolution_independent_names(model)
    of_networks = {"generator": generator, "ema": generator, "discriminator": discriminator}
    return {
        f"{network}.{old}": f"{network}.{new}" for network, each in of_networks.items() for old, new in each.items()
    }


def _identity(name: str, known: dict[str, str]) -> str:
    """The name of a tensor at any resolution."""
    return next((known[start] + name[len(start) :] for start in _starts(name) if start in known), name)


def _starts(name: str) -> Iterator[str]:
    """ "a.b.c" to "a", "a.b", "a.b.c"."""
    ends = [match.start() for match in re.finditer(r"\.", name)]
    return (name[:end] for end in [*ends, len(name)])


def _summary(every: Iterable[str], chosen: Iterable[str]) -> str:
    """Some of many tensors, for people: by the largest modules of which all are chosen, those of one list together."""
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
