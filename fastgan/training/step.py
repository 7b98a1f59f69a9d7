"""What a step of training does to the networks: discriminator, generator, average. It knows no data, files or
progress."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan import models
from fastgan.augment import AdaptiveStrength, Augment
from fastgan.distributed import Ranks
from fastgan.errors import UserError
from fastgan.layers import BatchNormAct, MinibatchStddev
from fastgan.losses import OBJECTIVES, Objective, PairedObjective, PathLength
from fastgan.models.gradient_checkpointing import enable_gradient_checkpointing
from fastgan.models.progressive import ProgressiveGrowing
from fastgan.penalties import logits_and_squared_grad, wgan_gp, zero_centered_penalty
from fastgan.runs import graphs
from fastgan.runs.checkpoint import State
from fastgan.runs.config import Config, MachineOptions, RegularizationOptions, TrainingOptions
from fastgan.runs.precision import Autocast, compiler
from fastgan.training.adam import Adam
from fastgan.training.averages import Averages
from fastgan.training.ema import Average, decay
from fastgan.training.gradients import GradientSum
from fastgan.training.guard import Guard
from fastgan.training.randomness import Streams
from fastgan.transparency import premultiplied


def new_state(model: models.ModelConfig, config: Config, device: torch.device, processes: int = 1) -> State:
    """Fresh networks, optimizers and statistics. Parameters of frozen layers require no gradient.

    Raises ValueError for a network that makes no sense, UserError for CUDA graphs on a CPU and for more frozen layers
    than there are.
    """
    options, terms = config.training, config.regularization
    networks = models.build(model)
    generator, discriminator = (network.to(device=device, memory_format=torch.channels_last) for network in networks)
    _freeze(discriminator, options.freeze_d)
    ema = copy.deepcopy(generator).eval().requires_grad_(False)
    capturable = why_not_captured(config.machine, device, processes) is None
    strength = AdaptiveStrength(target=terms.ada_target, adjust_kimg=terms.ada_kimg)
    # All of them, whatever is in use: a resumed run may use another.
    statistics = nn.ModuleDict(
        {
            "path_length": PathLength(),
            "augment": Augment(),
            "strength": strength,
            "guard_g": Guard(),
            "guard_d": Guard(),
        }
    )
    return State(
        generator,
        discriminator,
        ema,
        _optimizer(generator, options.lr_g, options, _lazy(bool(terms.path_length), terms.path_interval), capturable),
        _optimizer(
            discriminator,
            options.lr_d,
            options,
            _lazy(bool(terms.r1_gamma or terms.r2_gamma), terms.r1_interval),
            capturable,
        ),
        statistics.to(device),
    )


def _freeze(discriminator: nn.Module, count: int) -> None:
    """The first layers behind the image are not trained (Mo et al. 2020, arXiv 2002.10964)."""
    layers = discriminator.layers_from_image()
    if count > len(layers):
        raise UserError(
            f"--freeze-d {count}: this discriminator has {len(layers)} layers to freeze; give at most {len(layers)}"
        )
    for layer in layers[:count]:
        layer.requires_grad_(False)


def trained(network: nn.Module) -> list[nn.Parameter]:
    """Its parameters without those of frozen layers."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _lazy(used: bool, interval: int) -> float:
    """Lazy regularisation: learning rate to this share and betas to this power, for the extra work that every
    `interval`-th step does (Karras et al. 2020, appendix B)."""
    return interval / (interval + 1) if used and interval > 1 else 1.0


def _optimizer(
    network: nn.Module, lr: float, options: TrainingOptions, lazy: float, capturable: bool
) -> torch.optim.Optimizer:
    parameters = trained(network)
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr * lazy, foreach=True, capturable=capturable)
    betas = tuple(beta**lazy for beta in options.betas)
    fused = parameters[0].device.type in ("cpu", "cuda")
    return Adam(parameters, lr=lr * lazy, betas=betas, eps=1e-8, fused=fused, capturable=capturable)


def why_not_captured(options: MachineOptions, device: torch.device, processes: int = 1) -> str | None:
    """Why steps on `device` are not captured, or None. `processes`: that make a step together.

    Raises UserError where `--cuda-graphs on` asks for what cannot be.
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


def objective_of(loss: str) -> Objective | PairedObjective:
    """The objective that the option `--loss` names: two of its values differ in what else they ask for."""
    return OBJECTIVES["wasserstein" if loss in ("wgan", "wgan-gp") else loss]


class MicroBatch(NamedTuple):
    """What goes through the networks at once: latents, real images, the labels of both, its share of the batch, and its
    number among all micro-batches of the step."""

    z: Tensor
    real: Tensor
    label: Tensor | None
    share: float
    number: int


class Verdict(NamedTuple):
    """Of N images: logits [N], and where a penalty asks for it |d logit / d image|^2 [N]."""

    logits: Tensor
    squares: Tensor | None = None


class Kind(NamedTuple):
    """What decides which operations a step is made of. Steps of a kind differ in the contents of tensors only."""

    trains_generator: bool
    penalizes: bool  # R1, R2
    shortens_paths: bool
    stage: tuple[int, bool] | None  # of networks that grow: resolution, and whether it is being faded in


class Step:
    """Makes the steps of a training: calling it with a batch makes one, and counts it in `state`.

    A step trains the discriminator; every `discriminator_steps`-th one trains the generator and moves the average. The
    generator learns from the very images that the discriminator has just seen, and draws them once; but twice in steps
    with a penalty that not every step has. Those need the most memory, and get that of the generator's graph. (What a
    generator averages over its calls, as of batch norm or of w, sees the images twice then.)

    With `--batch-gpu` a batch is split into micro-batches. Their gradients add up to those of the batch where samples
    are independent of each other; batch norm and minibatch stddev see one micro-batch at a time. The generator's phase
    then draws its images again as well: to keep the graphs of all of them from the discriminator's phase would need the
    memory of the whole batch.

    Several processes share the micro-batches of a step. Each micro-batch has random numbers of its own, so the same
    micro-batches make the same step, but for rounding, in one process or in many.

    With `--compile`, `torch.compile` has a part in it: in the passes of both networks that are differentiated once.

    On a GPU steps are captured as CUDA graphs, one for each `Kind`: see `fastgan.runs.graphs`.

    Args:
        state: what to train, in place.
        config: resolved.
        z_dim: size of the latents.
        autocast: makes the context that networks run in.
        averages: where losses and the like are counted in.
        recorder: of the graphs; None for that of the networks' device, where there is one.
        ranks: the processes that make the step together.
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
        self.objective = objective_of(config.training.loss)
        self.average = Average(state.ema, state.generator)
        self.mixing = {"style_mixing": self.options.style_mixing} if self.options.style_mixing else {}
        self.augment: Augment | None = state.statistics["augment"] if self.terms.augment != "none" else None
        self._rows = _Rows(state.discriminator)
        device = next(state.generator.parameters()).device
        if config.machine.checkpoint_blocks:
            enable_gradient_checkpointing(state.generator)
            enable_gradient_checkpointing(state.discriminator)
        compiled = compiler(device) if config.machine.compile else lambda network: network
        self._generator, self._discriminator = (
            compiled(state.generator),
            compiled(state.discriminator),
        )  # in phases without penalties
        self._optimizers = {"g": state.optimizer_g, "d": state.optimizer_d}
        self._guards: dict[str, Guard] = {name: state.statistics[f"guard_{name}"] for name in self._optimizers}
        for name, guard in self._guards.items():
            guard.begin(scaled)
            self._optimizers[name].found_inf = guard.found
        self._rates = {name: _rates(optimizer) for name, optimizer in self._optimizers.items()}
        self._sums = {
            name: GradientSum(trained(module), self.ranks)
            for name, module in (("g", state.generator), ("d", state.discriminator))
        }
        self.why_not_captured = None if recorder else why_not_captured(config.machine, device, self.ranks.world_size)
        captures = self.why_not_captured is None
        self._graphs = graphs.Graphs(self._run, recorder or graphs.CudaRecorder(device)) if captures else None
        self._numbers = graphs.Numbers(device if captures else None)
        self._random = Streams(config.machine.seed, device, captures)
        self._stage = None

    @property
    def failure(self) -> str | None:
        """Why steps are not captured any more where they should be."""
        return None if self._graphs is None else self._graphs.failure

    def left_out(self) -> dict[str, int]:
        """Steps in a row, up to the last one, whose gradients were not finite, by network. Waits for the device."""
        names = {"g": "generator", "d": "discriminator"}
        return {names[name]: int(guard.streak) for name, guard in self._guards.items()}

    def __call__(self, real: Tensor, label: Tensor | None, lr_factor: float = 1.0) -> None:
        """Train on real images [N, C, R, R] of range [-1, 1], if transparent premultiplied, and their labels [N]: this
        process's share of the batch. Learning rates are those of the options times `lr_factor`. Generated images get
        the same labels: their distribution is the right one."""
        state, kind, count = self.state, self._kind(), len(real) * self.ranks.world_size
        self._anneal(lr_factor, count)
        self._random.begin_step(state.step)
        if kind.stage != self._stage:
            self._stage = kind.stage
            self._forget_stage()
        run = self._run if self._graphs is None else self._graphs
        run(kind, real, label)
        state.step += 1
        state.images += count

    def _forget_stage(self) -> None:
        """What was made for a stage of growth that is over: it does not come again."""
        if self._graphs is not None:
            self._graphs.forget()
        if self._generator is not self.state.generator:
            torch.compiler.reset()  # it compiles a network a few times only

    def _kind(self) -> Kind:
        """Of the coming step."""
        options, terms, step, generator = self.options, self.terms, self.state.step, self.state.generator
        updates, last = divmod(step, options.discriminator_steps)  # of the generator so far
        trains = last == options.discriminator_steps - 1
        return Kind(
            trains,
            bool(terms.r1_gamma or terms.r2_gamma) and step % terms.r1_interval == 0,
            trains and bool(terms.path_length) and updates % terms.path_interval == 0,
            (generator.stage_resolution, generator.fading) if isinstance(generator, ProgressiveGrowing) else None,
        )

    def _run(self, kind: Kind, real: Tensor, label: Tensor | None) -> None:
        """What a step does on the device.

        In a captured graph it is done again without any of this code. So nothing here hangs on numbers of `state`, but
        on `kind`, on tensors, and on `_numbers`; and nothing here changes but tensors.
        """
        with self.averages.step():
            parts = self._micro_batches(real, label)
            # Within a captured graph the same images could not be drawn again: there random numbers go on.
            sparing = kind.penalizes and self.terms.r1_interval > 1 and self._graphs is None
            keeps_graph = kind.trains_generator and len(parts) == 1 and not sparing
            for optimizer in self._optimizers.values():  # of both: the discriminator's phase needs the most memory
                optimizer.zero_grad(set_to_none=True)
            real_logits, places = [], []
            for part in parts:
                self._random.begin(part.number)
                with torch.set_grad_enabled(keeps_graph):
                    fake = self._generate(part)
                real_logits.append(self._add_discriminator_gradients(kind, part, fake.detach(), part is parts[-1]))
                places.append(self._random.pause())
            self._update_discriminator(torch.cat(real_logits))

            if kind.trains_generator:
                lengths = []
                for part, place in zip(parts, places, strict=True):
                    if not keeps_graph:  # the same images again
                        self._random.begin(part.number)
                        fake = self._generate(part)
                        self._random.go_on(place)
                    lengths += self._add_generator_gradients(kind, part, fake, part is parts[-1])
                self._update_generator(lengths)

    def _micro_batches(self, real: Tensor, label: Tensor | None) -> list[MicroBatch]:
        """Those of this process. Latents are drawn for all: they do not hang on how a batch is split."""
        ranks, size = self.ranks, min(self.options.batch_gpu or len(real), len(real))
        z = self._latents(len(real) * ranks.world_size)[ranks.rank * len(real) :][: len(real)]
        self._random.end_of_whole()
        labels = itertools.repeat(None) if label is None else label.split(size)
        parts = list(zip(z.split(size), real.split(size), labels, strict=False))
        share = size / len(real) / ranks.world_size
        return [MicroBatch(*part, share, number) for number, part in enumerate(parts, ranks.rank * len(parts))]

    def _backward(self, network: str, loss: Tensor, last: bool = False) -> None:
        """`last`: of the step and the network, so that gradients may be sent to other processes."""
        if last:
            self._sums[network].expect()
        self._guards[network].loss(loss).backward()

    def _apply(self, name: str, network: nn.Module) -> None:
        """The gradients, if they are finite."""
        guard, optimizer = self._guards[name], self._optimizers[name]
        self._sums[name].finish()
        guard.check(network.parameters())
        if not isinstance(optimizer, Adam):  # knows nothing of guards, but does not move where there is no gradient
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(guard.found != 0, 0)
        optimizer.step()
        self.averages.add(**{f"skipped_{name}": guard.found})

    # Discriminator
    # -------------------------------------------------------------------------------------------------------

    def _add_discriminator_gradients(self, kind: Kind, part: MicroBatch, fake: Tensor, last: bool) -> Tensor:
        """Returns the logits of the real images. `last`: no more gradients are added in this step."""
        terms, objective = self.terms, self.objective
        if terms.gp_lambda:
            with self.autocast():
                penalty = wgan_gp(self._after_augmentation(self.state.discriminator), part.real, fake, part.label)
            self._backward("d", part.share * terms.gp_lambda * penalty)
            self.averages.add(gradient_penalty=penalty)
        r1, r2 = (kind.penalizes and bool(gamma) for gamma in (terms.r1_gamma, terms.r2_gamma))
        together = self._rows.fit(part.real, penalized=r1 or r2) and r1 == r2
        if together or isinstance(objective, PairedObjective):
            of_fake, of_real = self._judge_both(fake, part, r2, r1, together)
            loss = objective.discriminator(of_real.logits, of_fake.logits)
            penalty = self._penalty(of_fake, r2, "r2") + self._penalty(of_real, r1, "r1")
            self._backward("d", part.share * (loss + penalty + self._drift(of_real)), last)
        else:  # one half after the other: only one of them is in memory
            of_fake = self._judge(fake, part.label, r2)
            loss_fake = objective.discriminator_fake(of_fake.logits)
            self._backward("d", part.share * (loss_fake + self._penalty(of_fake, r2, "r2")))
            of_real = self._judge(part.real, part.label, r1)
            loss_real = objective.discriminator_real(of_real.logits)
            penalty = self._penalty(of_real, r1, "r1")
            self._backward("d", part.share * (loss_real + penalty + self._drift(of_real)), last)
            loss = loss_real.detach() + loss_fake.detach()
        self.averages.add(loss_d=loss)
        for name, logits in (("real", of_real.logits.detach()), ("fake", of_fake.logits.detach())):
            self.averages.add(**{f"logit_{name}": logits.mean(), f"sign_{name}": logits.sign().mean()})
        return of_real.logits.detach()

    def _update_discriminator(self, real_logits: Tensor) -> None:
        state, terms = self.state, self.terms
        self._apply("d", state.discriminator)
        if terms.clip:
            weights = [parameter.detach() for parameter in trained(state.discriminator)]
            torch._foreach_clamp_min_(weights, -terms.clip)
            torch._foreach_clamp_max_(weights, terms.clip)
        if terms.augment == "ada":
            state.statistics["strength"].update(self.ranks.all_gather(real_logits), self.augment.p)
        if self.augment is not None:
            self.averages.add(augment_p=self.augment.p.clone())

    def _after_augmentation(self, discriminator: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The discriminator, of altered images where there is augmentation: gradient penalties are with respect to the
        images before it."""
        augment = self.augment
        return discriminator if augment is None else lambda images, label=None: discriminator(augment(images), label)

    def _judge(self, images: Tensor, label: Tensor | None, penalized: bool = False) -> Verdict:
        """With squares, from the same forward pass, if a penalty is due."""
        with self.autocast():
            if penalized:
                return Verdict(
                    *logits_and_squared_grad(self._after_augmentation(self.state.discriminator), images, label)
                )
            return Verdict(self._after_augmentation(self._discriminator)(images, label))

    def _judge_both(
        self, fake: Tensor, part: MicroBatch, fake_penalized: bool, real_penalized: bool, together: bool
    ) -> tuple[Verdict, Verdict]:
        """Generated and real images; `together` in one pass, for which weights are prepared once."""
        label = part.label
        if not together:
            return self._judge(fake, label, fake_penalized), self._judge(part.real, label, real_penalized)
        rows = self._rows
        labels = None if label is None else rows.join(label, label)
        with rows.apart():
            both = self._judge(rows.join(fake, part.real), labels, real_penalized)
        squares = (None, None) if both.squares is None else rows.part(both.squares)
        of_fake, of_real = map(Verdict, rows.part(both.logits), squares)
        return of_fake, of_real

    def _penalty(self, verdict: Verdict, due: bool, name: str) -> Tensor | float:
        """R1 or R2, as `name` says, where it is due."""
        if not due:
            return 0.0
        self.averages.add(**{f"{name}_norm2": verdict.squares.mean()})
        return self._numbers[name] * zero_centered_penalty(verdict.squares)

    def _drift(self, of_real: Verdict) -> Tensor | float:
        return self.terms.drift * of_real.logits.square().mean() if self.terms.drift else 0.0

    # Generator ----------------------------------------------------------------------------------------------------

    def _generate(self, part: MicroBatch) -> Tensor:
        with self.autocast():
            return premultiplied(self._generator(part.z, part.label, **self.mixing))

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self.z_dim, device=next(self.state.generator.parameters()).device)

    def _add_generator_gradients(self, kind: Kind, part: MicroBatch, fake: Tensor, last: bool) -> list[Tensor]:
        """Returns the mean length of paths, where it was asked for. `last`: as for the discriminator."""
        objective = self.objective
        with _fixed(self.state.discriminator):
            logits = self._judge(fake, part.label).logits
            if isinstance(objective, PairedObjective):
                with torch.no_grad():
                    real_logits = self._judge(part.real, part.label).logits
                loss = objective.generator(logits, real_logits)
            else:
                loss = objective.generator(logits)
            self._backward("g", part.share * loss, last and not kind.shortens_paths)
        self.averages.add(loss_g=loss)
        return [self._shorten_paths(part, last)] if kind.shortens_paths else []

    def _shorten_paths(self, part: MicroBatch, last: bool) -> Tensor:
        """The path length penalty on half a batch, as Karras et al. 2020, appendix B. Returns the mean length."""
        count, generator = max(1, len(part.real) // 2), self.state.generator
        with self.autocast():
            label = None if part.label is None else part.label[:count]
            ws = generator.styles(self._latents(count), label, **self.mixing)
            images = premultiplied(generator.synthesize(ws))
        penalty, length = self.state.statistics["path_length"].of(images, ws)
        self._backward("g", part.share * self.terms.path_length * self.terms.path_interval * penalty, last)
        self.averages.add(path_penalty=penalty)
        return length

    def _update_generator(self, lengths: list[Tensor]) -> None:
        self._apply("g", self.state.generator)
        self.average.update(self._numbers["average"])
        if lengths:
            self.state.statistics["path_length"].update(self.ranks.all_reduce_mean(torch.stack(lengths).mean()))

    # Schedules ----------------------------------------------------------------------------------------------------

    def _annealed(self, first: float, last: float) -> float:
        """From `first` to `last` over the training, on half a cosine."""
        done = min(1.0, self.state.images / self.options.images)
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2

    def _anneal(self, lr_factor: float, count: int) -> None:
        """All that is another number at the coming step, of `count` images."""
        options, terms, state, numbers = self.options, self.terms, self.state, self._numbers
        if terms.augment in ("fixed", "ramp"):
            first = terms.augment_p if terms.augment == "fixed" else 0.0
            self.augment.p.fill_(self._annealed(first, terms.augment_p))
        for name, optimizer in self._optimizers.items():
            for group, (lr, betas) in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = numbers.set(f"lr_{name}", lr * lr_factor * self._annealed(1.0, options.final_lr))
                if betas is not None and options.final_beta2 is not None:
                    beta2 = self._annealed(betas[1], options.final_beta2)
                    group["betas"] = betas[0], numbers.set(f"beta2_{name}", beta2, torch.float64)
        for name, gamma in (("r1", terms.r1_gamma), ("r2", terms.r2_gamma)):  # stronger by the interval
            numbers.set(name, gamma * self._annealed(1.0, terms.final_gamma) * terms.r1_interval)
        shown = count * options.discriminator_steps
        kept = decay(state.images + count, shown, options.ema_halflife * 1000, options.ema_rampup)
        numbers.set("average", 1 - kept)


def _rates(optimizer: torch.optim.Optimizer) -> list[tuple[float, tuple[float, float] | None]]:
    """Learning rate and betas of each group."""
    return [(group["lr"], group.get("betas")) for group in optimizer.param_groups]


@contextlib.contextmanager
def _fixed(network: nn.Module) -> Iterator[None]:
    """Within the block its weights need no gradients."""
    parameters = trained(network)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class _Rows:
    """Two batches as one, so that a discriminator's verdicts on either stay what they are without the other.

    A discriminator with minibatch stddev compares samples that lie a fixed distance apart (see `minibatch_stddev`). In
    rows of that length these are columns: the two batches are laid side by side. Our batch norm is told that there are
    two, one after the other; PyTorch's cannot be, and its statistics would be of both.
    """

    def __init__(self, discriminator: nn.Module):
        modules = list(discriminator.modules())
        groups = [module.group_size for module in modules if isinstance(module, MinibatchStddev)]
        self.count = max([size for size in groups if size is not None], default=1)
        self._norms = [module for module in modules if isinstance(module, BatchNormAct)]
        foreign = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
        self._separate = foreign or None in groups or bool(self._norms and self.count > 1)  # None: of a whole batch

    def fit(self, batch: Tensor, penalized: bool = False) -> bool:
        """Whether a batch may be joined with another of the same size. A penalty is for one sample at a time, which
        batch norm does not know: it is left to take the batches as they come."""
        return not self._separate and len(batch) % self.count == 0 and not (penalized and self._norms)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Within the block batch norm takes what it is given for two batches."""
        for norm in self._norms:
            norm.batches = 2
        try:
            yield
        finally:
            for norm in self._norms:
                norm.batches = 1

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """[N, ...] twice to [2N, ...]; images [N, C, H, W] in channels_last."""
        if first.ndim == 4:
            return self._join(first.movedim(1, 3), second.movedim(1, 3)).movedim(3, 1)
        return self._join(first, second)

    def _join(self, *batches: Tensor) -> Tensor:
        return torch.cat([batch.unflatten(0, (self.count, -1)) for batch in batches], 1).flatten(0, 1)

    def part(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: [2N, ...] to [N, ...] twice."""
        first, second = both.unflatten(0, (self.count, -1)).chunk(2, 1)
        return first.flatten(0, 1), second.flatten(0, 1)
