"""Curves through points: cubic splines equal SciPy's, and every curve passes through its points."""

import itertools
import math

import pytest
import torch

from fastgan import paths

CURVES = {"lines": paths.lines, "arcs": paths.arcs, "spline": paths.spline}
both = pytest.mark.parametrize("closed", [False, True])


def points(count, *shape):
    return torch.randn(count, *(shape or (3,)), generator=torch.Generator().manual_seed(count))


def along(curve, count, steps, closed):
    return torch.stack([curve(*place) for place in paths.places(count, steps, closed)])


@both
@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_splines_are_those_of_scipy(count, closed):
    interpolate = pytest.importorskip("scipy.interpolate")
    y = points(count, 2, 3)
    knots = torch.cat([y, y[:1]]) if closed else y
    kind = "periodic" if closed else "natural"
    expected = interpolate.CubicSpline(range(len(knots)), knots.double().numpy(), bc_type=kind)
    ours = along(paths.spline(y, closed), count, 6, closed)
    where = [segment + t for segment, t in paths.places(count, 6, closed)]
    torch.testing.assert_close(ours.double(), torch.from_numpy(expected(where)), rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("name", CURVES)
def test_a_curve_passes_through_its_points_bit_for_bit(name, closed):
    y = points(5)
    curve = CURVES[name](y, closed)
    pairs = [*itertools.pairwise(y), (y[-1], y[0])][: 5 if closed else 4]
    for segment, (start, end) in enumerate(pairs):
        assert torch.equal(curve(segment, 0.0), start) and torch.equal(curve(segment, 1.0), end)


@both
def test_places_have_every_point_once(closed):
    found = list(paths.places(3, 5, closed))
    assert len(found) == (3 * 4 if closed else 2 * 4 + 1)
    assert [segment + t for segment, t in found] == pytest.approx([step / 4 for step in range(len(found))])


def test_an_arc_keeps_the_length_and_divides_the_angle():
    curve = paths.arcs(torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), False)
    torch.testing.assert_close(curve(0, 1 / 3), torch.tensor([3.0**0.5, 1.0, 0.0]))


def test_an_arc_of_parallel_vectors_is_linear():
    a = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(paths.arcs(torch.stack([a, 3 * a]), False)(0, 0.25), 1.5 * a)
    assert paths.arcs(torch.stack([a, -a]), False)(0, 0.5).isfinite().all()


def test_a_spline_through_a_circle_is_nearly_one():
    angles = torch.arange(8) * math.pi / 4
    path = along(paths.spline(torch.stack([angles.cos(), angles.sin()], 1), True), 8, 9, True)
    assert (path.norm(dim=1) - 1).abs().max() < 0.002
