"""A training step in plain PyTorch, as code bases write it: separate phases, each with images of its own.

The discriminator phase draws images without a graph. R1 has a pass of its own every `r1_interval` steps. The generator
phase draws new images. Path length has a pass of its own. DCGAN's phases share their images, as its well-known scripts
do.
"""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Trainer:
    """Networks and optimizers; a method for each phase of a step, `__call__` for a whole step.

    Args:
        networks: generator and discriminator, trained in place.
        lr, betas: options of Adam.
        loss: "nonsaturating", or "wgan-gp" (penalty at every step, drift 0.001).
        gamma: weight of R1; 0 for none.
        path_weight: weight of the path length penalty; 0 for none.
        style_mixing: probability of style mixing, for generators that have it.
        shares_fakes: both phases use the same generated images.
        ema_halflife: half-life of the generator's EMA, in images.
        ema_rampup: upper limit of the half-life, as a share of the images shown; 0 for none.
        compile: makes the compiled form of a network for phases without penalty; None for eager.
        autocast: makes the context in which networks run.
    """

    def __init__(
        self,
        networks: tuple[nn.Module, nn.Module],
        *,
        lr: float = 0.002,
        betas: tuple[float, float] = (0.0, 0.99),
        loss: str = "nonsaturating",
        gamma: float = 0.0,
        r1_interval: int = 16,
        path_weight: float = 0.0,
        path_interval: int = 4,
        style_mixing: float = 0.0,
        shares_fakes: bool = False,
        ema_halflife: float = 10_000.0,
        ema_rampup: float = 0.0,
        compile: Callable[[nn.Module], Callable] | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.generator, self.discriminator = networks
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizer_g = torch.optim.Adam(self.generator.parameters(), lr=lr, betas=betas, eps=1e-8)
        self.optimizer_d = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=betas, eps=1e-8)
        self.generate, self.judge = map(compile, networks) if compile else networks
        self.loss, self.gamma, self.r1_interval = loss, gamma, r1_interval
        self.path_weight, self.path_interval = path_weight, path_interval
        self.mixing = {"style_mixing": style_mixing} if style_mixing else {}
        self.shares_fakes, self.autocast = shares_fakes, autocast
        self.ema_halflife, self.ema_rampup = ema_halflife, ema_rampup
        self.path_mean = torch.zeros((), device=next(self.generator.parameters()).device)
        self.step, self.shown = 0, 0

    def __call__(self, real: Tensor, label: Tensor | None = None) -> None:
        z = self.latents(len(real))
        if self.shares_fakes:
            fake = self.fakes(z, label)
            shown = fake.detach()
        else:
            with torch.no_grad():
                shown = self.fakes(z, label)
        self.discriminator_phase(real, shown, label)
        if self.gamma and self.step % self.r1_interval == 0:
            self.r1_phase(real, label)
        if not self.shares_fakes:
            fake = self.fakes(self.latents(len(real)), label)
        self.generator_phase(fake, label)
        if self.path_weight and self.step % self.path_interval == 0:
            self.path_phase(self.latents(max(1, len(real) // 2)), None if label is None else label[: len(real) // 2])
        self.update_average(len(real))
        self.step += 1

    def latents(self, count: int) -> Tensor:
        return torch.randn(count, self.generator.z_dim, device=self.path_mean.device)

    def fakes(self, z: Tensor, label: Tensor | None) -> Tensor:
        with self.autocast():
            return self.generate(z, label, **self.mixing)

    def discriminator_phase(self, real: Tensor, fake: Tensor, label: Tensor | None) -> Tensor:
        self.optimizer_d.zero_grad()
        with self.autocast():
            fake_logits, real_logits = self.judge(fake, label), self.judge(real, label)
        if self.loss == "wgan-gp":
            loss = fake_logits.mean() - real_logits.mean() + 0.001 * real_logits.square().mean()
            loss = loss + 10 * self.gradient_penalty(real, fake, label)
        else:
            loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        loss.backward()
        self.optimizer_d.step()
        return loss.detach()

    def gradient_penalty(self, real: Tensor, fake: Tensor, label: Tensor | None) -> Tensor:
        share = torch.rand(len(real), device=real.device).reshape(-1, 1, 1, 1)
        between = (share * fake + (1 - share) * real).requires_grad_(True)
        with self.autocast():
            logits = self.discriminator(between, label)
        (gradient,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    def r1_phase(self, real: Tensor, label: Tensor | None) -> Tensor:
        self.optimizer_d.zero_grad()
        real = real.detach().requires_grad_(True)
        with self.autocast():
            logits = self.discriminator(real, label)
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        penalty = gradient.square().sum((1, 2, 3)).mean() * (self.gamma / 2 * self.r1_interval)
        penalty.backward()
        self.optimizer_d.step()
        return penalty.detach()

    def generator_phase(self, fake: Tensor, label: Tensor | None) -> Tensor:
        self.optimizer_g.zero_grad()
        self.discriminator.requires_grad_(False)
        with self.autocast():
            logits = self.judge(fake, label)
        loss = -logits.mean() if self.loss == "wgan-gp" else F.softplus(-logits).mean()
        loss.backward()
        self.discriminator.requires_grad_(True)
        self.optimizer_g.step()
        return loss.detach()

    def path_phase(self, z: Tensor, label: Tensor | None) -> Tensor:
        self.optimizer_g.zero_grad()
        with self.autocast():
            ws = self.generator.styles(z, label, **self.mixing)
            images = self.generator.synthesis(ws)
        noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
        (gradient,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
        lengths = gradient.float().square().sum(2).mean(1).sqrt()
        self.path_mean = self.path_mean.lerp(lengths.detach().mean(), 0.01)
        penalty = (lengths - self.path_mean).square().mean() * (self.path_weight * self.path_interval)
        penalty.backward()
        self.optimizer_g.step()
        return penalty.detach()

    @torch.no_grad()
    def update_average(self, batch: int) -> None:
        self.shown += batch
        halflife = min(self.ema_halflife, self.shown * self.ema_rampup) if self.ema_rampup else self.ema_halflife
        decay = 0.5 ** (batch / halflife)
        for average, parameter in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            average.copy_(parameter.lerp(average, decay))
        for average, buffer in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            average.copy_(buffer)
