"""Gradient penalties, and how they get by without double backward."""

from fastgan.penalties.gradient import logits_and_squared_grad, why_not_one_pass
from fastgan.penalties.terms import interpolate, one_centered_penalty, wgan_gp, zero_centered_penalty

__all__ = [
    "interpolate",
    "logits_and_squared_grad",
    "one_centered_penalty",
    "wgan_gp",
    "why_not_one_pass",
    "zero_centered_penalty",
]
