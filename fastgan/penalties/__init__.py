"""Gradient penalties, in one pass where the discriminator allows it.

- terms: R1, R2, WGAN-GP, as functions of squared gradient norms
- gradient: logits and squared gradient norms; chooses between one pass and double backward
- one_pass: the autograd Function without double backward
- recording: records a discriminator's forward pass
- rules: which functions are piecewise linear, and what they compute; add your own here
"""

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
