"""A few steps of tiny trainings in one of several processes that train together."""

import json
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from fastgan import models
from fastgan.distributed import Ranks, connected
from fastgan.runs import config as configuration
from fastgan.training import configure, gradients
from fastgan.training.averages import Averages
from fastgan.training.state import new_state
from fastgan.training.step import Step

BATCH, STEPS, CLASSES = 16, 4, 4
# Name: (architecture, regularization, options of the training).
CASES = {
    "mlp": ("mlp", {"r1_gamma": 1.0, "r1_interval": 2}, {}),
    "dcgan": ("dcgan", {}, {"ema_halflife": (0.05, 0.2, 0.01)}),
    "dcgan, wgan": ("dcgan", {}, {"loss": "wgan", "discriminator_steps": 2}),
    "cgan": ("cgan", {}, {"loss": "hinge"}),
    "pggan": ("pggan", {}, {}),
    "stylegan": ("stylegan", {"r1_gamma": 1.0, "r1_interval": 2}, {}),
    "stylegan2": ("stylegan2", {"r1_gamma": 1.0, "r1_interval": 2, "path_length": 2.0, "path_interval": 2}, {}),
    "stylegan2, ada": ("stylegan2", {"augment": "ada", "ada_kimg": 0.01}, {}),
    "stylegan2, diffaug": ("stylegan2", {"augment": "diffaug"}, {}),
    "dcgan, projected": ("dcgan", {}, {"discriminator": "projected"}),
    "stylegan2, micro-batches": ("stylegan2", {"path_length": 2.0, "path_interval": 2}, {"batch_gpu": 4}),
    "stylegan2, frozen layers": ("stylegan2", {"r1_gamma": 1.0, "r1_interval": 2}, {"init_from": "x", "freeze_d": 3}),
    "stylegan3, micro-batches": (
        "stylegan3",
        {"r1_gamma": 1.0, "r1_interval": 2, "blur": 1.0, "blur_images": 32},
        {"batch_gpu": 4},
    ),
    "r3gan": ("r3gan", {"augment": "ramp", "augment_p": 0.5}, {"images": 64}),
    "fastgan": ("fastgan", {}, {}),
}


def train(case: str, ranks: Ranks, batch_gpu: int | None = None):
    """A few steps in fp64: the step, what is trained, and the means of what was logged."""
    arch, regularization, options = CASES[case]
    labels = arch in ("stylegan2", "stylegan3", "stylegan", "r3gan", "cgan")
    given = {"batch": BATCH, "ema_halflife": 0.05, **options} | ({} if batch_gpu is None else {"batch_gpu": batch_gpu})
    network = {"arch": arch, "channel_base": 64, "channel_max": 8, "z_dim": 8}
    if given.pop("discriminator", "own") == "projected":
        network |= {"discriminator": "projected", "projected_size": 64}
    config = configure.resolve(
        configuration.Config(
            network=configuration.NetworkOptions(**network),
            data=configuration.DataOptions(resolution=8, labels=labels),
            training=configuration.TrainingOptions(**given),
            regularization=configuration.RegularizationOptions(**regularization),
        )
    )
    model = models.ModelConfig(**vars(config.network), resolution=8, num_classes=CLASSES if labels else 0)
    torch.manual_seed(0)
    state = new_state(model, config, torch.device("cpu"), ranks.world_size)
    torch.manual_seed(ranks.rank)  # steps seed themselves: this must have no effect
    averages = Averages()
    step = Step(state, config, 8, nullcontext, averages, ranks=ranks)
    data, share = torch.Generator().manual_seed(1), BATCH // ranks.world_size
    for _ in range(STEPS):
        real = torch.rand(BATCH, 1, 8, 8, generator=data) * 2 - 1
        label = torch.randint(CLASSES, (BATCH,), generator=data)
        mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
        step(real[mine], label[mine] if labels else None)
    return step, trained(state), ranks.all_reduce_means(averages.read())


def trained(state) -> dict[str, torch.Tensor]:
    """Parameters, optimizer moments and counters; no running statistics."""
    found = {f"statistics.{name}": value for name, value in state.statistics.state_dict().items()}
    for name in ("generator", "discriminator", "ema", "other_emas"):
        found |= {f"{name}.{key}": value.detach() for key, value in getattr(state, name).named_parameters()}
    for name, (optimizer, module) in state.optimizers().items():
        for key, parameter in module.named_parameters():
            found |= {f"{name}.{key}.{moment}": value for moment, value in optimizer.state.get(parameter, {}).items()}
    return found


def main(folder: Path) -> None:
    """Train all cases, in the process that RANK and torchrun's other variables name. Writes folder/CASE-RANK.pt."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    gradients.BUCKET_BYTES = 2000  # several pieces, also of small networks
    with connected("cpu", "") as ranks:
        for case in CASES:
            found = train(case, ranks)
            sent_early = {name: each.sent_early for name, each in found[0]._gradients.items()}
            torch.save((*found[1:], sent_early), folder / f"{case}-{ranks.rank}.pt")
        own = 0 if ranks.is_first else signal.SIGUSR1
        received = [ranks.previous_max(wish) for wish in (0, own, 0, 0)]
        (folder / f"received-{ranks.rank}.json").write_text(json.dumps(received))
        ranks.leave()
        while ranks.is_first and not (folder / "gone").exists():  # the first process works longer than the others
            time.sleep(0.01)
    (folder / "gone").touch()
