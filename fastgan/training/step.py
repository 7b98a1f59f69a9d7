"""One training step: discriminator, generator, EMA. It knows nothing of data, files or progress."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan.augment import Augment, Augmented, Blur, DiffAugment
from fastgan.distributed import Ranks
from fastgan.losses import OBJECTIVES, PairedObjective
from fastgan.models import stylegan3
from fastgan.models.gradient_checkpointing import enable_gradient_checkpointing
from fastgan.models.progressive import ProgressiveGrowing
from fastgan.models.spectral_norm import normalized_layers, power_iteration
from fastgan.penalties import logits_and_squared_grad, wgan_gp, zero_centered_penalty
from fastgan.runs import graphs
from fastgan.runs.checkpoint import State
from fastgan.runs.config import ADA, Config, RegularizationOptions, TrainingOptions
from fastgan.runs.cpu_graphs import CpuRecorder
from fastgan.runs.precision import Autocast, compiler
from fastgan.training.adam import Adam
from fastgan.training.averages import Averages
from fastgan.training.ema import EMA, ema_decay, ema_decays
from fastgan.training.gradients import GradientSum
from fastgan.training.guard import GradientGuard, zero_gradients_if
from fastgan.training.joint_batch import JointBatch
from fastgan.training.length import Length
from fastgan.training.randomness import StepRandomness
from fastgan.training.state import trainable, why_not_captured
from fastgan.transparency import premultiplied

Images = Tensor | tuple[Tensor, ...]  # [N, C, H, W], or a pair: these and a smaller version


class MicroBatch(NamedTuple):
    """Samples that go through the networks at once: latents, real images, and labels for both.

    weight: share of the whole batch, by which losses are multiplied. number: counts the micro-batches of all processes.
    """

    z: Tensor
    real: Tensor
    label: Tensor | None
    weight: float
    number: int


class Judgement(NamedTuple):
    """Discriminator output for N images: logits [N] or [N, P], and for a penalty |d logit / d image|^2 [N].

    reconstruction: the self-supervised loss, a scalar, of discriminators that have one.
    """

    logits: Tensor
    squared_grad: Tensor | None = None
    reconstruction: Tensor | float = 0.0


class StepKind(NamedTuple):
    """Everything that decides which operations a step runs. Steps of one kind differ only in what tensors contain."""

    trains_generator: bool
    has_gradient_penalty: bool  # R1, R2
    has_path_length: bool
    blurs: bool  # the images that the discriminator sees
    stage: tuple[int, bool] | None  # of growing networks: resolution, and whether it is being faded in


class Step:
    """Training step: calling it with a batch trains the networks of `state` once, and counts the step there.

    A step trains the discriminator; every `discriminator_steps`-th one also trains the generator and updates the EMA.
    The generator learns from the images that the discriminator has just seen, so they are drawn once. They are drawn
    twice, from the same random numbers, in steps with a penalty that not every step has: those need the most memory,
    so they keep no graph of the generator in the discriminator's phase. (Running statistics of the generator, such as
    batch norm's or the mean of w, then see the images twice.)

    With `--batch-gpu` a batch is split into micro-batches, whose gradients add up to those of the batch where samples
    are independent; batch norm and minibatch stddev see one micro-batch at a time. The generator then also draws its
    images twice: keeping the graphs of all micro-batches would take the memory of the whole batch.

    Several processes share the micro-batches of a step. Each micro-batch has random numbers of its own, so a step is
    the same, up to rounding, in one process or in many.

    With `--compile`, `torch.compile` runs the passes of both networks that are differentiated once. Steps are captured
    and replayed, in a graph for each `StepKind`: see `fastgan.runs.graphs`.

    Args:
        state: what to train, in place.
        config: resolved.
        z_dim: size of the latents.
        autocast: makes the context that networks run in.
        averages: where losses and other logged values are added.
        recorder: of graphs; None for that of the networks' device, if it has one.
        ranks: processes that share the step.
        scaled: whether losses are scaled, for gradients in fp16.
    """

    def __init__(
        self,
        state: State,
        config: Config,
        z_dim: int,
        autocast: Autocast,
        averages: Averages,
        recorder: graphs.Recorder | None = None,
        ranks: Ranks | None = None,
        scaled: bool = False,
    ):
        self.ranks = ranks or Ranks()
        self.state, self.z_dim, self.autocast, self.averages = state, z_dim, autocast, averages
        self.options: TrainingOptions = config.training
        self.terms: RegularizationOptions = config.regularization
        self._length = Length(self.options)
        loss = self.options.loss
        self.objective = OBJECTIVES["wasserstein" if loss in ("wgan", "wgan-gp") else loss]
        self.ema = EMA([state.ema, *state.other_emas], state.generator)
        self._ema_weights = [f"ema_{number}" for number in range(1 + len(state.other_emas))]  # names of numbers
        self.generates = {"style_mixing": self.options.style_mixing} if self.options.style_mixing else {}
        self.reconstructs = "reconstruct" in getattr(state.discriminator, "supports", ())
        synthesis = getattr(state.generator, "synthesis", None)
        self._update_magnitudes = getattr(synthesis, "update_magnitudes", None)
        self.generates |= {"small": True} if "small" in state.generator.supports and self.reconstructs else {}
        self._spectral = [*normalized_layers(state.generator), *normalized_layers(state.discriminator)]
        cutout = 0.2 if config.network.discriminator == "projected" else 0.5  # the papers'
        self._ada: Augment | None = state.statistics["augment"] if self.terms.augment in ADA else None
        self.augment = DiffAugment(cutout=cutout) if self.terms.augment == "diffaug" else self._ada
        self._blur, self._blurs = Blur(self.terms.blur), False
        self._joint = JointBatch(state.discriminator)
        device = next(state.generator.parameters()).device
        if config.machine.checkpoint_blocks:
            enable_gradient_checkpointing(state.generator)
            enable_gradient_checkpointing(state.discriminator)
        compiled = compiler(device) if config.machine.compile else lambda network: network
        # Used wherever there is no penalty: torch.compile knows no second derivatives.
        self._generator, self._discriminator = compiled(state.generator), compiled(state.discriminator)
        self._optimizers = {"g": state.optimizer_g, "d": state.optimizer_d}
        self._guards: dict[str, GradientGuard] = {name: state.statistics[f"guard_{name}"] for name in self._optimizers}
        for name, guard in self._guards.items():
            guard.begin(scaled)
            self._optimizers[name].found_inf = guard.found_inf
        self._initial_rates = {
            name: [(group["lr"], group.get("betas")) for group in optimizer.param_groups]
            for name, optimizer in self._optimizers.items()
        }
        self._gradients = {
            name: GradientSum(trainable(network), self.ranks)
            for name, network in (("g", state.generator), ("d", state.discriminator))
        }
        self.why_not_captured = None if recorder else why_not_captured(config, device, self.ranks.world_size)
        captures = self.why_not_captured is None
        if captures and recorder is None:
            recorder = CpuRecorder() if device.type == "cpu" else graphs.CudaRecorder(device)
        self._recorder = recorder
        self._graphs = graphs.Graphs(self._run, recorder) if captures else None
        self._numbers = graphs.Numbers(device if captures else None)
        self._rate_dtype = torch.float64 if device.type == "cpu" else torch.float32  # what optimizers' kernels read
        self._random = StepRandomness(config.machine.seed, device, not captures or isinstance(recorder, CpuRecorder))
        self._stage = None

    @property
    def failure(self) -> str | None:
        """Why steps are no longer captured although they should be."""
        return None if self._graphs is None else self._graphs.failure

    def skipped(self) -> dict[str, int]:
        """Number of steps in a row, up to the last one, that were skipped for non-finite gradients, by network. Waits
        for the device."""
        names = {"g": "generator", "d": "discriminator"}
        return {names[name]: int(guard.streak) for name, guard in self._guards.items()}

    def __call__(self, real: Tensor, label: Tensor | None, lr_factor: float = 1.0) -> None:
        """Train on this process's part of a batch.

        Args:
            real: images [N, C, H, W] of range [-1, 1]; premultiplied if transparent.
            label: [N] int64 or None. Generated images get the same labels, whose distribution is the right one.
            lr_factor: multiplies the learning rates.
        """
        state, kind, count = self.state, self._kind(), len(real) * self.ranks.world_size
        self._set_schedules(lr_factor, count)
        self._random.begin_step(state.step)
        if kind.stage != self._stage:
            self._stage = kind.stage
            self._discard_compiled()
        run = self._run if self._graphs is None else self._graphs
        run(kind, real, label)
        if isinstance(self._recorder, CpuRecorder):  # a replay has gradients of its own
            self._free_gradients()
        state.step += 1
        state.images += count

    def _kind(self) -> StepKind:
        """Kind of the next step."""
        options, terms, step, generator = self.options, self.terms, self.state.step, self.state.generator
        generator_updates, position = divmod(step, options.discriminator_steps)
        trains_generator = position == options.discriminator_steps - 1
        return StepKind(
            trains_generator,
            bool(terms.r1_gamma or terms.r2_gamma) and step % terms.r1_interval == 0,
            trains_generator and bool(terms.path_length) and generator_updates % terms.path_interval == 0,
            self.state.images < terms.blur_images,
            (generator.stage_resolution, generator.fading) if isinstance(generator, ProgressiveGrowing) else None,
        )

    def _discard_compiled(self) -> None:
        """Discard graphs and compiled code of the finished stage of growth."""
        if self._graphs is not None:
            self._graphs.clear()
        if self._generator is not self.state.generator:
            torch.compiler.reset()  # it compiles a network a limited number of times

    # Schedules ----------------------------------------------------------------------------------------------------

    def _set_schedules(self, lr_factor: float, count: int) -> None:
        """Set learning rates, betas, penalty strengths, EMA weights and augmentation for a step of `count` images."""
        options, terms, state, numbers = self.options, self.terms, self.state, self._numbers
        if terms.augment in ("fixed", "ramp"):
            first = terms.augment_p if terms.augment == "fixed" else 0.0
            self._ada.p.fill_(self._annealed(first, terms.augment_p))
        if state.images < terms.blur_images:
            self._blur.width = numbers.set("blur", terms.blur * (1 - state.images / terms.blur_images))
        for name, optimizer in self._optimizers.items():
            for group, (lr, betas) in zip(optimizer.param_groups, self._initial_rates[name], strict=True):
                rate = lr * lr_factor * self._warmed_up() * self._annealed(1.0, options.final_lr)
                group["lr"] = numbers.set(f"lr_{name}", rate, self._rate_dtype)
                if betas is not None and options.final_beta2 is not None:
                    beta2 = self._annealed(betas[1], options.final_beta2)
                    group["betas"] = betas[0], numbers.set(f"beta2_{name}", beta2, torch.float64)
        for name, gamma in (("r1", terms.r1_gamma), ("r2", terms.r2_gamma)):  # lazy: stronger by the interval
            numbers.set(name, gamma * self._annealed(1.0, terms.final_gamma) * terms.r1_interval)
        shown = count * options.discriminator_steps
        half_lives = [half_life * 1000 for half_life in options.ema_halflives]
        decays = ema_decays(state.images + count, shown, half_lives, options.ema_rampup)
        for name, decay in zip(self._ema_weights, decays, strict=True):
            numbers.set(name, 1 - decay, self._rate_dtype)
        if self._update_magnitudes:  # as an EMA, also early on
            decay = ema_decay(state.images + count, shown, stylegan3.MAGNITUDE_HALFLIFE, options.ema_rampup)
            numbers.set("magnitudes", 1 - decay, self._rate_dtype)

    def _annealed(self, first: float, last: float) -> float:
        """Value on half a cosine from `first` to `last` over the training."""
        done = self._length.done(self.state)
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2

    def _warmed_up(self) -> float:
        """Factor of the learning rates early in the training."""
        warmup = self.options.lr_warmup
        return min(1.0, self._length.done(self.state) / warmup) if warmup else 1.0

    def _free_gradients(self) -> None:
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    # The step on the device ---------------------------------------------------------------------------------------

    def _run(self, kind: StepKind, real: Tensor, label: Tensor | None) -> None:
        """All device work of a step.

        A captured graph replays it without running any of this code. So it may depend on `kind`, on tensors and on
        `_numbers`, but on no Python number of `state`, and may change tensors only.
        """
        self._blurs = kind.blurs
        with self.averages.step():
            micro_batches = self._micro_batches(real, label)
            power_iteration(self._spectral)
            # A CUDA graph cannot draw the same images twice: its random numbers only go forward.
            saves_memory = kind.has_gradient_penalty and self.terms.r1_interval > 1 and self._random.seeds_within
            keeps_graph = kind.trains_generator and len(micro_batches) == 1 and not saves_memory
            self._free_gradients()  # of both networks: the discriminator's phase needs the most memory
            real_logits, rng_states = [], []
            for micro_batch in micro_batches:
                self._random.begin_micro_batch(micro_batch.number)
                with torch.set_grad_enabled(keeps_graph):
                    fake = self._generate(micro_batch)
                is_last = micro_batch is micro_batches[-1]
                seen = of_each(Tensor.detach, fake)
                real_logits.append(self._add_discriminator_gradients(kind, micro_batch, seen, is_last))
                rng_states.append(self._random.state())
            self._update_discriminator(torch.cat(real_logits))

            if kind.trains_generator:
                lengths = []
                for micro_batch, rng_state in zip(micro_batches, rng_states, strict=True):
                    if not keeps_graph:  # draw the same images again
                        self._random.begin_micro_batch(micro_batch.number)
                        fake = self._generate(micro_batch)
                        self._random.set_state(rng_state)
                    is_last = micro_batch is micro_batches[-1]
                    lengths += self._add_generator_gradients(kind, micro_batch, fake, is_last)
                self._update_generator(lengths)

    def _micro_batches(self, real: Tensor, label: Tensor | None) -> list[MicroBatch]:
        """Micro-batches of this process. Latents are drawn for the whole batch, so they do not depend on the split."""
        ranks, size = self.ranks, min(self.options.batch_gpu or len(real), len(real))
        z = self._latents(len(real) * ranks.world_size)[ranks.rank * len(real) :][: len(real)]
        self._random.end_shared()
        labels = itertools.repeat(None) if label is None else label.split(size)
        parts = list(zip(z.split(size), real.split(size), labels, strict=False))
        weight = size / len(real) / ranks.world_size
        return [MicroBatch(*part, weight, number) for number, part in enumerate(parts, ranks.rank * len(parts))]

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self.z_dim, device=next(self.state.generator.parameters()).device)

    def _generate(self, micro_batch: MicroBatch) -> Images:
        with self.autocast():
            return of_each(premultiplied, self._generator(micro_batch.z, micro_batch.label, **self.generates))

    def _backward(self, name: str, loss: Tensor, is_last: bool = False) -> None:
        """Add the gradients of `loss`. is_last: the network's last backward of the step, during which gradients are
        sent to other processes."""
        self._gradients[name].backward(self._guards[name].scale_loss(loss), is_last)

    def _apply_gradients(self, name: str, network: nn.Module) -> None:
        """Optimizer step, unless a gradient is not finite."""
        guard, optimizer = self._guards[name], self._optimizers[name]
        self._gradients[name].finish()
        guard.unscale_and_check(network.parameters())
        if not isinstance(optimizer, Adam):  # RMSprop does not read `found_inf`, but zero gradients move nothing
            zero_gradients_if(guard.found_inf, [p.grad for p in network.parameters() if p.grad is not None])
        optimizer.step()
        self.averages.add(**{f"skipped_{name}": guard.found_inf})

    # Discriminator ------------------------------------------------------------------------------------------------

    def _add_discriminator_gradients(
        self, kind: StepKind, micro_batch: MicroBatch, fake: Images, is_last: bool
    ) -> Tensor:
        """Returns the logits of the real images. is_last: no more gradients are added in this step."""
        terms, objective, weight = self.terms, self.objective, micro_batch.weight
        real, label = micro_batch.real, micro_batch.label
        if terms.gp_lambda:
            with self.autocast():
                penalty = wgan_gp(self._with_augmentation(self.state.discriminator), real, of_full_size(fake), label)
            self._backward("d", weight * terms.gp_lambda * penalty)
            self.averages.add(gradient_penalty=penalty)
        r1, r2 = (kind.has_gradient_penalty and bool(gamma) for gamma in (terms.r1_gamma, terms.r2_gamma))
        in_one_pass = self._joint.fits(real, penalized=r1 or r2) and r1 == r2 and not self.reconstructs
        if in_one_pass or isinstance(objective, PairedObjective):
            if in_one_pass:
                of_fake, of_real = self._judge_jointly(fake, real, label, penalized=r1)
            else:
                of_fake, of_real = self._judge(fake, label, r2), self._judge(real, label, r1, self.reconstructs)
            loss = objective.discriminator(of_real.logits, of_fake.logits)
            penalty = self._penalty(of_fake, r2, "r2") + self._penalty(of_real, r1, "r1")
            penalty = penalty + self._drift(of_real) + of_real.reconstruction
            self._backward("d", weight * (loss + penalty), is_last)
        else:  # fakes, then reals: only one graph is in memory at a time
            of_fake = self._judge(fake, label, r2)
            loss_fake = objective.discriminator_fake(of_fake.logits)
            self._backward("d", weight * (loss_fake + self._penalty(of_fake, r2, "r2")))
            of_real = self._judge(real, label, r1, self.reconstructs)
            loss_real = objective.discriminator_real(of_real.logits)
            penalty = self._penalty(of_real, r1, "r1") + self._drift(of_real) + of_real.reconstruction
            self._backward("d", weight * (loss_real + penalty), is_last)
            loss = loss_real.detach() + loss_fake.detach()
        self.averages.add(loss_d=loss)
        if self.reconstructs:
            self.averages.add(reconstruction=of_real.reconstruction)
        for name, logits in (("real", of_real.logits.detach()), ("fake", of_fake.logits.detach())):
            self.averages.add(**{f"logit_{name}": logits.mean(), f"sign_{name}": logits.sign().mean()})
        return of_real.logits.detach()

    def _with_augmentation(self, discriminator: nn.Module) -> nn.Module:
        """The discriminator of augmented images. Gradient penalties are with respect to images before augmentation."""
        augmented = discriminator if self.augment is None else Augmented(self.augment, discriminator)
        return Augmented(self._blur, augmented) if self._blurs else augmented

    def _judge(
        self, images: Images, label: Tensor | None, penalized: bool = False, reconstruct: bool = False
    ) -> Judgement:
        """Logits; if penalized, also squared gradients from the same forward pass. These are of the images of full size
        alone, from which the discriminator then makes the small ones."""
        with self.autocast():
            if not penalized:
                judge = self._with_augmentation(self._discriminator)
                if reconstruct:
                    logits, reconstruction = judge(images, label, reconstruct=True)
                    return Judgement(logits, None, reconstruction)
                return Judgement(judge(images, label))
            judge = self._with_augmentation(self.state.discriminator)
            if not reconstruct:
                return Judgement(*logits_and_squared_grad(judge, of_full_size(images), label))
            losses = []

            def logits_alone(images: Tensor, label: Tensor | None = None) -> Tensor:
                logits, loss = judge(images, label, reconstruct=True)
                losses.append(loss)
                return logits

            return Judgement(*logits_and_squared_grad(logits_alone, images, label), *losses)

    def _judge_jointly(
        self, fake: Tensor, real: Tensor, label: Tensor | None, penalized: bool
    ) -> tuple[Judgement, Judgement]:
        """Judgements of fake and real images from one pass, for which weights are prepared once."""
        joint = self._joint
        labels = None if label is None else joint.join(label, label)
        with joint.separate_statistics():
            both = self._judge(joint.join(fake, real), labels, penalized)
        squared_grads = (None, None) if both.squared_grad is None else joint.split(both.squared_grad)
        of_fake, of_real = map(Judgement, joint.split(both.logits), squared_grads)
        return of_fake, of_real

    def _penalty(self, judgement: Judgement, is_due: bool, name: str) -> Tensor | float:
        """R1 or R2, by `name`; 0 where it is not due."""
        if not is_due:
            return 0.0
        self.averages.add(**{f"{name}_norm2": judgement.squared_grad.mean()})
        return self._numbers[name] * zero_centered_penalty(judgement.squared_grad)

    def _drift(self, of_real: Judgement) -> Tensor | float:
        return self.terms.drift * of_real.logits.square().mean() if self.terms.drift else 0.0

    def _update_discriminator(self, real_logits: Tensor) -> None:
        state, terms = self.state, self.terms
        self._apply_gradients("d", state.discriminator)
        if terms.clip:
            weights = [parameter.detach() for parameter in trainable(state.discriminator)]
            torch._foreach_clamp_min_(weights, -terms.clip)
            torch._foreach_clamp_max_(weights, terms.clip)
        if terms.augment == "ada":
            state.statistics["strength"].update(self.ranks.all_gather(real_logits), self._ada.p)
        if self._ada is not None:
            self.averages.add(augment_p=self._ada.p.clone())

    # Generator ----------------------------------------------------------------------------------------------------

    def _add_generator_gradients(
        self, kind: StepKind, micro_batch: MicroBatch, fake: Images, is_last: bool
    ) -> list[Tensor]:
        """Returns the mean path length, if it is penalised. is_last: as for the discriminator."""
        objective = self.objective
        with _frozen(self.state.discriminator):
            logits = self._judge(fake, micro_batch.label).logits
            if isinstance(objective, PairedObjective):
                with torch.no_grad():
                    real_logits = self._judge(micro_batch.real, micro_batch.label).logits
                loss = objective.generator(logits, real_logits)
            else:
                loss = objective.generator(logits)
            self._backward("g", micro_batch.weight * loss, is_last and not kind.has_path_length)
        self.averages.add(loss_g=loss)
        return [self._add_path_length_gradients(micro_batch, is_last)] if kind.has_path_length else []

    def _add_path_length_gradients(self, micro_batch: MicroBatch, is_last: bool) -> Tensor:
        """Path length penalty on half a batch (Karras et al. 2020, appendix B). Returns the mean length."""
        count, generator = max(1, len(micro_batch.real) // 2), self.state.generator
        with self.autocast():
            label = None if micro_batch.label is None else micro_batch.label[:count]
            ws = generator.styles(self._latents(count), label, **self.generates)
            images = premultiplied(generator.synthesize(ws))
        penalty, length = self.state.statistics["path_length"].penalty_and_length(images, ws)
        loss = micro_batch.weight * self.terms.path_length * self.terms.path_interval * penalty
        self._backward("g", loss, is_last)
        self.averages.add(path_penalty=penalty)
        return length

    def _update_generator(self, lengths: list[Tensor]) -> None:
        self._apply_gradients("g", self.state.generator)
        if self._update_magnitudes:
            self._update_magnitudes(self._numbers["magnitudes"], self.ranks.all_reduce_mean)
        self.ema.update([self._numbers[name] for name in self._ema_weights])
        if lengths:
            self.state.statistics["path_length"].update(self.ranks.all_reduce_mean(torch.stack(lengths).mean()))


def of_each(function: Callable[[Tensor], Tensor], images: Images) -> Images:
    """The function of images, or of each of a pair."""
    return tuple(map(function, images)) if isinstance(images, tuple) else function(images)


def of_full_size(images: Images) -> Tensor:
    """The first of a pair of images."""
    return images[0] if isinstance(images, tuple) else images


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Within the block no parameter of the network requires a gradient."""
    parameters = trainable(network)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
