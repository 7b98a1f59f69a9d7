"""`python -m fastgan.export`: write a trained generator to a file that runs without fastgan: ONNX, or PyTorch's .pt2.

Exit status: 0 when done, 2 for a mistake in options or files, 130 after Ctrl-C; a file written is whole, and was tried.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastgan.data.urls import has_scheme
from fastgan.errors import UserError, command_line
from fastgan.options import PathText, parse_options
from fastgan.training.files import write_atomically
from fastgan.training.memory import shortage_is_a_mistake

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = {"float": 1e-4, "uint8": 1}  # between PyTorch's image and the file's: rounding may fall either way


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the averaged generator of a training run to a file that runs without fastgan.

    Its inputs are z [N, z_dim] from N(0, 1); label [N] int64 if there are classes; truncation [] fp32, psi, if the
    network is style-based. The result is image [N, C, H, W]. docs/export.md shows how such files are run.
    """

    checkpoint: Annotated[PathText, tyro.conf.arg(metavar="RUN|FILE|URL")]
    """Folder of a training run, a checkpoint file, or a .pkl file of the official StyleGAN2; here or at a URL."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx needs the extra "export" of this package; torch is a .pt2 of torch.export."""
    out: Annotated[
        PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/generator.onnx or .pt2)")
    ] = None
    """Name of the file, ending in .onnx or .pt2."""
    image: Literal["float", "uint8"] = "float"
    """float: of nominal range -1..1, not clamped. uint8: 0..255."""
    noise: Literal["const", "none"] = "const"
    """In the layers of a style-based network: the fixed noise that python -m fastgan.generate draws with, or none."""

    def check(self) -> None:
        """Raises UserError for a mistake that shows without the checkpoint."""
        ending = ENDINGS[self.format]
        if self.out is not None and Path(self.out).suffix.lower() != ending:
            raise UserError(f"--out {self.out}: the name must end in {ending} for --format {self.format}")


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = parse_options(Options, "python -m fastgan.export", argv)
    with shortage_is_a_mistake("free some"):
        export(options)
    return 0


def export(options: Options) -> None:
    """Write what `options` asks for, if it draws what PyTorch draws. Raises UserError for a mistake."""
    options.check()

    from fastgan.export import formats, program
    from fastgan.sampler import load
    from fastgan.training.sampling import Unsupported
    from fastgan.training.trained import find

    if options.format == "onnx":
        formats.require_onnx()
    path = find(options.checkpoint).path
    sampler = load(path, "cpu")
    folder = Path() if has_scheme(options.checkpoint) else path.parent
    out = Path(options.out) if options.out is not None else folder / f"generator{ENDINGS[options.format]}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder for --out {out}: {error.strerror}") from None
    chosen = {"noise": options.noise, "image": options.image}
    try:
        traced = program.trace(sampler, **chosen)
    except Unsupported as error:
        raise UserError(f"--noise {options.noise}: {error}") from None
    write, open_file, runner = formats.FORMATS[options.format]
    content = write(traced, formats.metadata(sampler, **chosen))
    difference = program.largest_difference(open_file(content), sampler, **chosen)
    unit = "levels of 255" if options.image == "uint8" else "of a range of 2"
    if not difference <= TOLERANCE[options.image]:  # NaN is not
        raise UserError(
            f"{out} was not written: {runner} draws other images than PyTorch, {difference:.2g} {unit} apart"
        )
    write_atomically(out, content)
    print(f"{runner} draws the images of PyTorch: seeds 0 to 3 are at most {difference:.2g} {unit} apart")
    print(out)


if __name__ == "__main__":
    sys.exit(main())
