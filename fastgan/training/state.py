"""Building the state of a new training: networks, optimizers and regularisation statistics."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fastgan import models
from fastgan.augment import AdaptiveStrength, Augment
from fastgan.errors import UserError
from fastgan.losses import PathLength
from fastgan.models.projected import ProjectedDiscriminator
from fastgan.runs.checkpoint import State
from fastgan.runs.config import Config, MachineOptions, TrainingOptions
from fastgan.training.adam import Adam
from fastgan.training.guard import GradientGuard


def new_state(model: models.ModelConfig, config: Config, device: torch.device, processes: int = 1) -> State:
    """Freshly initialised networks, optimizers and statistics. Parameters of frozen layers require no gradient.

    Raises ValueError for a model that cannot be built, and UserError for CUDA graphs on a CPU, for more frozen layers
    than there are, or if the package of a pretrained network is missing.
    """
    options, terms = config.training, config.regularization
    networks = models.build(model)
    if isinstance(networks[1], ProjectedDiscriminator):
        networks[1].load_pretrained()
    generator, discriminator = (network.to(device=device, memory_format=torch.channels_last) for network in networks)
    _freeze(discriminator, options.freeze_d)
    ema = copy.deepcopy(generator).eval().requires_grad_(False)
    capturable = why_not_captured(config.machine, device, processes) is None
    lazy_g = _lazy_factor(bool(terms.path_length), terms.path_interval)
    lazy_d = _lazy_factor(bool(terms.r1_gamma or terms.r2_gamma), terms.r1_interval)
    # All of them, used or not: a resumed run may switch one on.
    statistics = nn.ModuleDict(
        {
            "path_length": PathLength(),
            "augment": Augment(),
            "strength": AdaptiveStrength(target=terms.ada_target, adjust_kimg=terms.ada_kimg),
            "guard_g": GradientGuard(),
            "guard_d": GradientGuard(),
        }
    )
    others = nn.ModuleList(copy.deepcopy(ema) for _ in options.ema_halflives[1:])
    return State(
        generator,
        discriminator,
        ema,
        _optimizer(generator, options.lr_g, options, lazy_g, capturable),
        _optimizer(discriminator, options.lr_d, options, lazy_d, capturable),
        statistics.to(device),
        others,
    )


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Parameters of the network, except those of frozen layers."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _freeze(discriminator: nn.Module, count: int) -> None:
    """Freeze the first `count` layers from the image on (Mo et al. 2020, arXiv 2002.10964)."""
    layers = discriminator.layers_from_image()
    if count > len(layers):
        raise UserError(
            f"--freeze-d {count}: this discriminator has {len(layers)} layers to freeze; give at most {len(layers)}"
        )
    for layer in layers[:count]:
        layer.requires_grad_(False)


def _lazy_factor(used: bool, interval: int) -> float:
    """Factor of the learning rate, and exponent of the betas, for lazy regularisation every `interval` steps (Karras et
    al. 2020, appendix B)."""
    return interval / (interval + 1) if used and interval > 1 else 1.0


def _optimizer(
    network: nn.Module, lr: float, options: TrainingOptions, lazy: float, capturable: bool
) -> torch.optim.Optimizer:
    parameters = trainable(network)
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr * lazy, foreach=True, capturable=capturable)
    betas = tuple(beta**lazy for beta in options.betas)
    fused = parameters[0].device.type in ("cpu", "cuda")
    return Adam(parameters, lr=lr * lazy, betas=betas, eps=1e-8, fused=fused, capturable=capturable)


def why_not_captured(options: MachineOptions, device: torch.device, processes: int = 1) -> str | None:
    """Why steps on `device` are not captured as CUDA graphs; None if they are. processes: that share each step.

    Raises UserError for `--cuda-graphs on` where it is impossible.
    """
    if options.cuda_graphs == "off":
        return "--cuda-graphs off"
    obstacle = None
    if device.type != "cuda":
        obstacle = f"there are none on {device.type}"
    elif options.checkpoint_blocks:
        obstacle = "--checkpoint-blocks draws random numbers again, which a graph cannot"
    elif processes > 1:
        obstacle = "several processes send each other gradients within a step"
    if obstacle and options.cuda_graphs == "on":
        raise UserError(f"--cuda-graphs on: {obstacle}; leave it out")
    return obstacle
