"""Networks to start a training with instead of fresh ones: `--init-from`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastgan.data import size_text
from fastgan.errors import UserError
from fastgan.interop.stylegan2 import NETWORKS, read_stylegan2
from fastgan.models import ModelConfig
from fastgan.training import checkpoint
from fastgan.training.config import Config, flag, pyramid


@dataclass(frozen=True, eq=False)
class Start:
    """Trained networks: where they come from, what they are, and their tensors, named as in a checkpoint."""

    path: Path
    model: ModelConfig
    tensors: dict[str, Tensor]

    def adopted(self, config: Config) -> Config:
        """`config` (not resolved) with the sizes of these networks wherever it says "auto".

        Raises UserError, naming the option, where it says something else. The average starts with all that it has,
        instead of forgetting it as that of fresh networks should (`ema_rampup` 0).
        """
        model, data = self.model, config.data
        if config.network.arch != model.arch:
            raise self._unfit("arch", config.network.arch, model.arch)
        if pyramid(data.resolution) != (model.resolution, model.first):
            height, width = model.plane(model.resolution)
            own = width if width == height else size_text((width, height))
            raise self._unfit("resolution", data.resolution, own)
        for name, value in vars(config.network).items():
            if value not in ("auto", getattr(model, name)):
                raise self._unfit(name, value, getattr(model, name))
        for name, own in (("channels", model.channels), ("labels", model.num_classes > 0)):
            if getattr(data, name) not in ("auto", own):
                raise self._unfit(name, getattr(data, name), own)
        network = {name: getattr(model, name) for name in vars(config.network)}
        growth, training = config.growth, config.training
        if growth.grow_from == "auto":  # these have grown
            growth = dataclasses.replace(growth, grow_from=0)
        if training.ema_rampup == "auto":
            training = dataclasses.replace(training, ema_rampup=0.0)
        return dataclasses.replace(
            config,
            network=dataclasses.replace(config.network, **network),
            data=dataclasses.replace(data, channels=model.channels, labels=model.num_classes > 0),
            growth=growth,
            training=training,
        )

    def check(self, config: Config, num_classes: int, processes: int) -> None:
        """Raises UserError if data of so many classes (0: it shows none), or a process's share of a batch, do not fit.

        The batch is that of the resolved configuration.
        """
        model, options = self.model, config.training
        if num_classes != model.num_classes:
            raise UserError(
                f"--data {config.data.source}: has {num_classes} classes, the networks of --init-from {self.path} "
                f"{model.num_classes}; give images of as many"
            )
        name, batch, at_once = "batch", options.batch, options.batch // processes
        if 0 < options.batch_gpu < at_once:
            name, batch, at_once = "batch_gpu", options.batch_gpu, options.batch_gpu
        group = model.stddev_group if model.arch == "stylegan2" and model.stddev_features else 1
        if at_once > group and at_once % group:
            of_each = "" if at_once == batch else f" for each of {processes} processes"
            raise UserError(
                f"{flag(name)} {batch}: the critic of --init-from {self.path} compares groups of {group}; give a "
                f"multiple of that{of_each}"
            )

    def put_into(self, state: checkpoint.State) -> None:
        """Copy the tensors into fresh networks of this model, in place, and let them go."""
        checkpoint.load_networks(self.path, state, self.tensors)
        self.tensors.clear()

    def _unfit(self, name: str, given, own) -> UserError:
        return UserError(f"{flag(name)} {given}: the networks of --init-from {self.path} have {own}; give that")


def read(path: str) -> Start:
    """The networks of a run's folder, a checkpoint file, or a .pkl file of the official StyleGAN2.

    Raises UserError, naming the file, if they cannot be read, or are no full-grown pair.
    """
    if Path(path).suffix == ".pkl":
        model, networks = read_stylegan2(path)
        networks = {"generator": networks["ema"]} | networks
        if "critic" not in networks:
            raise UserError(f"{path} has no {NETWORKS['critic']}: a training needs a critic as well")
        named = {f"{name}.{tensor}": value for name, each in networks.items() for tensor, value in each.items()}
        return Start(Path(path), model, named)
    header = checkpoint.read_header(path)
    if header.stage not in (None, (header.model.resolution, 1.0)):
        raise UserError(
            f"{header.path} has grown to {header.stage[0]}x{header.stage[0]} only; go on with it by --resume first"
        )
    return Start(header.path, header.model, checkpoint.read_networks(header))
