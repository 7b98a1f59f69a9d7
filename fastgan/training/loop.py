"""The training loop: data, critic, generator, average, log, save, in the order they happen."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastgan import data, models
from fastgan.errors import UserError
from fastgan.losses import OBJECTIVES, critic_with_grad_norm
from fastgan.ops import backends
from fastgan.training import checkpoint, memory, precision, process
from fastgan.training.config import Config, TrainingOptions, to_dict
from fastgan.training.ema import Average, decay
from fastgan.training.files import write_atomically
from fastgan.training.grid import Section, draw_grid, save_png
from fastgan.training.log import FILE_NAME as LOG_FILE_NAME
from fastgan.training.log import TENSORBOARD_FOLDER, Averages, Log, require_finite, require_finite_weights
from fastgan.training.sampling import draw, latents

CONFIG_FILE_NAME = "config.json"
GRID_COLUMNS = 12
GRID_CLASSES = 64  # at most so many rows


def train(config: Config, header: checkpoint.Header | None = None) -> int:
    """Train as `config` (resolved) says, from scratch or from the checkpoint of `header`, and write the run's files.

    Returns the exit status: 0, or 128 + the number of the signal that asked to stop early (the run is saved then).
    Raises UserError for what a user can put right.
    """
    options, output = config.training, config.output
    device = precision.choose_device(config.machine.device)
    compute = precision.choose(config.machine.amp, device)
    threads, why = process.choose_threads(config.machine.threads)
    torch.set_num_threads(threads)

    dataset = _open_data(config, header)
    model = header.model if header else _model_config(config, dataset.num_classes)
    torch.manual_seed(config.machine.seed)
    state = _new_state(model, options, device)
    if header:
        checkpoint.restore(header, state)
    for operation in backends.OPERATIONS:  # FASTGAN_BACKEND may name none that can serve
        backends.choose(operation, device)
    run = header.path.parent if header else _new_run_folder(config)
    write_atomically(run / CONFIG_FILE_NAME, json.dumps(to_dict(config), indent=2).encode())
    print(f"data       {dataset.describe()}")
    print(f"networks   {model.arch}: generator {_count(state.generator)}, critic {_count(state.critic)} parameters")
    print(f"computing  on {device} in {compute}, {_threads(threads, why)}")
    print(f"run        {run}" + (f", resumed at {state.step * options.batch:,} images" if header else ""), flush=True)

    generator, critic, ema = state.generator, state.critic, state.ema
    batch, total_steps = options.batch, config.steps()
    objective = OBJECTIVES[options.loss]
    sampler = data.BatchSampler(len(dataset), batch, config.machine.seed)
    average = Average(ema, generator)
    mixing = {"style_mixing": options.style_mixing} if options.style_mixing else {}
    write_grid = _grid_writer(run, dataset, ema, model, config)
    summary = {"images": len(dataset), "class_names": dataset.class_names, "digests": dataset.digests}
    averages = Averages()

    def save() -> None:
        require_finite_weights(generator, critic, f"{run / checkpoint.FILE_NAME} is kept as it was")
        checkpoint.save(run / checkpoint.FILE_NAME, state, config, model, summary)

    log_time, log_step = time.perf_counter(), state.step
    if not header:  # from here on --resume works, and a full disk shows at once
        with _kept_from_the_first_step_on(run, state):
            save()
    saved_step = state.step

    def new_fakes(label: Tensor | None) -> Tensor:
        with compute.autocast():
            return generator(torch.randn(batch, model.z_dim, device=device), label, **mixing)

    def judge(image: Tensor, label: Tensor | None) -> Tensor:
        with compute.autocast():
            return critic(image, label)

    def due(interval: int) -> bool:
        seen = state.step * batch
        return finished or (interval > 0 and seen // interval > (seen - batch) // interval)

    with (
        process.finish_step_on_signal() as interrupt,
        _kept_from_the_first_step_on(run, state),
        contextlib.closing(Log(run, state.step, output.tensorboard)) as log,
        tqdm(
            total=total_steps * batch,
            initial=state.step * batch,
            unit="img",
            smoothing=0.1,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        ) as progress,
    ):
        finished = state.step >= total_steps
        while not finished:
            # Data. Generated images get the labels of the real ones: their distribution is the right one.
            index = sampler.batch_at(state.step)
            real = data.to_model_range(_to_device(dataset.images[index], device))
            label = None if dataset.labels is None else _to_device(dataset.labels[index], device)

            # Critic: real above generated; every few steps R1, on the same forward pass and that much stronger.
            state.optimizer_d.zero_grad(set_to_none=True)
            fake = new_fakes(label)  # with its graph: the generator's step below uses the same images
            fake_logits = judge(fake.detach(), label)
            loss_fake = objective.critic_fake(fake_logits)
            loss_fake.backward()
            if options.r1_gamma and state.step % options.r1_interval == 0:
                with compute.autocast():
                    real_logits, squares = critic_with_grad_norm(critic, real, label)
                loss_real = objective.critic_real(real_logits)
                penalty = squares.mean()
                (loss_real + options.r1_gamma / 2 * options.r1_interval * penalty).backward()
                averages.add(r1_norm2=penalty)
            else:
                real_logits = judge(real, label)
                loss_real = objective.critic_real(real_logits)
                loss_real.backward()
            state.optimizer_d.step()
            averages.add(loss_d=loss_real + loss_fake, logit_real=real_logits.mean(), logit_fake=fake_logits.mean())

            # Generator: its images to be called real. The critic's own weights need no gradient here.
            state.optimizer_g.zero_grad(set_to_none=True)
            critic.requires_grad_(False)
            loss_g = objective.generator(judge(fake, label))
            loss_g.backward()
            critic.requires_grad_(True)
            state.optimizer_g.step()
            averages.add(loss_g=loss_g)

            # Average.
            state.step += 1
            finished = state.step >= total_steps or bool(interrupt)  # asked once a step: what follows must agree
            average.update(decay(state.step * batch, batch, options.ema_halflife * 1000, options.ema_rampup))
            progress.update(batch)

            # Log. Also before every save, so that no average spans a checkpoint.
            images = state.step * batch
            save_now = due(output.checkpoint_interval)
            if due(output.log_interval) or save_now:
                means = averages.read()  # the only place that waits for the device
                require_finite(means, images, f"{run / checkpoint.FILE_NAME} is from {saved_step * batch:,} images")
                now = time.perf_counter()
                rate = (state.step - log_step) * batch / (now - log_time)
                log_time, log_step = now, state.step
                log.write(state.step, images, means | {"images_per_second": rate})
                progress.set_postfix(loss_g=f"{means['loss_g']:.3f}", loss_d=f"{means['loss_d']:.3f}", refresh=False)

            # Save.
            if save_now:
                log.sync()
                save()
                saved_step = state.step
            if due(output.grid_interval) and not finished:
                write_grid(state.step)

        grid = write_grid(state.step)
    print(f"samples    {grid}")
    print(f"checkpoint {run / checkpoint.FILE_NAME}")
    if state.step == total_steps:
        return 0
    print(f"stopped at {state.step * batch:,} images; go on with: python -m fastgan.train --resume {run}")
    return interrupt.exit_code


def _threads(count: int, why: str) -> str:
    return f"{count} CPU thread{'s' * (count > 1)} ({why})"


def _open_data(config: Config, header: checkpoint.Header | None) -> data.ImageDataset:
    options = config.data
    glyph_classes = {} if options.classes == "auto" else {"classes": options.classes}
    dataset = data.open_dataset(options.source, options.resolution, options.channels, **glyph_classes)
    if header and (difference := _difference(dataset, header.dataset)):
        raise UserError(
            f"--data {options.source} {difference}; give what {header.path} was trained on, or start without --resume"
        )
    return dataset


def _difference(dataset: data.ImageDataset, saved: dict[str, Any]) -> str | None:
    """What a data set has that the one a checkpoint was trained on had not; None if they are the same."""
    if dataset.class_names != saved["class_names"]:
        return f"has classes {dataset.class_names}, not {saved['class_names']}"
    if len(dataset) != saved["images"]:
        return f"has {len(dataset):,} images, not {saved['images']:,}"
    if dataset.digests["images"] != saved["digests"]["images"]:
        return "has as many images, but other ones, or in another order"
    if dataset.digests["labels"] != saved["digests"]["labels"]:
        return "has the same images, but with other labels"
    return None


def _model_config(config: Config, num_classes: int) -> models.ModelConfig:
    image = {"resolution": config.data.resolution, "channels": config.data.channels}
    return models.ModelConfig(**vars(config.network), **image, num_classes=num_classes)


def _new_state(model: models.ModelConfig, options: TrainingOptions, device: torch.device) -> checkpoint.State:
    try:
        networks = models.build(model)
    except ValueError as error:
        raise UserError(str(error)) from None
    generator, critic = (network.to(device=device, memory_format=torch.channels_last) for network in networks)
    ema = copy.deepcopy(generator).eval().requires_grad_(False)
    # Lazy regularisation: learning rate and betas for the extra work that every r1_interval-th step does (Karras et
    # al. 2020, appendix B).
    lazy = options.r1_interval / (options.r1_interval + 1) if options.r1_gamma and options.r1_interval > 1 else 1.0
    return checkpoint.State(
        generator,
        critic,
        ema,
        _adam(generator, options.lr_g, options.betas, device),
        _adam(critic, options.lr_d * lazy, tuple(beta**lazy for beta in options.betas), device),
    )


def _adam(network: nn.Module, lr: float, betas: tuple[float, float], device: torch.device) -> torch.optim.Adam:
    fused = device.type in ("cpu", "cuda")
    return torch.optim.Adam(network.parameters(), lr=lr, betas=betas, eps=1e-8, fused=fused)


def _new_run_folder(config: Config) -> Path:
    """Make the folder that --out names, or the next free runs/ARCH-DATA-NNN."""
    try:
        if config.output.out is not None:
            run = Path(config.output.out)
            if (run / checkpoint.FILE_NAME).exists():
                raise UserError(f"--out {run} holds a run already; go on with --resume {run}, or choose another folder")
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
def _kept_from_the_first_step_on(run: Path, state: checkpoint.State) -> Iterator[None]:
    """If memory does not suffice for a first step, nothing of the run stays: --out may name the same folder again."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if state.step == 0 and memory.is_shortage(error):
            for name in (checkpoint.FILE_NAME, CONFIG_FILE_NAME, LOG_FILE_NAME):
                (run / name).unlink(missing_ok=True)
            shutil.rmtree(run / TENSORBOARD_FOLDER, ignore_errors=True)
            with contextlib.suppress(OSError):  # it has files of someone else
                run.rmdir()
        raise


def _grid_writer(
    run: Path, dataset: data.ImageDataset, ema: nn.Module, model: models.ModelConfig, config: Config
) -> Callable[[int], Path]:
    """A function that writes the grid of a step and returns its path: reals, then fakes of the same latents always."""
    rng = np.random.default_rng(config.machine.seed)
    shown = rng.integers(len(dataset), size=(2, GRID_COLUMNS))
    reals = Section("real", [("", np.asarray(dataset.images[index])) for index in shown])
    names = dataset.class_names[:GRID_CLASSES] or [""] * 8
    z = latents(range(GRID_COLUMNS * len(names)), model.z_dim)
    labels = torch.arange(len(names)).repeat_interleave(GRID_COLUMNS) if dataset.class_names else None

    def write(step: int) -> Path:
        images = draw(ema, z, labels, batch=config.training.batch)
        images = images.reshape(len(names), GRID_COLUMNS, *images.shape[1:])
        seen = step * config.training.batch
        fakes = Section(f"generated, after {seen:,} images", list(zip(names, images, strict=True)))
        path = run / f"grid-{seen:09d}.png"
        save_png(draw_grid([reals, fakes]), path)
        return path

    return write


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _count(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"
