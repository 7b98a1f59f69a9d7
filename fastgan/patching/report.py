"""The report of a patch, which also undoes it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from torch import nn


class Replaced(NamedTuple):
    """A layer or function that was replaced.

    Attributes:
        kind: name of its class, or of the function.
        by: the operation of `fastgan.ops` that computes it now.
        pairs: number of fused pairs of layers, for a sequence.
    """

    kind: str
    by: str
    pairs: int = 0


class Patched:
    """Report of a patch: replaced and unchanged modules. As a context manager it undoes the patch at the end.

    Attributes:
        replaced: replaced layers or functions by name ("" is the model itself).
        left: known layers or functions that stay as they are, by name, each with the reason.
        unknown: number of modules of each unknown class, counting modules without submodules.
        notes: further remarks, a sentence each.
    """

    def __init__(self) -> None:
        self.replaced: dict[str, Replaced] = {}
        self.left: dict[str, str] = {}
        self.unknown: Counter[str] = Counter()
        self.notes: list[str] = []
        self.restores: list[Callable[[], bool]] = []  # each returns whether it succeeded

    def note_unknown(self, module: nn.Module) -> None:
        if not module._modules and not type(module).__module__.startswith("fastgan."):
            self.unknown[type(module).__name__] += 1

    def undo(self) -> None:
        """Restores the originals, once. Anything changed since by other code is left as it is, with a warning."""
        restores, self.restores = self.restores, []
        if not all([restore() for restore in reversed(restores)]):
            warnings.warn(
                "fastgan.patch: some replaced layers or functions have been changed since, and stay as they are",
                stacklevel=2,
            )

    def __enter__(self) -> Patched:
        return self

    def __exit__(self, *_) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"replaced ({len(self.replaced)}):" if self.replaced else "replaced: nothing"]
        pairs: Counter[tuple[str, str]] = Counter()
        for kind, by, count in self.replaced.values():
            pairs[kind, by] += count
        lines += _grouped(
            self.replaced,
            lambda one: f"{one.kind} by {one.by}",
            lambda one: f", {_counted(pairs[one[:2]], 'pair')}" if one.pairs else "",
        )
        if self.left:
            lines += [f"left as they are ({len(self.left)}):", *_grouped(self.left)]
        if self.unknown:
            lines.append("unknown: " + ", ".join(f"{kind} ({count})" for kind, count in sorted(self.unknown.items())))
        return "\n".join(lines + self.notes)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _grouped(entries: dict, text: Callable = str, more: Callable = lambda entry: "") -> list[str]:
    """One line for all names with the same text."""
    names: dict[str, list[str]] = {}
    mores: dict[str, str] = {}
    for name, entry in entries.items():
        names.setdefault(text(entry), []).append(name or "the model itself")
        mores[text(entry)] = more(entry)
    return [
        f"  {what} ({len(group)}{mores[what]}): {', '.join(group[:3])}{', ...' if len(group) > 3 else ''}"
        for what, group in names.items()
    ]
