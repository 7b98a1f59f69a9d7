"""`fastgan export`: write a trained generator, or all its networks, to a file for other software.

ONNX and PyTorch's .pt2 files draw images without fastgan. A .pkl of the official StyleGAN2 or a .pt of rosinality's
holds networks that this code can draw from and train.

Exit status: 0 when done, 2 for a wrong option or file, 130 after Ctrl-C. A file written is complete and was tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastgan.data.urls import has_scheme
from fastgan.errors import UserError, command_line, program
from fastgan.files import prepare_to_write, write_atomically
from fastgan.options import HalfLife, PathText, parse_options
from fastgan.runs.memory import out_of_memory_is_user_error

ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "pkl": ".pkl", "rosinality": ".pt"}
NAMES = {"onnx": "generator", "torch": "generator", "pkl": "networks", "rosinality": "networks"}
TOLERANCE = {"float": 1e-4, "uint8": 1}  # between PyTorch's image and the file's; uint8 may round either way


@dataclass(frozen=True, kw_only=True)
class Options:
    """Export the averaged generator of a training run to a file that runs without fastgan, or all networks to a file of
    the official StyleGAN2 or of rosinality's.

    Inputs of an ONNX or .pt2 file: z [N, z_dim] from N(0, 1); label [N] int64 if there are classes; truncation [] fp32,
    psi, if the network is style-based. Its output: image [N, C, H, W]. docs/export.md shows how to run such files,
    docs/official_networks.md how to use the others.
    """

    checkpoint: Annotated[PathText, tyro.conf.arg(metavar="RUN|FILE|URL")]
    """Folder of a training run, a checkpoint file, or a file of the official StyleGAN2 (.pkl) or of rosinality's (.pt);
    local or at a URL. hf://USER/NAME, one of the Hugging Face hub. example:digits, one that comes with fastgan."""
    format: Literal["onnx", "torch", "pkl", "rosinality"] = "onnx"
    """onnx: a generator for ONNX Runtime (extra "export"). torch: a generator as the .pt2 of torch.export. pkl: a
    stylegan2's G, D and G_ema for the official code (stylegan2-ada-pytorch, stylegan3). rosinality: a stylegan2's g, d
    and g_ema as the .pt of rosinality/stylegan2-pytorch."""
    out: Annotated[PathText | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in RUN)")] = None
    """Name of the file, ending in .onnx, .pt2, .pkl or .pt, according to the format."""
    image: Literal["float", "uint8"] = "float"
    """Output of an ONNX or .pt2 file. float: nominal range -1..1, not clamped. uint8: 0..255."""
    noise: Literal["const", "none"] = "const"
    """Noise in the layers of a style-based network. const: the fixed noise that `fastgan generate` draws with."""
    ema: HalfLife = None
    """Half-life of the EMA to export, in thousands of images, of a training that has kept several."""

    def check(self) -> None:
        """Raises UserError for options that are wrong for any checkpoint."""
        ending = ENDINGS[self.format]
        if self.out is not None and Path(self.out).suffix.lower() != ending:
            raise UserError(f"--out {self.out}: the name must end in {ending} for --format {self.format}")
        for name, value, usual in (("image", self.image, "float"), ("noise", self.noise, "const")):
            if self.format in ("pkl", "rosinality") and value != usual:
                raise UserError(f"--{name} {value}: works with --format onnx and torch, not with {self.format}")


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    options = parse_options(Options, program("export"), argv)
    with out_of_memory_is_user_error("free some"):
        export(options)
    return 0


def export(options: Options) -> None:
    """Write the file that `options` asks for. Raises UserError for a wrong option or file."""
    options.check()

    from fastgan.runs.networks import open_networks

    if options.format == "onnx":
        from fastgan.export.formats import require_onnx

        require_onnx()
    found = open_networks(options.checkpoint, options.ema)
    folder = Path() if has_scheme(options.checkpoint) else found.path.parent
    out = Path(options.out or folder / f"{NAMES[options.format]}{ENDINGS[options.format]}")
    if out.exists() and out.samefile(found.path):
        raise UserError(f"--out {out}: is the file to export; give another name")
    prepare_to_write(out)
    if options.format in ("onnx", "torch"):
        content, remarks = _generator(options, found.path, out)
    else:
        from fastgan.interop import writing

        config, tensors = found.load_state_dicts()
        try:
            content, remarks = writing.to_bytes(options.format, config, tensors)
        except ValueError as error:
            raise UserError(f"--format {options.format}: {found.path}: {error}") from None
    write_atomically(out, content)
    print(*remarks, out, sep="\n")


def _generator(options: Options, path: Path, out: Path) -> tuple[bytes, list[str]]:
    """A file that draws images, and a remark on how close they are to PyTorch's. Raises UserError if they differ."""
    from fastgan.export import formats, tracing
    from fastgan.runs.drawing import Unsupported
    from fastgan.sampler import load

    sampler = load(path, "cpu", ema=options.ema)
    chosen = {"noise": options.noise, "image": options.image}
    try:
        traced = tracing.trace(sampler, **chosen)
    except Unsupported as error:
        raise UserError(f"--noise {options.noise}: {error}") from None
    write, open_file, runner = formats.FORMATS[options.format]
    content = write(traced, formats.metadata(sampler, **chosen))
    difference = tracing.largest_difference(open_file(content), sampler, **chosen)
    unit = "levels of 255" if options.image == "uint8" else "in a range of 2"
    if not difference <= TOLERANCE[options.image]:  # also true of NaN
        raise UserError(f"{out} was not written: images of {runner} differ from PyTorch's by {difference:.2g} {unit}")
    return content, [f"images of {runner} for seeds 0 to 3 differ from PyTorch's by at most {difference:.2g} {unit}"]
