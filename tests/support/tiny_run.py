"""A training so small that it takes a second, for the tests of training, checkpoints and command lines."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from fastgan import models
from fastgan.cli.train import main
from fastgan.runs import checkpoint
from fastgan.runs import config as configuration
from fastgan.runs.checkpoint import FILE_NAME
from fastgan.training import configure
from fastgan.training.state import new_state

IMAGES, BATCH = 48, 4
WIDTHS = ["--channel-base", "64", "--channel-max", "8", "--z-dim", "8"]


def make_folder(where: Path) -> Path:
    """Ten 8x8 grey images in each of two classes, named dark and light."""
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        (where / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(low, low + 128, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(where / name / f"{number}.png")
    return where


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    """Options of a whole tiny training."""
    return [
        *("--data", str(folder), "--out", str(out), "--resolution", "8", *WIDTHS, "--batch", str(BATCH)),
        *("--images", str(IMAGES), "--checkpoint-interval", "16", "--log-interval", "8", "--grid-interval", "0"),
        *("--r1-gamma", "1", "--r1-interval", "2", "--threads", "1", "--no-tensorboard", *more),
    ]


def train(folder: Path, out: Path, *more: str) -> Path:
    """Run it in this process."""
    assert main(arguments(folder, out, *more)) == 0
    return out


def untrained(
    where: Path,
    arch: str,
    classes: tuple[str, ...] = (),
    stage: tuple[int, float] | None = None,
    tanh: bool | str = "auto",
    resolution: int = 8,
    pixel_shuffle: bool | str = "auto",
    **training,
) -> Path:
    """A run's folder with a checkpoint of small random networks in colour, in which nothing is zero at first: so noise,
    bias and all residual branches show."""
    network = configuration.NetworkOptions(
        arch=arch, channel_base=64, channel_max=8, z_dim=8, tanh=tanh, pixel_shuffle=pixel_shuffle
    )
    data = configuration.DataOptions(resolution=resolution, channels=3, labels=bool(classes))
    config = configure.resolve(
        configuration.Config(network=network, data=data, training=configuration.TrainingOptions(**training))
    )
    model = models.ModelConfig(**vars(config.network), resolution=resolution, channels=3, num_classes=len(classes))
    torch.manual_seed(0)
    state = new_state(model, config, torch.device("cpu"))
    state.stage = stage
    for tensor in (*state.ema.parameters(), *(buffer for name, buffer in state.ema.named_buffers() if "w_avg" in name)):
        if not tensor.any():
            torch.nn.init.normal_(tensor, std=0.2)
    for parameter in state.other_emas.parameters():
        torch.nn.init.normal_(parameter)
    where.mkdir(parents=True)
    dataset = {"images": 0, "class_names": list(classes), "digests": {}}
    checkpoint.save(where / FILE_NAME, state, config, model, dataset)
    return where


def log_lines(run: Path) -> list[dict]:
    """Log lines without speed and memory."""
    of_machine = ("images_per_second", "peak_memory_gib")
    path = run / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: value for name, value in line.items() if name not in of_machine} for line in lines]


def tensors(run: Path, name: str = FILE_NAME) -> dict[str, np.ndarray]:
    """Everything in a run's checkpoint."""
    with safe_open(run / name, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_same_checkpoint(run: Path, other: Path, name: str = FILE_NAME) -> None:
    """Weights, EMA, optimizer moments and RNG states are equal bit for bit."""
    ours, theirs = tensors(run, name), tensors(other, name)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    assert not different, f"these differ: {different}"
