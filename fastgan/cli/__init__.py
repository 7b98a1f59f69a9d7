"""The command `fastgan COMMAND ...`, also `python -m fastgan COMMAND ...`.

Each command is a module of this package and is imported only to run it. So `fastgan --help` imports neither torch nor
tyro, and `fastgan doctor` also works in an incomplete installation.
"""

from __future__ import annotations

import sys
from importlib import import_module

from fastgan.errors import UserError, command_line, nearest, program, readable
from fastgan.version import __version__

COMMANDS = {
    "train": "Train a GAN, or resume a run.",
    "generate": "Draw images, style mixing, interpolation, noise and truncation.",
    "directions": "Find directions in w that edit images, and draw and save them.",
    "evaluate": "Measure generated images against real ones: KID, FID, and others.",
    "project": "Find the latents whose images are nearest to given ones.",
    "view": "Show a run and its generator in the browser.",
    "dataset": "Prepare images for training: crop, resize, find their classes.",
    "export": "Write a generator as ONNX or .pt2, or for other StyleGAN2 code.",
    "share": "Hand on a generator: a folder with a card, or a push to the hub.",
    "doctor": "Report hardware, kernels, and the backend of each operation.",
}


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"fastgan {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"{readable(name)}: no such command; {nearest(name, COMMANDS)}{program()} --help lists all")
    return import_module(f"{__name__}.{name}").main(arguments)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {program()} COMMAND [OPTIONS]",
            "",
            "A GAN engine for PyTorch on fused kernels.",
            "",
            *lines,
            "",
            f"Options of a command: {program()} COMMAND --help",
            f"Version: {program()} --version",
        ]
    )
