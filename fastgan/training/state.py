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
from fastgan.runs.config import Config, TrainingOptions
from fastgan.training.adam import Adam
from fastgan.training.guard import GradientGuard


def new_state(model: models.ModelConfig, config: Config, device: torch.device, processes: int = 1) -> State:
    """Freshly initialised networks, optimizers and statistics. Parameters of frozen layers require no gradient.

    Raises ValueError for a model that cannot be built, and UserError for steps that cannot be captured but must be, for
    more frozen layers than there are, or if the package of a pretrained network is missing.
    """
    options, terms = config.training, config.regularization
    networks = models.build(model)
    if isinstance(networks[1], ProjectedDiscriminator):
        networks[1].load_pretrained()
    generator, discriminator = (network.to(device=device, memory_format=torch.channels_last) for network in networks)
    _freeze(discriminator, options.freeze_d)
    ema = copy.deepcopy(generator).eval().requires_grad_(False)
    captured = why_not_captured(config, device, processes) is None
    capturable = captured and device.type == "cuda"
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


def why_not_captured(config: Config, device: torch.device, processes: int = 1) -> str | None:
    """Why steps on `device` are not captured and replayed; None if they are. processes: that share each step.

    Raises UserError for `--capture-steps on` where it is impossible.
    """
    options, obstacle = config.machine, None
    if options.capture_steps == "off":
        return "--capture-steps off"
    if device.type not in ("cpu", "cuda"):
        obstacle = f"there is no way to on {device.type}"
    elif options.checkpoint_blocks:
        obstacle = "--checkpoint-blocks draws random numbers again, which a replay cannot"
    elif processes > 1:
        obstacle = "several processes send each other gradients within a step"
    elif device.type == "cpu" and options.compile:
        obstacle = "--compile makes code that cannot be captured on a CPU"
    elif device.type == "cpu" and config.training.optimizer == "rmsprop":
        obstacle = "torch's RMSprop takes the learning rate from Python on a CPU"
    if obstacle and options.capture_steps == "on":
        raise UserError(f"--capture-steps on: {obstacle}; leave it out")
    return obstacle
