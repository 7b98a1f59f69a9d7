"""Curves through points, on which interpolations move: lines, arcs and cubic splines, open or closed.

Points are [K, ...], K >= 2. Segment i leads from point i to the next; the last segment of a closed curve leads back to
the first point. A curve is a function of a segment's number and a place in it, from 0 to 1, exact at both ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Curve = Callable[[int, float], Tensor]


def places(points: int, steps: int, closed: bool) -> Iterator[tuple[int, float]]:
    """`steps` places in each segment, both ends included, and a point between two segments once.

    A closed curve ends one step before its first point.
    """
    segments = points if closed else points - 1
    for segment in range(segments):
        for step in range(steps - 1):
            yield segment, step / (steps - 1)
    if not closed:
        yield segments - 1, 1.0


def lines(points: Tensor, closed: bool) -> Curve:
    """Straight lines."""
    return _through(points, torch.lerp)


def arcs(points: Tensor, closed: bool) -> Curve:
    """Arcs around the origin through vectors [K, D]; a straight line between parallel ones."""
    return _through(points, _arc)


def spline(points: Tensor, closed: bool) -> Curve:
    """The cubic spline, whose first and second derivatives are continuous; at the ends of an open one the second is 0.

    Computed in fp64 and returned in the dtype of `points`.
    """
    y = points.double()
    bends = _second_derivatives(y, closed)

    def at(segment: int, t: float) -> Tensor:
        start, end, s = segment, (segment + 1) % len(y), 1 - t
        bend = (s**3 - s) * bends[start] + (t**3 - t) * bends[end]
        return (s * y[start] + t * y[end] + bend / 6).to(points.dtype)

    return at


def _second_derivatives(y: Tensor, closed: bool) -> Tensor:
    """M [K, ...] of the cubic spline through y [K, ...] at 0, 1, 2, ...

    M[i-1] + 4 M[i] + M[i+1] = 6 (y[i-1] - 2 y[i] + y[i+1]), at every point but the ends of an open curve.

    Around a closed curve this is a convolution, which the discrete Fourier transform inverts. An open curve, continued
    as an odd function beyond both ends, is a closed one, and M is 0 at the ends.
    """
    if closed:
        right = y.roll(1, 0) - 2 * y + y.roll(-1, 0)
    else:
        inner, zero = y[:-2] - 2 * y[1:-1] + y[2:], torch.zeros_like(y[:1])
        right = torch.cat([zero, inner, zero, -inner.flip(0)])
    angles = 2 * math.pi * torch.arange(len(right), dtype=torch.float64, device=y.device) / len(right)
    factors = 6 / (4 + 2 * angles.cos())
    spectrum = torch.fft.fft(right, dim=0) * factors.reshape(-1, *[1] * (y.ndim - 1))
    return torch.fft.ifft(spectrum, dim=0).real[: len(y)]


def _through(points: Tensor, between: Callable[[Tensor, Tensor, float], Tensor]) -> Curve:
    """A curve of one segment after the other. between: two points and a place from 0 to 1, to a point."""
    return lambda segment, t: between(points[segment], points[(segment + 1) % len(points)], t)


def _arc(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Spherical interpolation between vectors, exact at t 0 and 1; linear for parallel vectors."""
    a, b = start.double(), end.double()
    angle = torch.acos((torch.dot(a, b) / (a.norm() * b.norm())).clamp(-1, 1))
    if angle.sin() < 1e-6:
        return torch.lerp(start, end, t)
    return ((a * torch.sin((1 - t) * angle) + b * torch.sin(t * angle)) / torch.sin(angle)).to(start.dtype)
