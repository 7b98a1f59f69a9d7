"""Makes an example of a run: `python -m bench.publish_example RUN NAME`.

Writes the averaged generator of RUN to fastgan/examples/NAME.safetensors, its weights in fp16 if pictures stay the
same, else in fp32. Measures that file by `fastgan evaluate`, and writes the card beside it, NAME.md: data and their
licence, command, metrics. The command is the shortest one with the run's options. Data other than glyphs and emoji are
described by --about.

All examples together may have 3 MB: a wheel holds them.
"""

import argparse
import sys
from typing import Any

import numpy as np
import torch

from fastgan import examples, sharing
from fastgan.cli import evaluate
from fastgan.errors import UserError, command_line
from fastgan.files import file_digest, write_atomically
from fastgan.runs import drawing
from fastgan.runs.checkpoint import Header, load_generator, read_header
from fastgan.version import __version__

MOST_BYTES = 3_000_000
MOST_LEVELS = 2  # of 255, between a picture of the run and one of the example
COMPARED = 64  # pictures


def difference(header: Header, name: str, ema: float | None = None) -> int:
    """Largest difference between pictures of the run and of the example, in levels of 255."""
    z = drawing.latents(range(COMPARED), header.model.z_dim)
    labels = torch.arange(COMPARED) % header.model.num_classes if header.model.num_classes else None
    networks = load_generator(header.path, ema=ema)[0], load_generator(examples.PREFIX + name)[0]
    of_run, of_example = (drawing.draw(each, z, labels).astype(int) for each in networks)
    return int(np.abs(of_run - of_example).max())


def card(name: str, header: Header, about: str, report: dict[str, Any], levels: int, half: bool) -> str:
    """The card, in Markdown. report: of `fastgan evaluate`. levels: see `difference`. half: whether it has fp16."""
    path = examples.path_of(examples.PREFIX + name)
    weights = "Weights are in fp32"
    if half:
        weights = f"Weights are in fp16; pictures differ from the run's by at most {levels} of 255 levels"
    which = ""
    if len(header.config.training.ema_halflives) > 1:
        which = f"; the EMA of half-life {read_header(path).config.training.ema_halflives[0]:g}"
    facts = "\n".join(
        sharing.item(f"{each}.")
        for each in (
            f"Data: {about}",
            "Licence of the network: Apache-2.0",
            f"Command: {sharing.recipe(header)}{which}",
            f"File: {path.name}, {path.stat().st_size / 1e6:.2f} MB, SHA-256 `{file_digest(path)}`. {weights}",
            f"Made by `python -m bench.publish_example`, fastgan {__version__}",
        )
    )
    return f"""# {name}

{sharing.summary(read_header(path))}

```bash
fastgan generate --checkpoint {examples.PREFIX}{name}
```

{facts}

`fastgan evaluate` says of it:

```text
{evaluate.table(report)}
```
"""


@command_line
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder or checkpoint of a training")
    parser.add_argument("name", help="the example's, of lower-case letters, digits and hyphens")
    parser.add_argument("--about", help="what the training images are, their source and licence")
    parser.add_argument("--data", help="as for fastgan evaluate")
    parser.add_argument("--heldout", help="as for fastgan evaluate")
    parser.add_argument("--ema", type=float, help="as for fastgan generate")
    parser.add_argument("--samples", type=int, default=5000, help="as for fastgan evaluate")
    given = parser.parse_args(argv)
    header = read_header(given.run)
    about = given.about or sharing.DATA.get(header.config.data.source)
    if about is None:
        parser.error(f"--about: say what {header.config.data.source} is, and its licence")
    path = examples.FOLDER / f"{given.name}.safetensors"
    write_atomically(path, sharing.network(header, given.ema, half=True))
    try:
        levels = difference(header, given.name, given.ema)
        half = levels <= MOST_LEVELS
        if not half:
            write_atomically(path, sharing.network(header, given.ema, half=False))
        total = sum(each.stat().st_size for each in examples.FOLDER.iterdir() if each.suffix in (".safetensors", ".md"))
        if total > MOST_BYTES:
            raise UserError(f"{path}: with it, the examples have {total:,} bytes, more than {MOST_BYTES:,}")
        options = evaluate.Options(
            checkpoint=examples.PREFIX + given.name, data=given.data, heldout=given.heldout, samples=given.samples
        )
        report = evaluate.measure(options)
        assert report is not None, "this is the only process"
        text = card(given.name, header, about, report, levels, half)
        write_atomically(path.with_suffix(".md"), text.encode())
    except BaseException:
        path.unlink()
        raise
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
