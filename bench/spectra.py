"""Plots average power spectra of samples beside training images: `python -m bench.spectra RUN ... --out spectra.png`.

Peaks are patterns that repeat at a fixed distance, as StyleGAN2's layers leave them; a curve below that of the training
images is missing detail. Values are first scaled by mean and standard deviation of the training images.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgan.data import ImageDataset, open_dataset
from fastgan.metrics.spectra import average_power, slices
from fastgan.runs.drawing import draw_batches
from fastgan.runs.networks import TrainedNetworks, open_networks

BATCH = 16


def of_data(data: ImageDataset, count: int) -> Iterator[Tensor]:
    """Random training images, [N, C, H, W] from -1 to 1."""
    index = np.sort(np.random.default_rng(0).permutation(len(data))[:count])
    for part in np.array_split(index, max(1, len(index) // BATCH)):
        yield torch.from_numpy(np.asarray(data.images[part])).permute(0, 3, 1, 2) / 127.5 - 1


def of_samples(trained: TrainedNetworks, count: int) -> Iterator[Tensor]:
    z = torch.randn(count, trained.model.z_dim, generator=torch.Generator().manual_seed(0))
    classes = trained.model.num_classes
    labels = torch.arange(count) % classes if classes else None
    return (images.clamp(-1, 1) for images in draw_batches(trained.load(torch.device("cpu")), z, labels, batch=BATCH))


def plot(spectra: dict[str, Tensor], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for number, (axes, title) in enumerate(
        zip(figure.subplots(1, 2, sharey=True), ("along x", "along the diagonal"), strict=True)
    ):
        for name, power in spectra.items():
            axes.plot(
                10 * slices(power)[number].log10(), label=name, color="black" if name == "training images" else None
            )
        axes.set(title=title, xlabel="waves along a side")
    figure.axes[0].set_ylabel("power, dB")
    figure.axes[0].legend()
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN|FILE", help="as for --checkpoint of fastgan evaluate")
    parser.add_argument("--data", help="training images; by default those of the first run")
    parser.add_argument("--images", type=int, default=2000, help="of each set")
    parser.add_argument("--out", type=Path, default=Path("spectra.png"))
    options = parser.parse_args()
    networks = [open_networks(run) for run in options.runs]
    model, header = networks[0].model, networks[0].header
    source = options.data or (header and header.config.data.source)
    if source is None:
        parser.error(f"{options.runs[0]} does not name its training images; give --data")
    data = open_dataset(source, model.resolution, model.channels)
    pixels = torch.cat(list(of_data(data, options.images)))
    scale = {"mean": pixels.mean().item(), "std": pixels.std().item()}
    spectra = {"training images": average_power(pixels.split(BATCH), **scale)}
    for run, trained in zip(options.runs, networks, strict=True):
        spectra[f"{trained.model.arch}: {Path(run).name}"] = average_power(of_samples(trained, options.images), **scale)
    plot(spectra, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
