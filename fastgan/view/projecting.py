"""Projection of an image from the browser, with progress.

The image comes within a request and is never written to the disk.
"""

from __future__ import annotations

import base64
import binascii
import functools
import html
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgan import projection
from fastgan.data.images import Target, UnusableImage, decode, fit, size_text
from fastgan.errors import UserError, readable
from fastgan.metrics import registry
from fastgan.models import ModelConfig
from fastgan.studies import to_uint8
from fastgan.view import rendering
from fastgan.view.images import Latents
from fastgan.view.watching import Run

MOST_STEPS = 2000
PROGRESS_SECONDS = 0.4


class Given(NamedTuple):
    """An image to project.

    Attributes:
        name: of its file.
        pixels: as images of the run's network are, uint8 [H, W, C].
        note: what was done to make it one; may be "".
    """

    name: str
    pixels: np.ndarray
    note: str

    @property
    def target(self) -> Tensor:
        """fp32 [1, C, H, W] of range [-1, 1]."""
        return torch.tensor(self.pixels).movedim(2, 0)[None] / 127.5 - 1


def read(data_url: str, name: str, model: ModelConfig) -> Given:
    """An image that the browser sent as a data URL, cropped and resized to the network's size.

    Raises UserError if it is no image.
    """
    height, width = model.feature_size(model.resolution)
    try:
        image = decode(base64.b64decode(data_url.partition("base64,")[2], validate=True))
        size = image.size
        target = Target(size=(width, height), channels=model.channels, crop="center", enlarge=True)
        pixels = fit(image, target)
    except (UnusableImage, binascii.Error) as error:
        why = error if isinstance(error, UnusableImage) else "cannot be decoded"
        raise UserError(f"{readable(name)} {why}") from None
    note = ""
    if size != (width, height):
        crop = "cropped and " if size[0] * height != size[1] * width else ""
        note = f"{size_text(size)}, {crop}resized to {size_text((width, height))}"
    return Given(name, pixels, note)


def preview(given: Given) -> str:
    """The image as it will be projected, as HTML."""
    text = given.name + (f": {given.note}" if given.note else "")
    return _pair(rendering.figure(given.pixels, text, "given.png", rendering.HALF))


class _Stopped(Exception):
    """Raised in the thread of a projection that nobody waits for any more."""


def project(
    run: Run, run_name: str, given: Given, space: projection.Space | None, steps: int
) -> Iterator[str | Latents]:
    """Project; yields progress as HTML and at the end the latents found. Closing the iterator stops it.

    Raises UserError or ValueError as `fastgan.projection.project`.
    """
    model = run.trained.model
    latest: list[tuple[int, np.ndarray, float]] = []  # step, image and distance
    stop: list[bool] = []

    def watch(step: int, images: Tensor, distances: Tensor) -> None:
        if stop:
            raise _Stopped
        latest[:] = [(step, to_uint8(images)[0], float(distances[0]))]

    with ThreadPoolExecutor(1) as thread:
        task = thread.submit(
            projection.project, run.generator, given.target, space=space, steps=steps, perceptual=_perceptual(run),
            noise=False, num_classes=model.num_classes, watch=watch,
        )  # fmt: skip
        try:
            yield _progress(given, 0, steps, None, "comparing with random images")
            while not wait([task], PROGRESS_SECONDS).done:
                if latest:
                    step, image, distance = latest[0]
                    yield _progress(given, step, steps, image, f"step {step} of {steps}, distance {distance:.4f}")
        finally:
            stop.append(True)
        found = task.result()
    text = f"found: PSNR {found.psnr[0]:.1f} dB, distance {found.distances[0]:.4f}"
    label = None if found.labels is None else run.classes[int(found.labels[0])]
    text += "" if label is None else f", class {label}"
    yield _progress(given, steps, steps, to_uint8(found.images)[0], text)
    yield Latents(run_name, f"projection of {given.name}", found.latents, label)


@functools.cache
def _perceptual_on(device: torch.device) -> Any:
    from fastgan.metrics.perceptual import PerceptualDistance

    return PerceptualDistance(device)


def _perceptual(run: Run) -> Any:
    """The perceptual distance; None, for pixels alone, without the extra "metrics"."""
    try:
        registry.require_packages(registry.LITE0)
    except UserError:
        return None
    return _perceptual_on(next(run.generator.parameters()).device)


def _progress(given: Given, step: int, steps: int, image: np.ndarray | None, text: str) -> str:
    target = rendering.figure(given.pixels, given.name, "given.png", rendering.HALF)
    found = "" if image is None else rendering.figure(image, text, "projected.png", rendering.HALF)
    return _pair(target + found, step / steps, "" if found else text)


def _pair(figures: str, share: float | None = None, text: str = "") -> str:
    bar = "" if share is None else rendering.progress_bar(share)
    return f'{bar}<div class="pair">{figures}<p>{html.escape(text)}</p></div>'
