"""Warnings about a training from its log: mode collapse, and an overfitting discriminator.

Neither raises an error: losses stay finite, and the training goes on. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastgan.runs.config import Config

# Distance between two samples of a class, relative to that between two real images (`fastgan.training.diversity`):
# collapse begins below the first value and is over above the second.
ALIKE, DIFFERENT = 0.15, 0.3
ALIKE_READINGS = 2  # in a row
# Generator updates before samples that never differed count as collapsed: untrained networks draw one image only.
UNTRAINED = 500

# The smaller of the mean sign of real logits (r_t of Karras et al. 2020, "Training Generative Adversarial Networks with
# Limited Data", section 3.1; --augment ada aims at 0.6) and the negated mean sign of fake logits: a discriminator that
# calls everything real, as mlp's does at times, does not overfit. Overfitting begins above the first value and is over
# below the second.
SURE, UNSURE = 0.95, 0.9
WINDOW = 10_000  # images to average over: signs fluctuate without a gradient penalty
SEEN = 4  # times that each image was shown: before, a discriminator can hardly overfit
SIGNED = ("nonsaturating", "minimax", "hinge", "noisy-hinge")  # objectives with positive logits for real images


class Watch:
    """Reads a run's log line by line, and warns once for each episode of collapse or overfitting.

    Warnings depend on the lines alone, so a resumed run that is given the earlier lines warns as if it had never
    stopped.

    Args:
        config: resolved.
        dataset: its summary in a checkpoint: {"images": int, "class_names": list[str], ...}.

    Attributes:
        warnings: episodes that go on at the last line, each as one line with a remedy.
    """

    def __init__(self, config: Config, dataset: Mapping[str, Any]):
        self._config, self._images = config, max(1, dataset["images"])
        self._classes = len(dataset["class_names"])
        self._alike = _Episode(ALIKE_READINGS)
        self._sure = _Episode(1)
        self._differed = False
        self._window = _Window()
        self.warnings: list[str] = []

    def read(self, line: Mapping[str, Any]) -> list[str]:
        """Warnings that begin with this line of log.jsonl."""
        before = self.warnings
        self._read_distances(line)
        self._read_signs(line)
        self.warnings = [episode.warning for episode in (self._alike, self._sure) if episode.warning]
        return [warning for warning in self.warnings if warning not in before]

    def read_all(self, lines: Iterable[Mapping[str, Any]]) -> Watch:
        """Read all lines; returns self."""
        for line in lines:
            self.read(line)
        return self

    def _read_distances(self, line: Mapping[str, Any]) -> None:
        if not line.get("distance_real") or "distance_fake" not in line:
            return
        share = line["distance_fake"] / line["distance_real"]
        self._differed |= share > DIFFERENT
        untrained = not self._differed and line["step"] < UNTRAINED * self._config.training.discriminator_steps
        if self._alike.begins(line["images"], share < ALIKE, over=share > DIFFERENT, certain=not untrained):
            of = "of a class " if self._config.data.labels else ""
            self._alike.warning = (
                f"samples {of}are nearly alike since {self._alike.since:,} images ({share:.0%} of the distance of real "
                f"ones): {self._against_collapse()}"
            )

    def _read_signs(self, line: Mapping[str, Any]) -> None:
        if self._config.training.loss not in SIGNED or not {"sign_real", "sign_fake"} <= line.keys():
            return
        self._window.add(line["images"], min(line["sign_real"], -line["sign_fake"]))
        if self._window.images < WINDOW:
            return
        start, sign = self._window.end()
        shown = line["images"] / self._images
        certain = shown >= SEEN and not self._alike.warning  # collapsed samples are easy to tell from real images
        if self._sure.begins(start, sign > SURE, over=sign < UNSURE, certain=certain):
            self._sure.warning = (
                f"the discriminator overfits since {self._sure.since:,} images (right about {(1 + sign) / 2:.1%} of "
                f"images, each real one shown {shown:.0f} times): {self._against_overfitting()}"
            )

    def _against_collapse(self) -> str:
        labels = "" if self._config.data.labels or self._classes < 2 else "--labels True, "
        gamma = self._config.regularization.r1_gamma
        return f"start again with {labels}a higher --r1-gamma (now {gamma:g}), or lower --lr-g and --lr-d"

    def _against_overfitting(self) -> str:
        if self._config.regularization.augment == "none":
            return "go on with --resume RUN --augment ada, or use an earlier checkpoint"
        return "use an earlier checkpoint, or more images"


class _Window:
    """Mean of a value over the images shown since the window began."""

    def __init__(self):
        self.start, self.images, self._sum = 0, 0, 0.0

    def add(self, images: int, mean: float) -> None:
        """Add `mean` over the images since the last call; `images` is their total number."""
        count = images - self.start - self.images
        self.images, self._sum = self.images + count, self._sum + mean * count

    def end(self) -> tuple[int, float]:
        """Returns start and mean of the window, and begins the next one."""
        start, mean = self.start, self._sum / self.images
        self.start, self.images, self._sum = start + self.images, 0, 0.0
        return start, mean


class _Episode:
    """An episode of bad readings: begins with `least` in a row, and ends with the first good one.

    Attributes:
        since: number of images shown at its first bad reading.
        warning: text during the episode; empty before and after.
    """

    def __init__(self, least: int):
        self._least, self._bad = least, 0
        self.since = 0
        self.warning = ""

    def begins(self, images: int, bad: bool, *, over: bool, certain: bool) -> bool:
        """Add a reading; returns whether the episode begins. over: the reading is good. certain: bad ones may count."""
        if over:
            self.warning = ""
        if not self._bad:
            self.since = images
        self._bad = self._bad + 1 if bad else 0
        return self._bad >= self._least and certain and not self.warning
