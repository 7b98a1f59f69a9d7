"""Layers that compute together, as on a GPU, on a CPU."""

from fastgan import effective
from fastgan.models import modulation
from fastgan.training import gradients


def compute_together(monkeypatch, together: bool = True) -> list[int]:
    """Makes all layers do so, or none. Returns a list with the number of weights of each decision from now on."""
    decisions: list[int] = []

    def decide(tensors):
        decisions.append(len(tensors))
        return together

    for module in (effective, modulation, gradients):
        monkeypatch.setattr(module, "computed_together", decide)
    return decisions
