"""`fastgan evaluate`: metrics of a trained generator's samples, compared with real images.

Exit status: 0 when done, 2 for a wrong option or file, 130 after Ctrl-C. A file written is complete.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastgan.data.urls import has_scheme
from fastgan.errors import UserError, command_line, program
from fastgan.files import prepare_to_write, write_atomically
from fastgan.metrics import registry
from fastgan.options import LARGEST_SEED, Count, PathText, parse_options
from fastgan.runs import process
from fastgan.runs.memory import out_of_memory_is_user_error, require

TOGETHER = 8  # samples that are compared with each other at once
FEATURES = 1280  # of an image, by the smallest feature network
MIN_IMAGES = 4  # of a set: precision and recall use the three nearest others of each image


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how far a trained generator's samples (psi 1) are from real images.

    The distance of training images is measured for comparison: the floor. docs/metrics.md explains the metrics, and
    which published numbers they can be compared with. Several processes share the work:
    torchrun --nproc-per-node 4 -m fastgan.evaluate ...
    """

    checkpoint: Annotated[PathText, tyro.conf.arg(metavar="RUN|FILE|URL")]
    """Folder of a training run, a checkpoint file, or a file of the official StyleGAN2 (.pkl) or of rosinality's (.pt);
    local or at a URL. hf://USER/NAME, one of the Hugging Face hub. example:digits, one that comes with fastgan."""
    data: Annotated[PathText | None, tyro.conf.arg(metavar="NAME|DIR|ZIP|URL", help_behavior_hint="")] = None
    """Real images, as for --data of fastgan train. Required for a file of another program, which does not name its
    training images, and for a run whose images are at a URL, which is fetched only if you give it; for another run it
    replaces them."""
    metrics: Annotated[str, tyro.conf.arg(metavar="NAMES")] = "kid,fd,pr"
    """Names of metrics, separated by commas.
    - On features of EfficientNet-Lite0, with nothing to download (extra "metrics"): kid, the kernel distance; fd, the
    Fréchet distance; pr, precision and recall.
    - On features of EfficientNet-Lite2, likewise: kid-lite2, fd-lite2, pr-lite2. Added where Lite0 has taught, in a
    training with --discriminator projected.
    - On features of Inception, as in papers (extra "fid", and --inception-weights): fid; kid-inception; pr-inception;
    is, the Inception score.
    - Of stylegan3 and stylegan2, in dB: eqt, eqt-frac, eqr, whether the image moves as the scene does, by whole pixels,
    by fractions of a pixel, and around.
    - Perceptual path lengths, by features of EfficientNet-Lite0: ppl-z and ppl-w; of the ends of paths alone, ppl-z-end
    and ppl-w-end. By LPIPS with VGG, as in papers (extra "lpips", and --vgg-weights): ppl-z-lpips, ppl-w-lpips,
    ppl-z-end-lpips, ppl-w-end-lpips. Those in w are for style-based networks.
    The last two kinds alone need no --data.
    - all: whatever can be had for these networks on this machine; the report says what is missing, and why."""
    samples: Count = 5000
    """Number of generated images; at most as many real ones are compared with them. Papers generate 50000."""
    split: Literal["auto", "heldout", "train", "all"] = "auto"
    """Real images. heldout: glyphs in fonts outside of training, or --heldout. train: half of the training images. all:
    every training image, as for published FIDs; none are left for the floor. auto: heldout if there are any, else
    train."""
    heldout: Annotated[PathText | None, tyro.conf.arg(metavar="DIR|ZIP", help_behavior_hint="")] = None
    """Images that were not trained on, for data other than glyphs."""
    floor: bool = True
    """Also measure the floor: the distance of training images from the real ones."""
    memorisation: bool = True
    """Also measure whether samples are nearer to training images than images that were not trained on, by the first
    metric's features. At most twice as many training images as --samples are searched."""
    inception_weights: Annotated[
        PathText | None,
        tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in the data cache, if it is there)"),
    ] = None
    """Weights of Inception: weights-inception-2015-12-05-6726825d.pth of torch-fidelity. Download them yourself."""
    vgg_weights: Annotated[
        PathText | None,
        tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in the data cache, if it is there)"),
    ] = None
    """Weights of VGG for LPIPS: vgg16-397923af.pth of torchvision. Download them yourself."""
    ema: Annotated[
        float | Literal["all"] | None,
        tyro.conf.arg(metavar="HALFLIFE|all", help_behavior_hint="(default: the first of --ema-halflife)"),
    ] = None
    """Half-life of the EMA to measure, in thousands of images, of a training that has kept several. all: measure each,
    and name the best by the first metric."""
    seed: int = 0
    """Seed of latents, labels, and the choice of real images."""
    json: Annotated[PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write the numbers to this file."""
    device: str = "auto"
    """cpu, cuda, or cuda:1 and so on. auto: the first GPU if there is one, else the CPU; a GPU for each process."""

    def check(self) -> tuple[str, ...] | None:
        """Names of the metrics; None for all. Raises UserError for options that are wrong for any checkpoint."""
        if self.samples < MIN_IMAGES:
            raise UserError(f"--samples {self.samples}: must be at least {MIN_IMAGES}, better some thousands")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UserError(f"--seed {self.seed}: must be from 0 to {LARGEST_SEED}")
        if self.heldout is not None and self.split in ("train", "all"):
            raise UserError(f"--split {self.split} and --heldout exclude each other; leave one of them out")
        if self.metrics == registry.ALL:
            return None
        metrics = registry.parse(self.metrics)
        registry.require_needed(metrics, self.weights())
        registry.require(metrics, self.weights())
        return metrics

    def weights(self) -> registry.Weights:
        """Files of weights by network."""
        return {registry.INCEPTION: self.inception_weights, registry.VGG: self.vgg_weights}


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    process.end_with_stdin()
    options = parse_options(Options, program("evaluate"), argv)
    with out_of_memory_is_user_error("give fewer --samples, or another --device"):
        process.keep_freed_memory()
        found = measure(options)
        if found is not None:
            print(table(found))
            if options.json is not None:
                write_atomically(Path(options.json), (json.dumps(found, indent=2) + "\n").encode(), "--json")
    return 0


def measure(options: Options) -> dict[str, Any] | None:
    """The numbers that `options` asks for, as written to JSON; with several processes, in the first only.

    Raises UserError for a wrong option or file.
    """
    metrics = options.check()

    from fastgan.distributed import connected
    from fastgan.runs import precision
    from fastgan.runs.networks import open_networks

    trained = open_networks(options.checkpoint, None if options.ema == "all" else options.ema)
    by_ema = _by_ema(trained, options)
    model = trained.model
    metrics, missing = _possible(metrics, model, options)
    compares = bool(registry.by_network(metrics))  # with real images
    # Latents and features, of the best EMA as well; the true peak has a few copies of the features more.
    needed = 4.0 * options.samples * (model.z_dim + FEATURES * min(len(by_ema), 2) * compares)
    require(needed, f"{options.samples:,} samples", "give fewer --samples")
    if options.json is not None:
        prepare_to_write(Path(options.json), "--json")
    # On the CPU even if there are GPUs: features are in its memory.
    with connected("cpu", "its message says why") as ranks:
        device = precision.choose_device(options.device, ranks)
        try:
            train, heldout = _data(trained, options) if compares else (None, None)
        except UserError as error:
            among = tuple(name for name in metrics if registry.METRICS[name].kind in registry.AMONG_SAMPLES)
            if options.metrics != registry.ALL or options.data is not None or not among:
                raise
            missing |= {name: str(error) for name in metrics if name not in among}
            metrics, compares, train, heldout = among, False, None, None
        real, floor = _real_images(train, heldout, options) if compares else (None, None)
        generators = {ema: each.load(device) for ema, each in by_ema.items()}
        draws = {ema: _drawer(each, model, train, options) for ema, each in generators.items()} if compares else {}
        emas: dict[float | None, dict[str, Any]] = {ema: {"images": options.samples} for ema in by_ema}
        found: dict[str, Any] = {"emas": emas, "floor": {}, "memorisation": None}
        features, remarks = {}, []
        if among := registry.of_kind(metrics, "equivariance"):
            for ema, generator in generators.items():
                emas[ema] |= _equivariance(generator, model, among, ranks, options)
        for network, among in registry.paths_by_network(metrics).items():
            distance = _distance(network, device, options)
            features[network] = distance.weights
            remarks += _remarks(distance)
            for ema, generator in generators.items():
                emas[ema] |= _path_lengths(generator, model, among, distance, ranks, options)
        if ranks.is_first and registry.METRICS[metrics[0]].kind in registry.AMONG_SAMPLES:
            first = registry.METRICS[metrics[0]]
            choose = max if first.higher else min
            found["best"] = choose(emas, key=lambda ema: emas[ema][first.values[0]])
        trained_on = _trained_on(train, options) if options.memorisation and compares else None
        for network, wanted in registry.by_network(metrics).items():
            extractor = _extractor(network, device, options)
            features[network] = extractor.weights
            remarks += _remarks(extractor)
            of_samples, of_real = _measure_with(extractor, wanted, real, floor, draws, ranks, options, found)
            if trained_on is not None:
                of_train = trained_on.features(extractor, ranks=ranks)
                if ranks.is_first:
                    others = None if heldout is None else of_real
                    found["memorisation"] = _memorisation(network, trained_on, of_samples, of_train, others)
                trained_on = None  # by the first network only
        if not ranks.is_first:
            return None
    return {
        "checkpoint": options.checkpoint if has_scheme(options.checkpoint) else str(trained.path),
        "checkpoint_digest": trained.header.digest if trained.header else None,
        "arch": model.arch,
        "taught_by": registry.PROJECTED if model.discriminator == "projected" else None,
        "images_shown": trained.header.images if trained.header else None,
        "data": options.data or trained.header.config.data.source if compares else None,
        "real": real.name if compares else None,
        "real_images": len(real.index) if compares else None,
        "features": features,
        "seed": options.seed,
        "metrics": metrics,
        "missing": missing,
        "samples": emas[found["best"]],
        "ema": found["best"],
        "emas": {f"{ema:g}": values for ema, values in emas.items()} if options.ema == "all" else None,
        "floor": None if floor is None else {"of": floor.name, "images": len(floor.index)} | found["floor"],
        "memorisation": found["memorisation"],
        "remarks": remarks,
    }


def _possible(given: tuple[str, ...] | None, model, options: Options) -> tuple[tuple[str, ...], dict[str, str]]:
    """The metrics to take of `given`, None for all, and the reasons for those that cannot be had, by name.

    Raises UserError if one that is given, or every one, cannot be had.
    """
    side, missing = min(model.feature_size(model.resolution)), {}
    if given is None:
        found, missing = registry.available(model.arch, side, options.weights())
        if not found:
            raise UserError(f"--metrics all: none can be had: {'; '.join(dict.fromkeys(missing.values()))}")
        judges = registry.judged(found, model.discriminator)
        return tuple(name for name in judges if name in found), missing
    metrics = registry.judged(given, model.discriminator)
    registry.require(metrics, options.weights())
    registry.require_possible(metrics, model.arch, side)
    return metrics, missing


def _by_ema(trained, options: Options) -> dict[float | None, Any]:
    """Networks to measure by the half-life of their EMA; None for a file of another program."""
    from fastgan.runs.networks import open_networks

    if trained.header is None:
        if options.ema == "all":
            raise UserError(f"--ema all: {trained.path} is not of fastgan and has one EMA; leave it out")
        return {None: trained}
    half_lives = trained.header.config.training.ema_halflives
    if options.ema == "all":
        return {each: open_networks(trained.path, each) for each in half_lives}
    return {half_lives[0] if options.ema is None else options.ema: trained}


def _measure_with(extractor, metrics, real, floor, draws, ranks, options: Options, found):
    """Add the metrics on features of one network to `found`, in the first process.

    draws: functions that draw samples, by the EMA's half-life. The first metric decides which is `found["best"]`.

    Returns features of the samples of the best EMA, and of the real images; None in other processes.
    """
    from fastgan.metrics.parallel import compute_in_blocks
    from fastgan.metrics.reference import Reference

    of_real = real.features(extractor, ranks=ranks)
    of_floor = None if floor is None else floor.features(extractor, ranks=ranks)
    reference = Reference(real, extractor, of_real, seed=options.seed) if ranks.is_first else None
    decides, of_best = "best" not in found, None
    for ema, draw in draws.items():
        of_block = lambda start, stop, draw=draw: extractor(draw(start, stop))
        of_samples = compute_in_blocks(
            ranks, options.samples, of_block, f"samples of EMA {ema:g}k" if len(draws) > 1 else "samples"
        )
        if reference is None:
            continue
        emas = found["emas"]
        emas[ema] |= reference.measure(metrics, of_samples)
        metric = registry.METRICS[metrics[0]]
        if decides and ("best" not in found or metric.is_better(emas[ema], [emas[found["best"]]])):
            found["best"] = ema
        if ema == found["best"]:
            of_best = of_samples
    if reference is None:
        return None, None
    if of_floor is not None:
        found["floor"] |= reference.measure(metrics, of_floor)
    return of_best, of_real


def _memorisation(network: str, trained_on, of_samples, of_train, others) -> dict[str, Any]:
    """The numbers for JSON. others: features of held-out images, or None."""
    from fastgan.metrics.distances import memorisation

    return {
        "features": network,
        "training_images": len(trained_on.index),
        "others": "other training images" if others is None else "held-out images",
        **memorisation(of_samples, of_train, others)._asdict(),
    }


def _extractor(network: str, device, options: Options):
    if network in registry.EFFICIENTNETS:
        from fastgan.metrics.efficientnet import EfficientNet

        return EfficientNet(device, name=network)
    from fastgan.metrics.inception import Inception

    return Inception(registry.find_weights(network, options.weights()), device)


def _distance(network: str, device, options: Options):
    """The perceptual distance of path lengths."""
    from fastgan.metrics.perceptual import LPIPS, PerceptualDistance

    if network == registry.LITE0:
        return PerceptualDistance(device)
    return LPIPS(registry.find_weights(network, options.weights()), device)


def _remarks(extractor) -> list[str]:
    """A line for weights that are not the published ones."""
    if extractor.original:
        return []
    return [f"{extractor.weights} is not the network of published numbers: compare these with its own only"]


def _data(trained, options: Options):
    """Training images, or those of --data, and the held-out images or None."""
    from fastgan import data
    from fastgan.runs.checkpoint import difference, require_trusted

    model, header = trained.model, trained.header
    if options.data is None and header is None:
        raise UserError(
            f"{trained.path} does not say what it was trained on; give the images to compare with by --data"
        )
    height, width = model.feature_size(model.resolution)
    size = width if width == height else data.size_text((width, height)), model.channels
    source = options.data or header.config.data.source
    if options.data is None:
        require_trusted(header)
    glyphs = {}
    if source == "glyphs":
        glyphs = {"classes": model.num_classes or 10 if options.data else header.config.data.classes}
    train = data.open_dataset(source, *size, **glyphs)
    same = header is not None and source == header.config.data.source  # also a URL, which has to be given
    if same and (options.data is None or has_scheme(source)) and (problem := difference(train, header.dataset)):
        raise UserError(f"{source} {problem}; restore the images that {header.path} was trained on")
    if model.num_classes and len(train.class_names) != model.num_classes:
        raise UserError(
            f"--data {source}: has {len(train.class_names)} classes, the network of {trained.path} has "
            f"{model.num_classes}; give images of as many"
        )
    if options.heldout is not None:
        heldout = data.open_dataset(options.heldout, *size)
    elif source == "glyphs" and options.split in ("auto", "heldout"):
        heldout = data.open_dataset("glyphs", *size, split="heldout", **glyphs)
    elif options.split == "heldout":
        raise UserError(f"--split heldout: {source} has no held-out part; give --heldout DIR, or --split train")
    else:
        heldout = None
    halved = heldout is None and options.split != "all"
    for dataset, least in ((train, 2 * MIN_IMAGES if halved else MIN_IMAGES), (heldout, MIN_IMAGES)):
        if dataset is not None and len(dataset) < least:
            raise UserError(f"{dataset.source}: there are {len(dataset)} images, must be {least} at least")
    return train, heldout


def _real_images(train, heldout, options: Options):
    """Real images to compare with, and images of the floor or None."""
    import numpy as np

    from fastgan.metrics.reference import ImageSubset, choose_subsets

    if options.split == "all":
        return ImageSubset(train, np.arange(len(train)), "training images, all of them"), None
    real, floor = choose_subsets(train, heldout, options.samples, seed=options.seed)
    return real, floor if options.floor else None


def _trained_on(train, options: Options):
    """Training images that samples may be copies of."""
    import numpy as np

    from fastgan.metrics.reference import ImageSubset

    index = np.random.default_rng(options.seed).permutation(len(train))[: 2 * options.samples]
    return ImageSubset(train, np.sort(index), "training images")


def _drawer(generator, model, train, options: Options):
    """A function that draws samples number `start` to `stop`, uint8 [N, H, W, C], as `fastgan generate` does.

    Labels are as frequent as in the training images. Latents come from a generator of their own, so that torch's RNG
    state stays as it was.
    """
    import torch

    from fastgan.metrics.reference import random_labels
    from fastgan.runs import drawing

    random = torch.Generator().manual_seed(options.seed)
    z = torch.randn(options.samples, model.z_dim, generator=random)
    labels = None
    if model.num_classes:
        labels = torch.from_numpy(random_labels(train, options.samples, options.seed))

    def draw(start: int, stop: int):
        part = None if labels is None else labels[start:stop]
        return drawing.draw(generator, z[start:stop], part, batch=stop - start)

    return draw


def _equivariance(generator, model, metrics, ranks, options: Options) -> dict[str, float]:
    """Values of equivariance metrics. Latents and movements follow from the seed; classes are equally frequent."""
    import torch

    from fastgan.metrics import equivariance
    from fastgan.models.moving import synthesize_moved

    device = next(generator.parameters()).device
    z = torch.randn(options.samples, model.z_dim, generator=torch.Generator().manual_seed(options.seed))
    movements = equivariance.draw_movements(options.samples, options.seed)

    @torch.no_grad()
    def errors(some: slice, label):
        ws = generator.styles(z[some].to(device), None if label is None else label.to(device))
        draw = lambda transforms: synthesize_moved(generator, ws, transforms)
        return equivariance.squared_errors(draw, movements[some], metrics)

    return _among_samples(errors, equivariance.psnr, "moved samples", model, metrics, ranks, options)


def _path_lengths(generator, model, metrics, distance, ranks, options: Options) -> dict[str, float]:
    """Perceptual path lengths. Latents follow from the seed; classes are equally frequent."""
    import torch

    from fastgan.metrics import path_length

    paths = [name.removesuffix(registry.BY_LPIPS) for name in metrics]
    ends, places = path_length.draw_paths(options.samples, model.z_dim, options.seed)

    def lengths(some: slice, label):
        given = (generator, ends[:, some], places[some], label)
        return torch.stack([path_length.path_lengths(*given, name, distance) for name in paths], 1)

    return _among_samples(lengths, path_length.summary, "paths", model, metrics, ranks, options)


def _among_samples(measured, summary, title, model, metrics, ranks, options: Options) -> dict[str, float]:
    """Values of metrics that compare samples with each other, in the first process; {} in the others.

    measured: gives [N, len(metrics), ...] for some samples and their labels. summary: a metric's value of all of these.
    """
    import torch

    from fastgan.metrics.parallel import compute_in_blocks

    labels = torch.arange(options.samples) % model.num_classes if model.num_classes else None

    def block(start: int, stop: int):
        parts = [slice(first, min(first + TOGETHER, stop)) for first in range(start, stop, TOGETHER)]
        return torch.cat([measured(some, None if labels is None else labels[some]) for some in parts]).numpy()

    found = compute_in_blocks(ranks, options.samples, block, title)
    if found is None:
        return {}
    values = torch.from_numpy(found).unbind(1)
    names = [registry.METRICS[name].values[0] for name in metrics]
    return {name: summary(each) for name, each in zip(names, values, strict=True)}


_VALUES = {  # name in the table, and decimals
    "kid": ("KID", 5),
    "fd": ("Fréchet distance", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "kid_lite2": ("KID", 5),
    "fd_lite2": ("Fréchet distance", 3),
    "precision_lite2": ("precision", 3),
    "recall_lite2": ("recall", 3),
    "fid": ("FID", 3),
    "kid_inception": ("KID", 5),
    "precision_inception": ("precision", 3),
    "recall_inception": ("recall", 3),
    "is": ("Inception score", 3),
    "eqt": ("EQ-T, dB", 2),
    "eqt_frac": ("EQ-T frac, dB", 2),
    "eqr": ("EQ-R, dB", 2),
    "ppl_w": ("PPL in w", 2),
    "ppl_w_end": ("PPL in w, ends", 2),
    "ppl_z": ("PPL in z", 2),
    "ppl_z_end": ("PPL in z, ends", 2),
    "ppl_w_lpips": ("PPL in w", 2),
    "ppl_w_end_lpips": ("PPL in w, ends", 2),
    "ppl_z_lpips": ("PPL in z", 2),
    "ppl_z_end_lpips": ("PPL in z, ends", 2),
}
_PATHS = {registry.LITE0: "path length, by features of Lite0:", registry.VGG: "path length, by LPIPS with VGG:"}


def table(found: dict[str, Any]) -> str:
    """The report as text: a row a metric, with columns for samples and floor."""
    emas = {f"EMA {ema}k": values for ema, values in (found["emas"] or {}).items()}
    columns = emas or {"samples": found["samples"]}
    if found["floor"] is not None:
        columns[f"{found['floor']['of']} (the floor)"] = found["floor"]
    rows = [["", *columns], ["images", *(f"{column['images']:,}" for column in columns.values())]]
    groups = {f"on features of {each}:": names for each, names in registry.by_network(found["metrics"]).items()}
    if among := registry.of_kind(found["metrics"], "equivariance"):
        groups["equivariance:"] = among
    groups |= {_PATHS[each]: names for each, names in registry.paths_by_network(found["metrics"]).items()}
    for heading, metrics in groups.items():
        rows.append([heading, *([""] * len(columns))])
        for value in (value for name in metrics for value in registry.METRICS[name].values if value in _VALUES):
            name, decimals = _VALUES[value]
            rows.append([f"  {name}", *(_number(column, value, decimals) for column in columns.values())])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        found["arch"]
        + (f" after {shown:,} images" if (shown := found["images_shown"]) is not None else "")
        + (f", taught by {teacher}" if (teacher := found["taught_by"]) else ""),
    ]
    if found["real"] is not None:
        lines.append(f"compared with {found['real_images']:,} real images: {found['real']}")
    lines.append("")
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:{widths[0]}}", *cells]).rstrip())
    if emas:
        lines += ["", f"best by {found['metrics'][0]}: EMA {found['ema']:g}k, from which --ema {found['ema']:g} draws"]
    if found["memorisation"] is not None:
        lines += ["", *_memorisation_lines(**found["memorisation"])]
    if set(registry.EFFICIENTNETS) & set(found["features"]):
        lines += ["", "numbers on features of different networks, such as Inception's of papers, are not comparable"]
    reasons: dict[str, list[str]] = {}
    for name, why in found["missing"].items():
        reasons.setdefault(why, []).append(name)
    lines += [f"not measured: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return "\n".join([*lines, *found["remarks"]])


def _memorisation_lines(features, training_images, others, nearer, median, median_of_others) -> list[str]:
    from fastgan.metrics.distances import QUANTILE

    return [
        f"distance to the nearest of {training_images:,} training images, on features of {features}:",
        f"  median: {median:.3f} of samples, {median_of_others:.3f} of {others}",
        f"  nearer than all but {QUANTILE:.0%} of {others}: {nearer:.1%} of samples",
    ]


def _number(column: dict[str, float], value: str, decimals: int) -> str:
    if value not in column:  # the floor has no equivariance and no paths
        return ""
    text = f"{column[value]:.{decimals}f}"
    return f"{text} ± {column[value + '_std']:.{decimals}f}" if value + "_std" in column else text
