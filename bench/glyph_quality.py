"""Measures the quality of generated glyphs: `python -m bench.glyph_quality RUN`.

A small classifier, trained on real glyphs, reads 1,000 samples (psi 1). Do they show the requested class, or, without
classes, all classes? Do samples of a class differ as much as real ones? Are they more than copies of training images?
Distances are between the classifier's last features. "Fresh reals" are glyphs in the same fonts drawn with another
seed, which the generator has not seen.

Exits with status 1 unless at least 90 % of the samples (`--as-asked` changes it) are of the requested class, or each
class has at least a fifth of its share; the mean distance within a class is at least 70 % of the real one; and samples
are no nearer to training images than fresh reals are.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.data import ImageDataset, ShuffledStream, open_dataset, pixels_of
from fastgan.ops import image_batch
from fastgan.runs.checkpoint import load_generator, read_header


class Classifier(nn.Module):
    """Three stages of convolutions; `features` returns the last layer's input."""

    def __init__(self, channels: int, resolution: int, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((channels, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * (resolution // 8) ** 2, 128), nn.ReLU())
        self.head = nn.Linear(128, classes)

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def train_classifier(reals: ImageDataset, steps: int = 600, batch: int = 100) -> Classifier:
    torch.manual_seed(0)
    classifier = Classifier(reals.channels, reals.resolution, reals.num_classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    stream = ShuffledStream(len(reals))
    pixels, labels = pixels_of(reals), torch.from_numpy(reals.labels)
    for step in range(steps):
        index = torch.from_numpy(stream.take(step * batch, batch))
        logits = classifier(image_batch(pixels, index))
        loss = F.cross_entropy(logits, labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


@torch.no_grad()
def classify(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, F] and predicted classes [N] of images."""
    features = torch.cat([classifier.features(part) for part in images.split(500)])
    return features, classifier.head(features).argmax(1)


def within_class(features: Tensor, labels: Tensor) -> float:
    """Mean distance between two images of the same class."""
    means = []
    for label in labels.unique():
        own = features[labels == label]
        if len(own) < 2:
            continue
        means.append(torch.cdist(own, own).sum() / (len(own) * (len(own) - 1)))
    return float(torch.stack(means).mean())


def to_training(features: Tensor, training: Tensor) -> float:
    """Median distance to the nearest training image."""
    return float(torch.cdist(features, training).min(1).values.median())


def subset(dataset: ImageDataset, count: int) -> tuple[Tensor, Tensor]:
    """About `count` images: the first ones of every class."""
    order = np.argsort(dataset.labels, kind="stable")
    per_class = [order[dataset.labels[order] == c][: count // dataset.num_classes] for c in range(dataset.num_classes)]
    index = np.sort(np.concatenate(per_class))
    return image_batch(pixels_of(dataset), torch.from_numpy(index)), torch.from_numpy(dataset.labels[index])


class Judge:
    """Measures samples against real glyphs of the same classes, resolution and channels."""

    @torch.no_grad()
    def __init__(self, resolution: int, channels: int, classes: int, samples: int = 1000):
        self.resolution, self.classes, self.samples = resolution, classes, samples
        reals = open_dataset("glyphs", resolution, channels, classes=classes)
        fresh = open_dataset("glyphs", resolution, channels, classes=classes, seed=1)
        heldout = open_dataset("glyphs", resolution, channels, classes=classes, split="heldout")
        with torch.enable_grad():
            self.classifier = train_classifier(reals)
        self.training, _ = classify(self.classifier, image_batch(pixels_of(reals)))
        self.about_reals = {}
        for name, dataset in (("fresh_reals", fresh), ("held_out_fonts", heldout)):
            images, labels = subset(dataset, samples)
            features, predicted = classify(self.classifier, images)
            self.about_reals |= {
                f"classifier_on_{name}": _share(predicted, labels),
                f"within_class_distance_{name}": within_class(features, labels),
                f"distance_to_training_{name}": to_training(features, self.training),
            }

    @torch.no_grad()
    def figures(self, generator: nn.Module, conditional: bool) -> dict:
        """Figures of a generator's samples at psi 1, as the module docstring describes."""
        classes = self.classes
        torch.manual_seed(0)
        labels = torch.arange(classes).repeat_interleave(self.samples // classes)
        z = torch.randn(len(labels), generator.z_dim)
        pairs = zip(z.split(100), labels.split(100), strict=True)
        images = torch.cat([generator(a, b if conditional else None) for a, b in pairs]).clamp(-1, 1)
        if images.shape[2] < self.resolution:  # a stage of growth
            images = nn.functional.interpolate(images, self.resolution)
        features, predicted = classify(self.classifier, images)
        figures = {"samples": len(labels), "conditional": conditional}
        if conditional:
            figures["samples_as_asked"] = _share(predicted, labels)
            figures["as_asked_by_class"] = [_share(predicted[labels == c], labels[labels == c]) for c in range(classes)]
        else:
            labels = predicted
            figures["share_by_class"] = [float((predicted == c).float().mean()) for c in range(classes)]
        return figures | {
            "within_class_distance": within_class(features, labels),
            "distance_to_training": to_training(features, self.training),
            **self.about_reals,
        }


def _share(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).float().mean())


def variety(figures: dict) -> float:
    """Mean distance within a class, as a share of that of fresh reals."""
    return figures["within_class_distance"] / figures["within_class_distance_fresh_reals"]


def novelty(figures: dict) -> float:
    """Median distance to the nearest training image, as a share of that of fresh reals."""
    return figures["distance_to_training"] / figures["distance_to_training_fresh_reals"]


def is_good(figures: dict, as_asked: float) -> bool:
    """Whether the figures pass the limits in the module docstring."""
    if figures["conditional"]:
        right = figures["samples_as_asked"] >= as_asked
    else:
        right = min(figures["share_by_class"]) >= 0.2 / len(figures["share_by_class"])
    return right and variety(figures) >= 0.7 and novelty(figures) >= 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder or checkpoint of a training on glyphs")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--as-asked", type=float, default=0.9, help="least share of samples of the requested class")
    parser.add_argument("--json", type=Path, help="also write the figures to a file")
    arguments = parser.parse_args()

    model = read_header(arguments.run).model
    generator, config = load_generator(arguments.run)
    judge = Judge(model.resolution, model.channels, config.data.classes, arguments.samples)
    figures = judge.figures(generator, model.num_classes > 0)
    if figures["conditional"]:
        by_class = " ".join(f"{share:.0%}" for share in figures["as_asked_by_class"])
        print(f"samples classified as asked      {figures['samples_as_asked']:.1%}   (by class {by_class})")
    else:
        print("samples by class                 " + " ".join(f"{share:.1%}" for share in figures["share_by_class"]))
    print(f"the classifier itself            {figures['classifier_on_held_out_fonts']:.1%} on held-out fonts,", end=" ")
    print(f"{figures['classifier_on_fresh_reals']:.1%} on fresh reals")
    print(f"distance within a class          {variety(figures):.2f} of that of reals")
    print(f"distance to the nearest training image {novelty(figures):.2f} of that of fresh reals")
    good = is_good(figures, arguments.as_asked)
    print("good" if good else "not good enough, see --help")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
