"""The training loop: data, discriminator, generator, EMA, log, save, in the order they happen."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from fastgan import data, models
from fastgan.data.urls import has_scheme
from fastgan.distributed import Ranks, connected, is_lost_process
from fastgan.errors import UserError, program, readable
from fastgan.files import one_writer, write_atomically
from fastgan.metrics import registry
from fastgan.models.progressive import fade_reals
from fastgan.ops import backends
from fastgan.progress import ProgressBar
from fastgan.runs import checkpoint, memory, precision, process
from fastgan.runs.config import FILE_NAME as CONFIG_FILE_NAME
from fastgan.runs.config import Config, changes, flag, from_dict, pyramid, to_dict
from fastgan.runs.health import Watch
from fastgan.runs.log import read as read_log
from fastgan.training import configure, guard
from fastgan.training.averages import Averages
from fastgan.training.diversity import Diversity
from fastgan.training.diversity import interval as diversity_interval
from fastgan.training.growth import Growth
from fastgan.training.guard import SkippedShare, require_finite, require_progress
from fastgan.training.initial import InitialNetworks
from fastgan.training.length import Clock, Length
from fastgan.training.log_writer import LogWriter, NoLog, require_wandb
from fastgan.training.run_folder import new_run_folder, removed_unless_trained
from fastgan.training.sample_grid import SampleGrid
from fastgan.training.state import new_state
from fastgan.training.step import Step
from fastgan.training.validation import BackgroundEvaluation
from fastgan.transparency import premultiplied

SIGNAL_ECHO = 2.0  # seconds within which one Ctrl-C may reach several processes


def train(config: Config, header: checkpoint.Header | None = None, initial: InitialNetworks | None = None) -> int:
    """Train as `config` (resolved) says, together with any processes that torchrun has started, and write the run.

    Starts from the checkpoint of `header`, from the networks `initial`, or else from scratch.

    Returns the exit status: 0, or 128 + the number of the signal that stopped it early, after saving.
    Raises UserError for a user's mistake.
    """
    with (
        connected(config.machine.device, "what it last saved is whole: go on with --resume") as ranks,
        contextlib.ExitStack() as until_the_end,
    ):
        return _train(config, header, initial, ranks, until_the_end)


def _train(
    config: Config,
    header: checkpoint.Header | None,
    initial: InitialNetworks | None,
    ranks: Ranks,
    until_the_end: contextlib.ExitStack,
) -> int:
    options, output = config.training, config.output
    say = print if ranks.is_first else lambda *_, **__: None

    # Options and device.
    _require_same_start(config, header, ranks)
    configure.check_processes(config, ranks.world_size)
    if output.wandb is not None:
        require_wandb(output.wandb)
    device = precision.choose_device(config.machine.device, ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        precision.GPU_TRAINING.apply()
    compute = precision.choose(config.machine.amp, device)
    threads, why = process.choose_threads(config.machine.threads, ranks.local_world_size)
    torch.set_num_threads(threads)

    # Data, networks and optimizers.
    with ranks.local_first():
        dataset = _open_data(config, header)
    num_classes = dataset.num_classes if config.data.labels else 0
    if header:
        model = header.model
    else:
        model = initial.model_config(config, num_classes) if initial else _model_config(config, num_classes)
    configure.check_groups(config, _group_size(model), ranks.world_size)
    torch.manual_seed(config.machine.seed)
    try:
        _require_memory(model, config, device, ranks.world_size)
        state = new_state(model, config, device, ranks.world_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    if header:
        checkpoint.restore(header, state)
    copied = initial.copy_into(state, model) if initial else None
    ranks.broadcast_modules(*state.modules().values())
    evaluation = BackgroundEvaluation(config)
    backends.choose("noise_bias_act", device)  # raises if no backend in FASTGAN_BACKEND can serve
    growth = Growth(state, config) if config.growth.grow_from else None
    loader = data.ImageLoader(
        dataset,
        device,
        config.machine.seed,
        growth.batch_at if growth else lambda images_seen: options.batch,
        share=(ranks.rank, ranks.world_size),
        labels=model.num_classes > 0,
        mirror=config.data.mirror,
    )

    # The run's folder, and what is printed about it.
    if header:
        run = header.path.parent
    else:
        folder = str(new_run_folder(config)) if ranks.is_first else ""
        run = Path(ranks.broadcast(folder))
    if ranks.is_first:
        if not header:
            until_the_end.enter_context(one_writer(run))
        write_atomically(run / CONFIG_FILE_NAME, json.dumps(to_dict(config), indent=2).encode())
    say(f"data       {dataset.describe()}; {loader.how}")
    say(
        f"networks   {model.arch}: generator {_count(state.generator)}, "
        f"discriminator {_count(state.discriminator)} parameters"
        + (f" on features of {registry.PROJECTED}" if model.discriminator == "projected" else "")
    )
    if copied:
        say(f"started    {copied}")
    together = f", in {ranks.world_size} processes" if ranks.world_size > 1 else ""
    say(f"computing  on {device} in {compute}, {threads} CPU thread{'s' * (threads > 1)} ({why}){together}")
    if initial:
        begins = f", starting with networks of {initial.path}"
    else:
        begins = f", resumed at {state.images:,} images" if header else ""
    say(f"run        {run}{begins}", flush=True)

    # The step, and what is measured and drawn along the way.
    averages = Averages()
    length = Length(options)
    step = Step(state, config, model.z_dim, compute.autocast, averages, ranks=ranks, scaled=compute.scaled)
    reason = step.why_not_captured
    say("steps      " + (f"not captured: {reason}" if reason else "captured, then replayed"), flush=True)
    diversity = Diversity(dataset, model) if ranks.is_first else None
    measure_diversity_every = diversity_interval(output.log_interval, ranks.world_size)
    grid = SampleGrid(run, dataset, state, model, config)
    summary = {"images": len(dataset), "class_names": dataset.class_names, "digests": dataset.digests}
    watch = Watch(config, summary)
    path = run / checkpoint.FILE_NAME

    last_save = state.images  # at which saving was last tried, or need not be

    def save() -> None:
        nonlocal last_save
        last_save = state.images
        require_finite(checkpoint.named_tensors(state), f"{path} is kept as it was")
        if ranks.is_first:
            checkpoint.save(path, state, config, model, summary)
            checkpoint.keep_newest(path, state.images, output.keep_checkpoints)

    log_time, log_images = time.perf_counter(), state.images
    if not header:  # from here on --resume works, and a full disk shows at once
        with removed_unless_trained(run, state, ranks):
            save()
    elif ranks.is_first and header.path == path and output.keep_checkpoints > 1:
        checkpoint.keep_newest(path, state.images, output.keep_checkpoints)  # it may have been killed just after saving
    saved_images = state.images
    skipped, logged_step = SkippedShare(), state.step

    @contextlib.contextmanager
    def saved_if_it_fails() -> Iterator[None]:
        """Save what has been trained since the last save if the block fails. A step that has failed may be half done:
        the discriminator may be ahead by one update.

        Not if another process is gone: torchrun may start all of them again, which must go on exactly.
        """
        try:
            yield
        except Exception as error:
            another_is_gone = ranks.world_size > 1 and isinstance(error, RuntimeError) and is_lost_process(error)
            if state.images > last_save and not another_is_gone and not isinstance(error, guard.Diverged):
                with contextlib.suppress(Exception):  # the first error is the one to report
                    log.sync()
                    save()
                    say(f"checkpoint {path} is from {state.images:,} images, saved because of an error:", flush=True)
            raise

    def due(interval: int) -> bool:
        return finished or crossed(interval)

    def crossed(interval: int) -> bool:
        return interval > 0 and state.images // interval > before // interval

    with (
        process.finish_step_on_signal(SIGNAL_ECHO if ranks.world_size > 1 else 0.0) as interrupt,
        contextlib.nullcontext() if header else removed_unless_trained(run, state, ranks),
        contextlib.closing(loader),
        LogWriter(run, state.step, state.images, config) if ranks.is_first else NoLog() as log,
        contextlib.closing(evaluation),
        _progress_bar(length, state, ranks) as progress,
        saved_if_it_fails(),
    ):
        watch.read_all(read_log(run) if ranks.is_first else [])
        finished = length.is_over(state)
        if header and ranks.is_first and not finished and grid.is_missing(growth):
            log.write_grid(state.step, state.images, grid.write())
        clock = Clock(state, length, ranks)
        while not finished:
            # Data, at the resolution that the networks have grown to.
            before = state.images
            stage = growth.advance() if growth else None
            real, label = loader.batch(before)
            real = premultiplied(real)
            if stage:
                real = fade_reals(real, stage.resolution, stage.alpha)

            # Discriminator, generator, EMA.
            step(real, label, stage.lr_factor if stage else 1.0)
            # Read the signal once: all that follows, in all processes, must act on the same one.
            interrupt.received = ranks.previous_max(interrupt.signum)
            clock.read()
            finished = interrupt.received != 0 or length.is_over(state)
            progress.update(length.reached(state) - progress.n)

            # Log. Also before every save, so that no mean spans a checkpoint.
            evaluate_now = output.metrics and due(output.metrics_interval)
            save_now = due(output.checkpoint_interval) or evaluate_now
            if due(output.log_interval) or save_now:
                means = ranks.all_reduce_means(averages.read())  # waits for the device
                limit = guard.LIMIT_AT_THE_END if length.is_over(state) else guard.LIMIT
                saved = f"{path} is from {saved_images:,} images"
                require_progress(step.skipped(), limit, means, state.images, saved)
                skipped.add(state.step - logged_step, means)
                logged_step = state.step
                now = time.perf_counter()
                rate = (state.images - log_images) / (now - log_time)
                log_time, log_images = now, state.images
                peak = memory.peak(device)
                if diversity and crossed(measure_diversity_every):
                    means |= diversity.measure(state.ema, compute.autocast, options.batch_gpu or len(real), stage)
                grown = {"resolution": stage.resolution, "alpha": stage.alpha} if stage else {}
                machine = {"images_per_second": rate} | ({} if peak is None else {"peak_memory_gib": peak})
                machine |= {"minutes": state.seconds / 60} if length.seconds else {}
                line = log.write(state.step, state.images, means | grown | machine)
                for warning in watch.read(line):
                    progress.write(f"warning    {warning}")
                shown = {name: f"{means[name]:.3f}" for name in ("loss_g", "loss_d") if name in means}
                progress.set_postfix(shown | ({"side": stage.resolution} if stage else {}), refresh=False)
                evaluation.collect(log)

            # Save.
            if save_now:
                log.sync()
                save()
                saved_images = state.images
                if not interrupt.received:
                    least = guard.LIMIT if finished else guard.ENOUGH_STEPS
                    skipped.require_less_than_half(least, f"{path} is from {saved_images:,} images")
            if evaluate_now and not finished and ranks.is_first:
                evaluation.start(path, state)
            if due(output.grid_interval) and not finished and ranks.is_first:
                log.write_grid(state.step, state.images, grid.write())

        if ranks.is_first:
            picture = grid.write()
            log.write_grid(state.step, state.images, picture)
            say(f"samples    {picture}")
        ranks.leave()  # the other processes need not wait for the last evaluation
        if ranks.is_first:
            evaluation.finish(path, state, log, interrupt)
    say(f"checkpoint {path}")
    if length.is_over(state):
        if length.seconds:
            say(f"reached    {state.images:,} images in {state.seconds / 60:.4g} minutes")
        return 0
    source = f" --data {config.data.source}" if has_scheme(config.data.source) else ""  # has to be given again
    say(f"stopped at {state.images:,} images; go on with: {program('train')} --resume {run}{source}")
    return interrupt.exit_code


def _progress_bar(length: Length, state: checkpoint.State, ranks: Ranks) -> ProgressBar:
    """Bar of the images, or of the minutes, that make the training."""
    form = {"bar_format": "{l_bar}{bar}| {n:.1f}/{total:g} min{postfix}"} if length.seconds else {"unit": "img"}
    start, total = length.reached(state), length.total
    return ProgressBar(total=total, initial=start, smoothing=0.1, disable=not ranks.is_first, **form)


def _require_same_start(config: Config, header: checkpoint.Header | None, ranks: Ranks) -> None:
    """Raise UserError if the first process has other options than this one, or would resume from elsewhere."""
    images = header.images if header else None
    first_config, first_images = json.loads(ranks.broadcast(json.dumps([to_dict(config), images])))
    if different := changes(from_dict(first_config), config):
        name, (of_first, here) = next(iter(different.items()))
        raise UserError(f"{flag(name)} {here}: is {of_first} in the first process; start all with the same options")
    if first_images != images:
        where = ("begins" if at is None else f"goes on at {at:,} images" for at in (first_images, images))
        raise UserError(
            "the first process {}, this one {}; the run's folder must be the same one on all machines".format(*where)
        )


def _group_size(model: models.ModelConfig) -> int | None:
    """Number of samples in a minibatch stddev group; None if there are none, or a group is the whole batch."""
    if model.discriminator == "projected":
        return None
    if model.arch in ("stylegan2", "stylegan3"):
        return model.stddev_group if model.stddev_features else None
    return 4 if model.arch in configure.GROUPED else None


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
    published = {"w_avg_decay": 0.998} if config.network.arch == "stylegan3" and resolution >= 128 else {}
    return models.ModelConfig(**vars(config.network), **image, **published, num_classes=num_classes)


def _require_memory(model: models.ModelConfig, config: Config, device: torch.device, processes: int) -> None:
    """Raise UserError if memory cannot hold parameters with their moments, a batch of images and its feature maps.

    A lower bound of what training takes; a closer case fails in the first step.
    """
    try:
        with torch.device("meta"):
            generator, discriminator = models.build(model)
    except (TypeError, RuntimeError) as error:  # sizes that no tensor can have
        raise UserError(f"these networks cannot be made: {readable(str(error).partition(chr(10))[0])}") from None
    parameters = lambda network: sum(parameter.numel() for parameter in network.parameters())
    emas = len(config.training.ema_halflives)
    needed = 4 * ((4 + emas) * parameters(generator) + 4 * parameters(discriminator))  # gradients, two moments
    batch = max(config.training.batch, *config.growth.level_batch, 0) // processes
    batch = min(batch, config.training.batch_gpu or batch)
    needed += batch * 3 * 4 * model.channels * math.prod(model.feature_size(model.resolution))
    if model.arch in configure.OF_BLOCKS and not config.growth.level_batch:
        needed += batch * 2 * sum(model.features(r) * math.prod(model.feature_size(r)) for r in model.resolutions)
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    remedy = "make --batch smaller, or --channel-base and --channel-max, or --resolution"
    memory.require(float(needed), "a step", remedy, there)


def _count(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"
