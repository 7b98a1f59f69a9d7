"""A trained generator to hand on: its checkpoint, without the other networks, and a card that describes it."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

from fastgan.runs import checkpoint
from fastgan.runs import config as configuration
from fastgan.runs.checkpoint import Header
from fastgan.runs.config import Config
from fastgan.training import configure

HOME = "https://github.com/fastgan/fastgan"
TAGS = ("gan", "image-generation", "pytorch")
DATA = {  # what a card says of built-in data
    "glyphs": "characters drawn in the fonts that come with Matplotlib: DejaVu (Bitstream Vera and Arev licences) and "
    "Computer Modern (BaKoMa Fonts Licence)",
    "emoji": "the drawings of Twemoji, Copyright 2019 Twitter, Inc and other contributors, CC BY 4.0, "
    "https://creativecommons.org/licenses/by/4.0/",
}
MOST_CLASSES = 30  # that a card names
# Options that a command needs first, since others follow from them.
_FIRST = (
    ("data", "arch", "variant", "discriminator", "minutes"),
    ("resolution", "channels"),
    ("loss", "augment", "grow_from"),
)
# Options that do not change the networks.
_OF_NO_ACCOUNT = {*vars(configuration.OutputOptions()), "device", "threads", "capture_steps", "classes"}
# Identifiers that the Hugging Face hub knows, of its list of licences; others are given by name.
LICENSES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m",
    "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda",
    "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl",
    "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by",
    "odbl", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "unknown",
}  # fmt: skip


def command(config: Config) -> str:
    """The shortest command line of a training with these options; files and machine aside."""
    chosen: dict[str, Any] = {}
    for names in (*_FIRST, configuration.options(config)):
        words = [word for name, value in chosen.items() for word in configuration.typed(name, value)]
        usual = configure.resolve(configure.parse(words))
        different = configuration.changes(config, usual)
        chosen |= {name: different[name][0] for name in names if name in different and name not in _OF_NO_ACCOUNT}
    words = [word for name, value in chosen.items() for word in configuration.typed(name, value)]
    return shlex.join(["fastgan", "train", *words])


def public(config: Config) -> Config:
    """`config` without the places of files and without what depends on the machine."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=name_of(config.data.source)),
        training=dataclasses.replace(
            config.training,
            init_from=None if config.training.init_from is None else name_of(config.training.init_from),
        ),
        machine=configuration.MachineOptions(amp=config.machine.amp, seed=config.machine.seed),
        output=configuration.OutputOptions(),
    )


def name_of(place: str) -> str:
    """The last part of a path or URL: no folders, no query."""
    return Path(re.sub(r"[?#].*", "", place) if "://" in place else place).name


def network(header: Header, ema: float | None = None, *, half: bool = False) -> bytes:
    """A checkpoint with one EMA of the generator alone, named by its half-life; None for the first.

    half: write tensors of two dimensions or more in fp16. The header keeps everything but the places of files and the
    machine. Raises UserError, naming the file, if it is damaged or has no such EMA.
    """
    generator = {
        name.removeprefix("ema."): value.half() if half and value.dim() > 1 else value
        for name, value in checkpoint.read_networks(header, ema).items()
        if name.startswith("ema.")
    }
    config = public(header.config)
    training = dataclasses.replace(config.training, init_from=None, freeze_d=0)
    header = dataclasses.replace(header, config=dataclasses.replace(config, training=training))
    return checkpoint.with_generator(header, generator, ema)


def summary(header: Header) -> str:
    """A sentence on the generator: size of its images, classes, family, parameters."""
    model = header.model
    generator, _ = checkpoint.load_generator(header.path)
    count = sum(parameter.numel() for parameter in generator.parameters())
    height, width = model.feature_size(model.resolution)
    colours = {1: "grey", 3: "colour", 4: "colour with transparency"}[model.channels]
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    return f"A generator of {width}x{height} images in {colours}{classes}: {model.arch}, {count:,} parameters."


def recipe(header: Header) -> str:
    """Command, number of images, and time of the training if it was limited."""
    took = f" in {header.seconds / 60:.3g} minutes" if header.seconds else ""
    return f"`{command(public(header.config))}`, {header.images:,} images{took}"


def about_data(header: Header) -> str:
    """The training images by the checkpoint: their number, and the name of their folder or file."""
    source, count = header.config.data.source, header.dataset["images"]
    return DATA.get(source) or f"{count:,} images, {name_of(source)}"


def item(text: str) -> str:
    """An item of a list in Markdown, in lines of 120 letters."""
    return textwrap.fill(f"- {text}", 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def front_matter(arch: str, license: str | None) -> str:
    """The card's metadata for the Hugging Face hub, as YAML. license: any name; None for no field."""
    fields: dict[str, Any] = {
        "library_name": "fastgan",
        "pipeline_tag": "unconditional-image-generation",
        "tags": list(dict.fromkeys((*TAGS, arch))),
    }
    if license is not None:
        known = license.lower() in LICENSES
        fields["license"] = license.lower() if known else "other"
        if not known:
            fields["license_name"] = re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-.") or "see-below"
    lines = []
    for name, value in fields.items():  # JSON's strings are YAML's
        items = [f"- {json.dumps(each)}" for each in value] if isinstance(value, list) else []
        lines += [f"{name}:", *items] if items else [f"{name}: {json.dumps(value)}"]
    return "\n".join(["---", *lines, "---"])


def card(
    title: str,
    header: Header,
    *,
    ema: float,
    about: str | None,
    license: str | None,
    report: str | None,
    repository: str | None,
    files: dict[str, str],
) -> str:
    """The card of a shared network, README.md.

    Args:
        title: its first heading.
        header: of the checkpoint it was taken from.
        ema: half-life of its average, in thousands of images.
        about: what the training images are; None for what the checkpoint says.
        license: of the network; None if none is given.
        report: what `fastgan evaluate` says of it, or None.
        repository: USER/NAME on the Hugging Face hub; None for a folder.
        files: what each file beside the card is, by name; one is a picture, samples.png.
    """
    names = header.dataset["class_names"] if header.model.num_classes else []
    classes = ", ".join(f"`{name.replace('`', '')}`" for name in names[:MOST_CLASSES])
    if len(names) > MOST_CLASSES:
        classes += f" and {len(names) - MOST_CLASSES} more"
    place, here = (f"hf://{repository}", "") if repository else (".", ", in this folder")
    training = [f"Data: {about or about_data(header)}.", f"Command: {recipe(header)}."]
    if header.config.training.init_from is not None:
        start = name_of(header.config.training.init_from)
        training.append(f"It began with the networks of `{start}`, whose licence may bind this one as well.")
    training.append(f"Weights: the generator's EMA, of a half-life of {ema:g} thousand images.")
    parts = [
        front_matter(header.model.arch, license),
        f"# {title}",
        f"{summary(header)} Made with [fastgan]({HOME}).",
        "![Samples](samples.png)",
        "## Draw",
        f"With fastgan (`pip install git+{HOME}`){here}:",
        f"```bash\nfastgan generate --checkpoint {place} --seeds 0-15 --out images.png\n```",
        f'```python\nimport fastgan\n\nimages = fastgan.load("{place}").sample(16)  # uint8 [16, C, H, W]\n```',
        *([f"Classes: {classes}."] if names else []),
        "## Training",
        "\n".join(map(item, training)),
        "## Metrics",
        "Not measured." if report is None else f"`fastgan evaluate` says of it:\n\n```text\n{report}\n```",
        "## Licence",
        f"Of the network: {license}." if license else "None is given: ask the author before you use the network.",
        "## Files",
        "\n".join(item(f"`{name}`: {what}.") for name, what in files.items()),
    ]
    return "\n\n".join(parts) + "\n"
