"""How good are generated glyphs? `python bench/glyph_quality.py RUN` measures it and prints a short table.

A small classifier, trained on real glyphs, judges 1,000 conditional samples (psi 1): are they of the class that was
asked for, as varied within a class as real ones, and not copies of training images? Distances are between the
classifier's last features. "Fresh reals" are drawn anew, in the same fonts, with another seed: images that the
generator has not seen. The classifier's own accuracy on held-out fonts is printed beside it.

Exits with status 1 unless at least 90 % of the samples are classified as asked for, the mean distance within a class is
at least 70 % of the real one, and the samples are no nearer to training images than fresh reals are.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.data import BatchSampler, ImageDataset, open_dataset, to_model_range
from fastgan.training.checkpoint import load_generator, read_header


class Classifier(nn.Module):
    """Three stages of convolutions; `features` are what its last layer sees."""

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
    sampler = BatchSampler(len(reals), batch, seed=0)
    for step in range(steps):
        index = sampler.batch_at(step)
        logits = classifier(to_model_range(reals.images[index]))
        loss = F.cross_entropy(logits, torch.from_numpy(reals.labels[index]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


@torch.no_grad()
def judged(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, F] and predicted classes [N]."""
    features = torch.cat([classifier.features(part) for part in images.split(500)])
    return features, classifier.head(features).argmax(1)


def within_class(features: Tensor, labels: Tensor) -> float:
    """Mean distance between two different images of one class."""
    means = []
    for label in labels.unique():
        own = features[labels == label]
        means.append(torch.cdist(own, own).sum() / (len(own) * (len(own) - 1)))
    return float(torch.stack(means).mean())


def to_training(features: Tensor, training: Tensor) -> float:
    """Median distance to the nearest training image."""
    return float(torch.cdist(features, training).min(1).values.median())


def subset(dataset: ImageDataset, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` images of every class, about."""
    order = np.argsort(dataset.labels, kind="stable")
    per_class = [order[dataset.labels[order] == c][: count // dataset.num_classes] for c in range(dataset.num_classes)]
    index = np.sort(np.concatenate(per_class))
    return to_model_range(dataset.images[index]), torch.from_numpy(dataset.labels[index])


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder or checkpoint of a training on glyphs")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    config = read_header(arguments.run).model
    generator, _ = load_generator(arguments.run)
    options = (config.resolution, config.channels)
    reals = open_dataset("glyphs", *options, classes=config.num_classes)
    fresh = open_dataset("glyphs", *options, classes=config.num_classes, seed=1)
    heldout = open_dataset("glyphs", *options, classes=config.num_classes, split="heldout")
    with torch.enable_grad():
        classifier = train_classifier(reals)

    torch.manual_seed(0)
    labels = torch.arange(config.num_classes).repeat_interleave(arguments.samples // config.num_classes)
    z = torch.randn(len(labels), config.z_dim)
    samples = torch.cat([generator(a, b) for a, b in zip(z.split(100), labels.split(100), strict=True)])
    samples = samples.clamp(-1, 1)

    features, predicted = judged(classifier, samples)
    training_features, _ = judged(classifier, to_model_range(reals.images[:]))
    fresh_images, fresh_labels = subset(fresh, arguments.samples)
    fresh_features, fresh_predicted = judged(classifier, fresh_images)
    heldout_images, heldout_labels = subset(heldout, arguments.samples)
    heldout_features, heldout_predicted = judged(classifier, heldout_images)

    share = lambda predicted, labels: float((predicted == labels).float().mean())
    figures = {
        "samples": len(labels),
        "samples_as_asked": share(predicted, labels),
        "as_asked_by_class": [share(predicted[labels == c], labels[labels == c]) for c in range(config.num_classes)],
        "classifier_on_fresh_reals": share(fresh_predicted, fresh_labels),
        "classifier_on_held_out_fonts": share(heldout_predicted, heldout_labels),
        "within_class_distance": within_class(features, labels),
        "within_class_distance_reals": within_class(fresh_features, fresh_labels),
        "distance_to_training": to_training(features, training_features),
        "distance_to_training_fresh_reals": to_training(fresh_features, training_features),
        "distance_to_training_held_out_fonts": to_training(heldout_features, training_features),
    }
    variety = figures["within_class_distance"] / figures["within_class_distance_reals"]
    distance = figures["distance_to_training"] / figures["distance_to_training_fresh_reals"]
    good = figures["samples_as_asked"] >= 0.9 and variety >= 0.7 and distance >= 1.0
    by_class = " ".join(f"{share:.0%}" for share in figures["as_asked_by_class"])
    print(f"samples classified as asked      {figures['samples_as_asked']:.1%}   (by class {by_class})")
    print(f"the classifier itself            {figures['classifier_on_held_out_fonts']:.1%} on held-out fonts,", end=" ")
    print(f"{figures['classifier_on_fresh_reals']:.1%} on fresh reals")
    print(f"distance within a class          {variety:.2f} of that of reals")
    print(f"distance to the nearest training image {distance:.2f} of that of fresh reals")
    print("good" if good else "not good enough: see --help")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
