"""The training loop: data, discriminator, generator, average, log, save, in the order they happen."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastgan import data, models
from fastgan.distributed import Ranks, connected
from fastgan.errors import UserError, program, readable
from fastgan.files import one_writer, write_atomically
from fastgan.models.progressive import fade_reals
from fastgan.ops import backends
from fastgan.ops.fused import OPERATIONS
from fastgan.progress import ProgressBar
from fastgan.runs import checkpoint, memory, precision, process
from fastgan.runs.config import Config, changes, flag, from_dict, pyramid, to_dict
from fastgan.runs.drawing import draw, latents
from fastgan.runs.grid import Section, draw_grid, save_picture
from fastgan.runs.health import Watch
from fastgan.runs.log import FILE_NAME as LOG_FILE_NAME
from fastgan.runs.log import read as read_log
from fastgan.training import configure, guard, initial
from fastgan.training.averages import Averages
from fastgan.training.diversity import Diversity
from fastgan.training.diversity import interval as measured_every
from fastgan.training.growth import Schedule, Stage, stage_at
from fastgan.training.guard import require_finite_weights, require_progress
from fastgan.training.log_writer import LogWriter, NoLog, remove_logs, require_wandb
from fastgan.training.state import new_state
from fastgan.training.step import Step
from fastgan.training.validation import Evaluations
from fastgan.transparency import premultiplied

CONFIG_FILE_NAME = "config.json"
GRID_COLUMNS = 12
GRID_CLASSES = 64  # at most so many rows
ECHO = 2.0  # seconds between the signals that one Ctrl-C is to several processes


def train(config: Config, header: checkpoint.Header | None = None, start: initial.Start | None = None) -> int:
    """Train as `config` (resolved) says, from scratch, from the checkpoint of `header` or from the networks of `start`,
    and write the run's files.

    Together with the processes that torchrun has started beside this one, if there are.

    Returns the exit status: 0, or 128 + the number of the signal that asked to stop early (the run is saved then).
    Raises UserError for what a user can put right.
    """
    with (
        connected(config.machine.device, "what it last saved is whole: go on with --resume") as ranks,
        contextlib.ExitStack() as until_the_end,
    ):
        return _train(config, header, start, ranks, until_the_end)


def _train(
    config: Config,
    header: checkpoint.Header | None,
    start: initial.Start | None,
    ranks: Ranks,
    until_the_end: contextlib.ExitStack,
) -> int:
    options, output = config.training, config.output
    say = print if ranks.is_first else lambda *_, **__: None
    _require_same(config, header, ranks)
    configure.check_processes(config, ranks.world_size)
    if output.wandb is not None:
        require_wandb(output.wandb)
    device = precision.choose_device(config.machine.device, ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    compute = precision.choose(config.machine.amp, device)
    threads, why = process.choose_threads(config.machine.threads, ranks.local_world_size)
    torch.set_num_threads(threads)

    with ranks.local_first():
        dataset = _open_data(config, header)
    num_classes = dataset.num_classes if config.data.labels else 0
    if header:
        model = header.model
    else:
        model = start.fitted(config, num_classes) if start else _model_config(config, num_classes)
    configure.check_groups(config, _compared(model), ranks.world_size)
    torch.manual_seed(config.machine.seed)
    try:
        _require_memory(model, config, device, ranks.world_size)
        state = new_state(model, config, device, ranks.world_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    if header:
        checkpoint.restore(header, state)
    fresh = start.put_into(state, model) if start else None
    ranks.broadcast_modules(*state.modules().values())
    evaluations = Evaluations(config)
    for operation in OPERATIONS:  # FASTGAN_BACKEND may name none that can serve
        backends.choose(operation, device)
    growth = Growth(state, config) if config.growth.grow_from else None
    batch_at = growth.batch_at if growth else lambda position: options.batch
    loader = data.ImageLoader(
        dataset,
        device,
        config.machine.seed,
        batch_at,
        share=(ranks.rank, ranks.world_size),
        labels=model.num_classes > 0,
        mirror=config.data.mirror,
    )
    run = (
        header.path.parent if header else Path(ranks.broadcast(str(_new_run_folder(config)) if ranks.is_first else ""))
    )
    if ranks.is_first:
        if not header:
            until_the_end.enter_context(one_writer(run))
        write_atomically(run / CONFIG_FILE_NAME, json.dumps(to_dict(config), indent=2).encode())
    say(f"data       {dataset.describe()}; {loader.how}")
    say(
        f"networks   {model.arch}: generator {_count(state.generator)}, "
        f"discriminator {_count(state.discriminator)} parameters"
    )
    if fresh:
        say(f"started    {fresh}")
    together = f", in {ranks.world_size} processes" if ranks.world_size > 1 else ""
    say(f"computing  on {device} in {compute}, {_threads(threads, why)}{together}")
    say(f"run        {run}" + _beginning(state, header, start), flush=True)

    averages = Averages()
    step = Step(state, config, model.z_dim, compute.autocast, averages, ranks=ranks, scaled=compute.scaled)
    if device.type == "cuda":
        reason = step.why_not_captured
        say("steps      " + (f"without CUDA graphs: {reason}" if reason else "captured as CUDA graphs"), flush=True)
    diversity = Diversity(dataset, model) if ranks.is_first else None
    watch_interval = measured_every(output.log_interval, ranks.world_size)
    write_grid = _grid_writer(run, dataset, state, model, config)
    summary = {"images": len(dataset), "class_names": dataset.class_names, "digests": dataset.digests}
    watch = Watch(config, summary)

    def save() -> None:
        require_finite_weights(state.generator, state.discriminator, f"{run / checkpoint.FILE_NAME} is kept as it was")
        if ranks.is_first:
            checkpoint.save(run / checkpoint.FILE_NAME, state, config, model, summary)
            checkpoint.keep(run / checkpoint.FILE_NAME, state.images, output.keep_checkpoints)

    log_time, log_images = time.perf_counter(), state.images
    if not header:  # from here on --resume works, and a full disk shows at once
        with _kept_from_the_first_step_on(run, state, ranks):
            save()
    saved_images = state.images

    def due(interval: int) -> bool:
        return finished or crossed(interval)

    def crossed(interval: int) -> bool:
        return interval > 0 and state.images // interval > before // interval

    with (
        process.finish_step_on_signal(ECHO if ranks.world_size > 1 else 0.0) as interrupt,
        contextlib.nullcontext() if header else _kept_from_the_first_step_on(run, state, ranks),
        contextlib.closing(loader),
        LogWriter(run, state.step, state.images, config) if ranks.is_first else NoLog() as log,
        contextlib.closing(evaluations),
        ProgressBar(
            total=options.images, initial=state.images, unit="img", smoothing=0.1, disable=not ranks.is_first
        ) as progress,
    ):
        watch.read_all(read_log(run) if ranks.is_first else [])
        finished = state.images >= options.images
        if header and ranks.is_first and not finished and _owes_grid(run, state, config, growth):
            log.write_grid(state.step, state.images, write_grid(state.images))
        while not finished:
            # Data, at the resolution that the networks have grown to.
            before = state.images
            stage = growth.advance() if growth else None
            real, label = loader.batch(before)
            real = premultiplied(real)
            if stage:
                real = fade_reals(real, stage.resolution, stage.alpha)

            # Discriminator, generator, average.
            step(real, label, stage.lr_factor if stage else 1.0)
            # Asked once: what follows must agree, here and in all processes.
            interrupt.heard = ranks.previous_max(interrupt.signum)
            finished = interrupt.heard != 0 or state.images >= options.images
            progress.update(state.images - before)

            # Log. Also before every save, so that no average spans a checkpoint.
            measure_now = output.metrics and due(output.metrics_interval)
            save_now = due(output.checkpoint_interval) or measure_now
            if due(output.log_interval) or save_now:
                means = ranks.all_reduce_means(averages.read())  # waits for the device
                kept = f"{run / checkpoint.FILE_NAME} is from {saved_images:,} images"
                limit = guard.LIMIT_AT_THE_END if state.images >= options.images else guard.LIMIT
                require_progress(step.skipped(), limit, means, state.images, kept)
                now = time.perf_counter()
                rate = (state.images - log_images) / (now - log_time)
                log_time, log_images = now, state.images
                grown = {"resolution": stage.resolution, "alpha": stage.alpha} if stage else {}
                used = memory.peak(device)
                if diversity and crossed(watch_interval):
                    means |= diversity.measure(state.ema, compute.autocast, options.batch_gpu or len(real), stage)
                machine = {"images_per_second": rate} | ({} if used is None else {"peak_memory_gib": used})
                line = log.write(state.step, state.images, means | grown | machine)
                for warning in watch.read(line):
                    progress.write(f"warning    {warning}")
                shown = {name: f"{means[name]:.3f}" for name in ("loss_g", "loss_d") if name in means}
                progress.set_postfix(shown | ({"side": stage.resolution} if stage else {}), refresh=False)
                evaluations.collect(log)

            # Save.
            if save_now:
                log.sync()
                save()
                saved_images = state.images
            if measure_now and not finished and ranks.is_first:
                evaluations.start(run / checkpoint.FILE_NAME, state)
            if due(output.grid_interval) and not finished and ranks.is_first:
                log.write_grid(state.step, state.images, write_grid(state.images))

        if ranks.is_first:
            grid = write_grid(state.images)
            log.write_grid(state.step, state.images, grid)
            say(f"samples    {grid}")
        ranks.leave()  # the last evaluation may take longer than one waits for another
        if ranks.is_first:
            evaluations.finish(run / checkpoint.FILE_NAME, state, log, interrupt)
    say(f"checkpoint {run / checkpoint.FILE_NAME}")
    if state.images >= options.images:
        return 0
    say(f"stopped at {state.images:,} images; go on with: {program('train')} --resume {run}")
    return interrupt.exit_code


class Growth:
    """Lets the networks of a training grow with the images shown."""

    def __init__(self, state: checkpoint.State, config: Config):
        options, side = config.growth, config.data.resolution
        levels = [2**i for i in range(options.grow_from.bit_length() - 1, side.bit_length())]
        batches = options.level_batch or [config.training.batch] * len(levels)
        factors = options.level_lr or [1.0] * len(levels)
        self.state = state
        self.schedule = Schedule(
            options.grow_from,
            side,
            options.level_images,
            options.fade_images,
            dict(zip(levels, batches, strict=True)),
            dict(zip(levels, factors, strict=True)),
        )

    def advance(self) -> Stage:
        """Bring the networks to where they should be by now.

        A new level starts with optimizers that know nothing (Karras et al. 2018, appendix A.1).
        """
        state, stage = self.state, stage_at(self.state.images, self.schedule)
        for network in (state.generator, state.discriminator, state.ema):
            network.grow_to(stage.resolution, stage.alpha)
        if state.stage is not None and state.stage[0] != stage.resolution:
            state.optimizer_g.state.clear()
            state.optimizer_d.state.clear()
        state.stage = stage.resolution, stage.alpha
        return stage

    def batch_at(self, images_seen: int) -> int:
        """Images of the step after so many."""
        return stage_at(images_seen, self.schedule).batch


def _require_same(config: Config, header: checkpoint.Header | None, ranks: Ranks) -> None:
    """Raise UserError where the first process has other options than this one, or would go on from elsewhere."""
    images = header.images if header else None
    first_config, first_images = json.loads(ranks.broadcast(json.dumps([to_dict(config), images])))
    if different := changes(from_dict(first_config), config):
        name, (before, here) = next(iter(different.items()))
        raise UserError(f"{flag(name)} {here}: is {before} in the first process; start all with the same options")
    if first_images != images:
        where = ("begins" if at is None else f"goes on at {at:,} images" for at in (first_images, images))
        raise UserError(
            "the first process {}, this one {}; the run's folder must be the same one on all machines".format(*where)
        )


def _compared(model: models.ModelConfig) -> int | None:
    """Samples of a group that the discriminator compares; None if it compares none, or all that it gets."""
    if model.arch == "stylegan2":
        return model.stddev_group if model.stddev_features else None
    return 4 if model.arch in configure.GROUPED else None


def _beginning(state: checkpoint.State, header: checkpoint.Header | None, start: initial.Start | None) -> str:
    if start:
        return f", starting with networks of {start.path}"
    return f", resumed at {state.images:,} images" if header else ""


def _threads(count: int, why: str) -> str:
    return f"{count} CPU thread{'s' * (count > 1)} ({why})"


def _open_data(config: Config, header: checkpoint.Header | None) -> data.ImageDataset:
    options = config.data
    glyph_classes = {} if options.classes == "auto" else {"classes": options.classes}
    dataset = data.open_dataset(options.source, options.resolution, options.channels, **glyph_classes)
    if header and (difference := checkpoint.difference(dataset, header.dataset)):
        raise UserError(
            f"--data {options.source} {difference}; give what {header.path} was trained on, or start without --resume"
        )
    return dataset


def _model_config(config: Config, num_classes: int) -> models.ModelConfig:
    resolution, first = pyramid(config.data.resolution)
    image = {"resolution": resolution, "base_size": first, "channels": config.data.channels}
    # With noise a generator dithers: alpha of single pixels at one end or the other, where it should be in between.
    noise = config.data.channels != 4
    return models.ModelConfig(**vars(config.network), **image, num_classes=num_classes, noise=noise)


def _require_memory(model: models.ModelConfig, config: Config, device: torch.device, processes: int) -> None:
    """Raises UserError if parameters with their moments, a batch of images and one of feature maps cannot be held.

    It is less than a training takes; what is near the limit shows in the first step.
    """
    try:
        with torch.device("meta"):
            generator, discriminator = models.build(model)
    except (TypeError, RuntimeError) as error:  # for sizes that no tensor can have
        raise UserError(f"these networks cannot be made: {readable(str(error).partition(chr(10))[0])}") from None
    parameters = lambda network: sum(parameter.numel() for parameter in network.parameters())
    needed = 4 * (5 * parameters(generator) + 4 * parameters(discriminator))  # with gradients, two moments, the average
    batch = max(config.training.batch, *config.growth.level_batch, 0) // processes
    batch = min(batch, config.training.batch_gpu or batch)
    needed += batch * 3 * 4 * model.channels * math.prod(model.feature_size(model.resolution))
    if model.arch in configure.OF_BLOCKS and not config.growth.level_batch:
        needed += batch * 2 * sum(model.features(r) * math.prod(model.feature_size(r)) for r in model.resolutions)
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    remedy = "make --batch smaller, or --channel-base and --channel-max, or --resolution"
    memory.require(float(needed), "a step", remedy, there)


def _new_run_folder(config: Config) -> Path:
    """Make the folder that --out names, or the next free runs/ARCH-DATA-NNN."""
    try:
        if config.output.out is not None:
            run = Path(config.output.out)
            if (run / checkpoint.FILE_NAME).exists():
                raise UserError(f"--out {run} holds a run already; go on with --resume {run}, or choose another folder")
            if (run / LOG_FILE_NAME).exists():
                raise UserError(
                    f"--out {run} holds the {LOG_FILE_NAME} of another run; remove it, or choose another folder"
                )
            run.mkdir(parents=True, exist_ok=True)
            return run
        name = f"{config.network.arch}-{Path(config.data.source).stem}"
        for number in range(1000):
            run = Path("runs") / f"{name}-{number:03d}"
            with contextlib.suppress(FileExistsError):
                run.mkdir(parents=True)
                return run
    except OSError as error:
        raise UserError(f"cannot make the folder {run}: {error.strerror}; choose another with --out") from None
    raise UserError(f"there are 1000 runs called runs/{name}-NNN; choose a folder with --out")


@contextlib.contextmanager
def _kept_from_the_first_step_on(run: Path, state: checkpoint.State, ranks: Ranks) -> Iterator[None]:
    """If a first step cannot be made, for want of memory or because there is no log to write, nothing of the run stays:
    --out may name the same folder again. What was in it before the run stays."""
    before = {path.name for path in run.iterdir()} if ranks.is_first else set()
    try:
        yield
    except (MemoryError, RuntimeError, UserError) as error:
        if ranks.is_first and state.step == 0 and (isinstance(error, UserError) or memory.is_shortage(error)):
            for name in (checkpoint.FILE_NAME, CONFIG_FILE_NAME):
                (run / name).unlink(missing_ok=True)
            checkpoint.forget_kept(run / checkpoint.FILE_NAME)
            remove_logs(run, before)
            with contextlib.suppress(OSError):  # it has files of someone else
                run.rmdir()
        raise


def _grid_path(run: Path, images: int) -> Path:
    return run / f"grid-{images:09d}.png"


def _owes_grid(run: Path, state: checkpoint.State, config: Config, growth: Growth | None) -> bool:
    """Whether the step that was saved last should have written a grid, but was killed in between."""
    interval, images = config.output.grid_interval, state.images
    if not interval or _grid_path(run, images).exists():
        return False
    batches = set(growth.schedule.batches.values()) if growth else {config.training.batch}
    starts = [images - batch for batch in batches if batch <= images]
    if growth:
        starts = [start for start in starts if start + growth.batch_at(start) == images]
    return any(images // interval > start // interval for start in starts)


def _grid_writer(
    run: Path, dataset: data.ImageDataset, state: checkpoint.State, model: models.ModelConfig, config: Config
) -> Callable[[int], Path]:
    """A function that writes the grid after so many images and returns its path: reals, then fakes, whose latents are
    the same always."""
    rng = np.random.default_rng(config.machine.seed)
    shown = rng.integers(dataset.at_hand, size=(2, GRID_COLUMNS))
    reals = Section("real", [("", np.asarray(dataset.images[index])) for index in shown])
    names = dataset.class_names[:GRID_CLASSES] if model.num_classes else [""] * 8
    z = latents(range(GRID_COLUMNS * len(names)), model.z_dim)
    labels = torch.arange(len(names)).repeat_interleave(GRID_COLUMNS) if model.num_classes else None

    def write(seen: int) -> Path:
        images = draw(state.ema, z, labels, batch=config.training.batch)
        scale = dataset.images.shape[1] // images.shape[1]  # of networks that have not grown up yet
        images = images.repeat(scale, 1).repeat(scale, 2).reshape(len(names), GRID_COLUMNS, *dataset.images.shape[1:])
        fakes = Section(f"generated, after {seen:,} images", list(zip(names, images, strict=True)))
        path = _grid_path(run, seen)
        save_picture(draw_grid([reals, fakes]), path)
        return path

    return write


def _count(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"
