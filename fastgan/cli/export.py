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
from fastgan.files import prepare_to_write, require_other, write_atomically
from fastgan.options import HalfLife, PathText, parse_options
from fastgan.runs.memory import out_of_memory_is_user_error

ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "pkl": ".pkl", "rosinality": ".pt"}
HALVES = ("mapping", "synthesis")
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
    split: bool = False
    """Two files instead of one, NAME_mapping and NAME_synthesis: from z to ws [N, num_ws, w_dim], and from ws to
    images, so that a program can edit ws. For a style-based network as ONNX or .pt2."""
    ema: HalfLife = None
    """Half-life of the EMA to export, in thousands of images, of a training that has kept several."""

    def check(self) -> None:
        """Raises UserError for options that are wrong for any checkpoint."""
        ending = ENDINGS[self.format]
        if self.out is not None and Path(self.out).suffix.lower() != ending:
            raise UserError(f"--out {self.out}: the name must end in {ending} for --format {self.format}")
        for name, usual in (("image", "float"), ("noise", "const"), ("split", False)):
            value = getattr(self, name)
            if self.format in ("pkl", "rosinality") and value != usual:
                shown = f"--{name} {value}" if isinstance(value, str) else f"--{name}"
                raise UserError(f"{shown}: works with --format onnx and torch, not with {self.format}")


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
    files = {out.with_stem(f"{out.stem}_{part}"): part for part in HALVES} if options.split else {out: "generator"}
    for file in files:
        require_other(file, [found.path])
        prepare_to_write(file)
    if options.format in ("onnx", "torch"):
        contents, remarks = _networks(options, found.path, files)
    else:
        from fastgan.interop import writing

        config, tensors = found.load_state_dicts()
        try:
            content, remarks = writing.to_bytes(options.format, config, tensors)
        except ValueError as error:
            raise UserError(f"--format {options.format}: {found.path}: {error}") from None
        contents = {out: content}
    for file, content in contents.items():
        write_atomically(file, content)
    print(*remarks, *contents, sep="\n")


def _networks(options: Options, path: Path, files: dict[Path, str]) -> tuple[dict[Path, bytes], list[str]]:
    """Contents of files that draw images, and a remark on how close these are to PyTorch's.

    files: with the part that each holds. Raises UserError if the images differ.
    """
    from fastgan.export import formats, tracing
    from fastgan.runs.drawing import Unsupported
    from fastgan.sampler import load

    sampler = load(path, "cpu", ema=options.ema)
    chosen = {"noise": options.noise, "image": options.image}
    write, open_file, runner = formats.FORMATS[options.format]
    contents = {}
    for file, part in files.items():
        try:
            traced = tracing.trace(sampler, part=part, **chosen)
        except Unsupported as error:
            option = "--split" if part == "mapping" else f"--noise {options.noise}"
            raise UserError(f"{option}: {error}") from None
        contents[file] = write(traced, formats.metadata(sampler, **chosen, part=part))
    draw, *synthesis = map(open_file, contents.values())
    both = lambda **given: synthesis[0](ws=draw(**given))
    difference = tracing.largest_difference(both if synthesis else draw, sampler, **chosen)
    unit = "levels of 255" if options.image == "uint8" else "in a range of 2"
    if not difference <= TOLERANCE[options.image]:  # also true of NaN
        names = " and ".join(map(str, files))
        raise UserError(f"{names} not written: images of {runner} differ from PyTorch's by {difference:.2g} {unit}")
    remark = f"images of {runner} for seeds 0 to 3 differ from PyTorch's by at most {difference:.2g} {unit}"
    return contents, [remark]
