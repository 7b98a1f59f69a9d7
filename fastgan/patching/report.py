"""What a patch did, and its way back."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable

from torch import nn


class Patched:
    """What was replaced and what was left; a context manager that undoes it at the end, also after an exception.

    Attributes:
        replaced: class or function of all that was replaced, by name ("" is the model itself).
        left: why each of what looked familiar was left as it is, by name.
        unknown: how many modules there are of each class that is not known, among those without parts.
    """

    def __init__(self):
        self.replaced: dict[str, str] = {}
        self.left: dict[str, str] = {}
        self.unknown: Counter[str] = Counter()
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
        lines = ["replaced:" if self.replaced else "replaced: nothing"]
        lines += _grouped(self.replaced)
        if self.left:
            lines += ["left as they are:", *_grouped(self.left)]
        if self.unknown:
            lines.append("not known: " + ", ".join(f"{kind} ({count})" for kind, count in sorted(self.unknown.items())))
        return "\n".join(lines)


def _grouped(entries: dict[str, str]) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, what in entries.items():
        names.setdefault(what, []).append(name or "the model itself")
    return [
        f"  {what} ({len(group)}): {', '.join(group[:3])}{', ...' if len(group) > 3 else ''}"
        for what, group in names.items()
    ]
