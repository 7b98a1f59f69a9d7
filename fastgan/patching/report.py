"""What a patch did, and its way back."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from torch import nn


class Replaced(NamedTuple):
    """A layer or function that was replaced.

    Attributes:
        kind: its class, or the function's name.
        by: the operation of `fastgan.ops` that computes it now.
        pairs: how many pairs of layers were fused, where `kind` is a sequence.
    """

    kind: str
    by: str
    pairs: int = 0


class Patched:
    """What was replaced and what was left; a context manager that undoes it at the end, also after an exception.

    Attributes:
        replaced: all that was replaced, by name ("" is the model itself).
        left: why each of what looked familiar was left as it is, by name.
        unknown: how many modules there are of each class that is not known, among those without parts.
        notes: what is to be known beside, a sentence each.
    """

    def __init__(self):
        self.replaced: dict[str, Replaced] = {}
        self.left: dict[str, str] = {}
        self.unknown: Counter[str] = Counter()
        self.notes: list[str] = []
        self.restores: list[Callable[[], bool]] = []  # each says whether it could

    def note_unknown(self, module: nn.Module) -> None:
        if not module._modules and not type(module).__module__.startswith("fastgan."):
            self.unknown[type(module).__name__] += 1

    def undo(self) -> None:
        """Puts everything back, once. What somebody else has changed since is left, with a warning."""
        restores, self.restores = self.restores, []
        if not all([restore() for restore in reversed(restores)]):
            warnings.warn("fastgan.patch: some of what was replaced has been changed since, and is left", stacklevel=2)

    def __enter__(self) -> Patched:
        return self

    def __exit__(self, *_) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"replaced ({len(self.replaced)}):" if self.replaced else "replaced: nothing"]
        pairs = Counter()
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
            lines.append("not known: " + ", ".join(f"{kind} ({count})" for kind, count in sorted(self.unknown.items())))
        return "\n".join(lines + self.notes)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _grouped(entries: dict, text: Callable = str, more: Callable = lambda entry: "") -> list[str]:
    """A line for all names of one text."""
    names: dict[str, list[str]] = {}
    mores: dict[str, str] = {}
    for name, entry in entries.items():
        names.setdefault(text(entry), []).append(name or "the model itself")
        mores[text(entry)] = more(entry)
    return [
        f"  {what} ({len(group)}{mores[what]}): {', '.join(group[:3])}{', ...' if len(group) > 3 else ''}"
        for what, group in names.items()
    ]
