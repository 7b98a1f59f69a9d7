"""Small trained networks that come with the package, named `example:NAME` in place of a run. Imports no torch.

Each is a checkpoint with the generator alone, NAME.safetensors, and a card, NAME.md: data and its licence, command,
metrics. `python -m bench.publish_example` in the repository writes both.
"""

from __future__ import annotations

from pathlib import Path

from fastgan.errors import UserError, nearest, readable

FOLDER = Path(__file__).parent
PREFIX = "example:"


def names() -> list[str]:
    """Names of the examples, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def is_example(text: str) -> bool:
    """Whether `text` names an example, one that there is or not."""
    return text.startswith(PREFIX)


def path_of(text: str) -> Path:
    """Checkpoint of `example:NAME`. Raises UserError, with the names that there are, for another one."""
    name = text.removeprefix(PREFIX)
    if name not in names():
        raise UserError(f"{readable(text)}: no such example; {nearest(name, names())}there are {', '.join(names())}")
    return FOLDER / f"{name}.safetensors"


def card_of(text: str) -> Path:
    """Card of `example:NAME`, in Markdown."""
    return path_of(text).with_suffix(".md")
