"""Environment variables that hold whole numbers."""

from __future__ import annotations

import os

from fastgan.errors import UserError, readable


def number(name: str, default: int, least: int, most: int) -> int:
    """Value of a variable; `default` if it is unset or empty. Raises UserError, naming it, for any other text."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise UserError(f"{name}={readable(text)} in the environment: must be a whole number from {least} to {most}")
    return int(text)


def process_count() -> int:
    """Number of processes that torchrun has started for this command; 1 without it."""
    return number("WORLD_SIZE", 1, 1, 2**20)
