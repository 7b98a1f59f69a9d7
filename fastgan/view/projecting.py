"""Projection of an image from the browser, with progress.

The image comes within a request and is never written to the disk.
"""

from __future__ import annotations

import base64
import functools
import html
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from fastgan import projection
from fastgan.data.images import UnusableImage
from fastgan.errors import UserError, readable
from fastgan.metrics import registry
from fastgan.studies import to_uint8
from fastgan.view import rendering
from fastgan.view.images import Latents
from fastgan.view.watching import Run

MOST_STEPS = 2000
PROGRESS_SECONDS = 0.4


class Given(NamedTuple):
    """An image to project.

    Attributes:
        name, data: of its file.
        pixels: as images of the run's network are, uint8 [H, W, C].
        note: what was done to make it one; may be "".
    """

    name: str
    data: bytes
    pixels: np.ndarray
    note: str

    @property
    def target(self) -> Tensor:
        """fp32 [1, C, H, W] of range [-1, 1]."""
        return torch.tensor(self.pixels).movedim(2, 0)[None] / 127.5 - 1


def read(data_url: str, name: str, run: Run) -> Given:
    """An image that the browser sent as a data URL, as images of the run's network are.

    Raises UserError if it is no image.
    """
    try:
        data = base64.b64decode(data_url.partition("base64,")[2], validate=True)
    except ValueError:  # binascii.Error is one
        raise UserError(f"{readable(name)} cannot be decoded") from None
    return fitted(name, data, run)


def fitted(name: str, data: bytes, run: Run) -> Given:
    """The same of a file's content. A given image fits one run: another may have images of another size."""
    try:
        return Given(name, data, *projection.fitted(data, run.generator, run.trained.model))
    except UnusableImage as error:
        raise UserError(f"{readable(name)} {error}") from None


def preview(given: Given) -> str:
    """The image as it will be projected, as HTML."""
    text = given.name + (f": {given.note}" if given.note else "")
    return _pair(rendering.figure(given.pixels, text, "given.png", rendering.HALF))


_running: WeakSet[threading.Event] = WeakSet()  # stop a projection each


def stop_all() -> None:
    """Stop all projections after their present step."""
    for each in list(_running):
        each.set()


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
    stop = threading.Event()
    _running.add(stop)

    def watch(step: int, images: Tensor, distances: Tensor) -> None:
        if stop.is_set():
            raise _Stopped
        latest[:] = [(step, to_uint8(images)[0], float(distances[0]))]

    thread = ThreadPoolExecutor(1)
    task = thread.submit(
        projection.project, run.generator, given.target, space=space, steps=steps, perceptual=_perceptual(run),
        noise=False, num_classes=model.num_classes, watch=watch,
    )  # fmt: skip
    thread.shutdown(wait=False)  # Gradio closes this iterator in the thread that serves all pages
    try:
        progress = _progress(given, 0, steps, None, "comparing with random images")
        yield progress
        while not wait([task], PROGRESS_SECONDS).done:
            if latest:
                step, image, distance = latest[0]
                progress = _progress(given, step, steps, image, f"step {step} of {steps}, distance {distance:.4f}")
            yield progress  # each is a chance to stop
    finally:
        stop.set()
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
