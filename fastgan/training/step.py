"""What a step of training does to the networks: critic, generator, average. It knows no data, files or progress."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgan import models
from fastgan.augment import AdaptiveStrength, Augment
from fastgan.losses import (
    OBJECTIVES,
    Objective,
    PairedObjective,
    PathLength,
    critic_with_grad_norm,
    wgan_gp,
    zero_centered_penalty,
)
from fastgan.training.checkpoint import State
from fastgan.training.config import Config, RegularizationOptions, TrainingOptions
from fastgan.training.ema import Average, decay
from fastgan.training.log import Averages

Autocast = Callable[[], contextlib.AbstractContextManager]


def new_state(model: models.ModelConfig, config: Config, device: torch.device) -> State:
    """Fresh networks, optimizers and statistics. Raises ValueError for a network that makes no sense."""
    options, terms = config.training, config.regularization
    networks = models.build(model)
    generator, critic = (network.to(device=device, memory_format=torch.channels_last) for network in networks)
    ema = copy.deepcopy(generator).eval().requires_grad_(False)
    strength = AdaptiveStrength(target=terms.ada_target, adjust_kimg=terms.ada_kimg)
    # All of them, whatever is in use: a resumed run may use another.
    statistics = nn.ModuleDict({"path_length": PathLength(), "augment": Augment(), "strength": strength})
    return State(
        generator,
        critic,
        ema,
        _optimizer(generator, options.lr_g, options, _lazy(bool(terms.path_length), terms.path_interval)),
        _optimizer(critic, options.lr_d, options, _lazy(bool(terms.r1_gamma or terms.r2_gamma), terms.r1_interval)),
        statistics.to(device),
    )


def _lazy(used: bool, interval: int) -> float:
    """Lazy regularisation: learning rate to this share and betas to this power, for the extra work that every
    `interval`-th step does (Karras et al. 2020, appendix B)."""
    return interval / (interval + 1) if used and interval > 1 else 1.0


def _optimizer(network: nn.Module, lr: float, options: TrainingOptions, lazy: float) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr * lazy, foreach=True)
    betas = tuple(beta**lazy for beta in options.betas)
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.Adam(parameters, lr=lr * lazy, betas=betas, eps=1e-8, fused=fused)


def objective_of(loss: str) -> Objective | PairedObjective:
    """The objective that the option `--loss` names: two of its values differ in what else they ask for."""
    return OBJECTIVES["wasserstein" if loss in ("wgan", "wgan-gp") else loss]


class Step:
    """Makes the steps of a training: calling it with a batch makes one, and counts it in `state`.

    A step trains the critic; every `critic_steps`-th one trains the generator and moves the average. The generator
    learns from the very images that the critic has just seen.

    Args:
        state: what to train, in place.
        config: resolved.
        z_dim: size of the latents.
        autocast: makes the context that networks run in.
        averages: where losses and the like are counted in.
    """

    def __init__(self, state: State, config: Config, z_dim: int, autocast: Autocast, averages: Averages):
        self.state, self.z_dim, self.autocast, self.averages = state, z_dim, autocast, averages
        self.options: TrainingOptions = config.training
        self.terms: RegularizationOptions = config.regularization
        self.objective = objective_of(config.training.loss)
        self.average = Average(state.ema, state.generator)
        self.mixing = {"style_mixing": self.options.style_mixing} if self.options.style_mixing else {}
        self.augment: Augment | None = state.statistics["augment"] if self.terms.augment != "none" else None
        self._groups = [
            (group, group["lr"], group.get("betas"))
            for optimizer in (state.optimizer_g, state.optimizer_d)
            for group in optimizer.param_groups
        ]

    def __call__(self, real: Tensor, label: Tensor | None, lr_factor: float = 1.0) -> None:
        """Real images [N, C, R, R] of range [-1, 1] and their labels [N]; learning rates are those of the options times
        `lr_factor`. Generated images get the same labels: their distribution is the right one."""
        state, options = self.state, self.options
        self._anneal(lr_factor)
        updates_generator = (state.step + 1) % options.critic_steps == 0
        with torch.set_grad_enabled(updates_generator):
            fake = self._generate(label, len(real))
        self._train_critic(real, fake.detach(), label)
        if updates_generator:
            self._train_generator(fake, real, label)
        state.step += 1
        state.images += len(real)
        if updates_generator:
            shown = len(real) * options.critic_steps
            self.average.update(decay(state.images, shown, options.ema_halflife * 1000, options.ema_rampup))

    # Critic -------------------------------------------------------------------------------------------------------

    def _train_critic(self, real: Tensor, fake: Tensor, label: Tensor | None) -> None:
        state, terms, objective = self.state, self.terms, self.objective
        state.optimizer_d.zero_grad(set_to_none=True)
        if isinstance(objective, PairedObjective):
            real_logits, r1 = self._judge_and_penalize(real, label, terms.r1_gamma, "r1_norm2")
            fake_logits, r2 = self._judge_and_penalize(fake, label, terms.r2_gamma, "r2_norm2")
            loss = objective.critic(real_logits, fake_logits)
            (loss + r1 + r2).backward()
        else:  # one half after the other: only one of them is in memory
            fake_logits, r2 = self._judge_and_penalize(fake, label, terms.r2_gamma, "r2_norm2")
            loss_fake = objective.critic_fake(fake_logits)
            (loss_fake + r2).backward()
            real_logits, r1 = self._judge_and_penalize(real, label, terms.r1_gamma, "r1_norm2")
            loss_real = objective.critic_real(real_logits)
            drift = terms.drift * real_logits.square().mean() if terms.drift else 0.0
            (loss_real + r1 + drift).backward()
            loss = loss_real.detach() + loss_fake.detach()
        if terms.gp_lambda:
            with self.autocast():
                penalty = wgan_gp(self._critic, real, fake, label)
            (terms.gp_lambda * penalty).backward()
            self.averages.add(gradient_penalty=penalty)
        state.optimizer_d.step()
        if terms.clip:
            weights = [parameter.detach() for parameter in state.critic.parameters()]
            torch._foreach_clamp_min_(weights, -terms.clip)
            torch._foreach_clamp_max_(weights, terms.clip)
        if self.terms.augment == "ada":
            state.statistics["strength"].update(real_logits.detach(), self.augment.p)
        if self.augment is not None:
            self.averages.add(augment_p=self.augment.p.clone())
        self.averages.add(loss_d=loss, logit_real=real_logits.mean(), logit_fake=fake_logits.mean())

    @property
    def _critic(self) -> Callable[..., Tensor]:
        """The critic, of altered images where there is augmentation: gradient penalties are with respect to the images
        before it."""
        critic, augment = self.state.critic, self.augment
        return critic if augment is None else lambda images, label: critic(augment(images), label)

    def _judge(self, images: Tensor, label: Tensor | None) -> Tensor:
        with self.autocast():
            return self._critic(images, label)

    def _judge_and_penalize(
        self, images: Tensor, label: Tensor | None, gamma: float, name: str
    ) -> tuple[Tensor, Tensor | float]:
        """Logits, and R1 or R2 where it is due: on the same forward pass, and stronger by the interval."""
        interval = self.terms.r1_interval
        if not gamma or self.state.step % interval:
            return self._judge(images, label), 0.0
        with self.autocast():
            logits, squares = critic_with_grad_norm(self._critic, images, label)
        self.averages.add(**{name: squares.mean()})
        return logits, gamma * self._annealed(1.0, self.terms.final_gamma) * interval * zero_centered_penalty(squares)

    # Generator ----------------------------------------------------------------------------------------------------

    def _generate(self, label: Tensor | None, count: int) -> Tensor:
        with self.autocast():
            return self.state.generator(self._latents(count), label, **self.mixing)

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self.z_dim, device=next(self.state.generator.parameters()).device)

    def _train_generator(self, fake: Tensor, real: Tensor, label: Tensor | None) -> None:
        state, objective = self.state, self.objective
        state.optimizer_g.zero_grad(set_to_none=True)
        state.critic.requires_grad_(False)  # its weights need no gradient here
        fake_logits = self._judge(fake, label)
        if isinstance(objective, PairedObjective):
            with torch.no_grad():
                real_logits = self._judge(real, label)
            loss = objective.generator(fake_logits, real_logits)
        else:
            loss = objective.generator(fake_logits)
        loss.backward()
        state.critic.requires_grad_(True)
        self.averages.add(loss_g=loss)
        steps = state.step // self.options.critic_steps  # of the generator, so far
        if self.terms.path_length and steps % self.terms.path_interval == 0:
            self._shorten_paths(label, len(fake))
        state.optimizer_g.step()

    def _shorten_paths(self, label: Tensor | None, batch: int) -> None:
        """The path length penalty on half a batch, as Karras et al. 2020, appendix B."""
        count, generator = max(1, batch // 2), self.state.generator
        with self.autocast():
            ws = generator.styles(self._latents(count), None if label is None else label[:count], **self.mixing)
            images = generator.synthesize(ws)
        penalty = self.state.statistics["path_length"](images, ws)
        (self.terms.path_length * self.terms.path_interval * penalty).backward()
        self.averages.add(path_penalty=penalty)

    # Schedules ----------------------------------------------------------------------------------------------------

    def _annealed(self, first: float, last: float) -> float:
        """From `first` to `last` over the training, on half a cosine."""
        done = min(1.0, self.state.images / self.options.images)
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2

    def _anneal(self, lr_factor: float) -> None:
        if self.terms.augment in ("fixed", "ramp"):
            first = self.terms.augment_p if self.terms.augment == "fixed" else 0.0
            self.augment.p.fill_(self._annealed(first, self.terms.augment_p))
        for group, lr, betas in self._groups:
            group["lr"] = lr * lr_factor * self._annealed(1.0, self.options.final_lr)
            if betas is not None and self.options.final_beta2 is not None:
                group["betas"] = betas[0], self._annealed(betas[1], self.options.final_beta2)
