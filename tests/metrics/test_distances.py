"""KID, FID, precision and recall: against closed forms, sums written out, and torch-fidelity."""

import subprocess
import sys

import numpy as np
import pytest

from fastgan.metrics import frechet_distance, kernel_distance, precision_recall, squared_mmd
from fastgan.metrics.distances import memorisation, nearest, neighbour_radii
from tests.support.extras import needs_fidelity


def gaussian(count, mean, covariance, seed=0):
    """Samples with exactly this mean and (unbiased) covariance."""
    x = np.random.default_rng(seed).standard_normal((count, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x.T)))).T  # white
    return x @ np.linalg.cholesky(covariance).T + mean


def covariance(size, seed):
    factor = np.random.default_rng(seed).standard_normal((size, size))
    return factor @ factor.T + 0.1 * np.eye(size)


def test_frechet_distance_in_one_dimension():
    x, y = gaussian(50, [1.0], np.array([[4.0]])), gaussian(70, [-2.0], np.array([[0.25]]), seed=1)
    assert frechet_distance(x, y) == pytest.approx(3.0**2 + (2.0 - 0.5) ** 2, rel=1e-12)


def test_frechet_distance_of_independent_features_is_a_sum():
    means, spreads = np.array([[0.0, 1.0, 2.0], [0.5, 1.0, -1.0]]), np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 0.5]])
    x, y = (gaussian(40, m, np.diag(s**2), seed) for seed, (m, s) in enumerate(zip(means, spreads, strict=True)))
    expected = np.square(means[0] - means[1]).sum() + np.square(spreads[0] - spreads[1]).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_covariances_that_do_not_commute():
    first, second = covariance(6, 0), covariance(6, 1)
    assert np.abs(first @ second - second @ first).max() > 1
    root = np.sqrt(np.linalg.eigvals(first @ second).real).sum()  # the trace of the root, from the definition
    expected = 4.0 + np.trace(first) + np.trace(second) - 2 * root
    mean = np.array([2.0, 0, 0, 0, 0, 0])
    assert frechet_distance(gaussian(30, 0 * mean, first), gaussian(30, mean, second, 1)) == pytest.approx(expected)


def test_frechet_distance_to_itself_is_zero_also_with_fewer_images_than_features():
    for shape in ((100, 20), (20, 100)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        assert frechet_distance(x, x[::-1]) < 1e-10


def test_frechet_distance_of_a_shift_is_its_square_also_with_fewer_images_than_features():
    x = np.random.default_rng(0).standard_normal((20, 100))
    assert frechet_distance(x, x + 0.1) == pytest.approx(100 * 0.1**2, rel=1e-9)


def explicit_squared_mmd(x, y):
    """The unbiased squared MMD as explicit sums over pairs of different samples."""
    kernel = lambda a, b: (float(np.dot(a, b)) / len(a) + 1) ** 3
    within = lambda z: np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_squared_mmd_equals_the_explicit_sums():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 5)), rng.standard_normal((4, 5)) + 0.5
    assert squared_mmd(x, y) == pytest.approx(explicit_squared_mmd(x, y), rel=1e-12)
    assert squared_mmd(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(
        explicit_squared_mmd(x, y), rel=1e-5
    )


def test_kernel_distance_is_the_mean_and_deviation_over_subsets():
    x, y = (np.random.default_rng(seed).standard_normal((9, 3)) for seed in (0, 1))
    found = kernel_distance(x, y, subsets=6, subset_size=4, seed=5)
    rng = np.random.default_rng(5)
    values = [
        explicit_squared_mmd(*(features[rng.choice(9, 4, replace=False)] for features in (x, y))) for _ in range(6)
    ]
    assert found == pytest.approx((np.mean(values), np.std(values)), rel=1e-9)
    assert kernel_distance(x, y, subsets=6, subset_size=4, seed=5) == found
    assert kernel_distance(x, y, subsets=6, subset_size=4, seed=6) != found


def test_squared_mmd_is_unbiased_for_a_handful_of_samples():
    """The exact expectations have a few terms: x is uniform on {0, 1}, y on {0, 2}."""
    kernel = lambda a, b: (a * b + 1) ** 3
    expect = lambda a, b: np.mean([kernel(i, j) for i in a for j in b])
    exact = expect((0, 1), (0, 1)) + expect((0, 2), (0, 2)) - 2 * expect((0, 1), (0, 2))
    rng = np.random.default_rng(0)
    draws = [squared_mmd(rng.choice([0.0, 1.0], (3, 1)), rng.choice([0.0, 2.0], (2, 1))) for _ in range(20_000)]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - exact) < 4 * error < 0.1 * exact * 4


def test_kernel_distance_of_equal_distributions_is_zero_within_its_error_and_grows_with_a_shift():
    rng = np.random.default_rng(0)
    x, same, shifted = (rng.standard_normal((600, 16)) + shift for shift in (0, 0, 0.3))
    equal, apart = (kernel_distance(x, y, subsets=50, subset_size=200) for y in (same, shifted))
    assert abs(equal.mean) < equal.std
    assert apart.mean > 10 * abs(equal.mean) and apart.mean > apart.std


@pytest.mark.parametrize(
    ("x", "y", "options", "words"),
    [
        ((4, 3), (4, 2), {}, r"features are \[4, 3\] and \[4, 2\]"),
        ((4,), (4, 2), {}, r"features are \[4\]"),
        ((1, 3), (4, 3), {}, "of 1 and 4 images, must be at least 2"),
        ((9, 3), (4, 3), {"subset_size": 5}, "subset_size is 5, must be from 2 to 4"),
        ((9, 3), (4, 3), {"subset_size": 1}, "subset_size is 1"),
        ((9, 3), (4, 3), {"subset_size": 2, "subsets": 0}, "subsets is 0"),
    ],
)
def test_features_of_wrong_shapes_are_refused(x, y, options, words):
    with pytest.raises(ValueError, match=words):
        kernel_distance(np.zeros(x), np.zeros(y), **options)


def explicit_precision_recall(fake, real, k):
    """Precision and recall from their definition: fractions of points within a ball of the other set."""
    apart = lambda a, b: float(np.sqrt(np.square(a - b).sum()))
    radius = lambda points, i: sorted(apart(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]
    within = lambda point, points: any(apart(point, other) <= radius(points, i) for i, other in enumerate(points))
    return np.mean([within(point, real) for point in fake]), np.mean([within(point, fake) for point in real])


def test_precision_and_recall_equal_the_explicit_definition():
    rng = np.random.default_rng(0)
    fake, real = rng.standard_normal((30, 2)), rng.standard_normal((40, 2)) + 1
    for k in (1, 3):
        expected = explicit_precision_recall(fake, real, k)
        assert 0 < expected[0] < 1 and 0 < expected[1] < 1 and expected[0] != expected[1]
        assert precision_recall(fake, real, neighbours=k) == pytest.approx(expected)
        assert precision_recall(fake.astype(np.float32), real.astype(np.float32), neighbours=k) == pytest.approx(
            expected
        )
    assert precision_recall(fake, real) == precision_recall(fake, real, neighbours=3)
    assert precision_recall(fake, real, real_radii=neighbour_radii(real)) == precision_recall(fake, real)


def test_precision_and_recall_in_blocks(monkeypatch):
    from fastgan.metrics import distances

    fake, real = (np.random.default_rng(seed).standard_normal((20, 2)) for seed in (0, 1))
    at_once = precision_recall(fake, real)
    monkeypatch.setattr(distances, "BLOCK", 3 * len(real))
    assert 0 < at_once.recall < 1 and precision_recall(fake, real) == at_once


def test_precision_falls_with_bad_samples_and_recall_with_missing_ones():
    real = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    assert precision_recall(real[::-1], real) == (1, 1)
    assert precision_recall(real + 100, real) == (0, 0)
    narrow = precision_recall(real[:20] * 0.1, real)  # realistic samples without variety
    assert narrow.precision == 1 and narrow.recall < 0.1
    wide = precision_recall(
        np.random.default_rng(1).standard_normal((200, 8)) * 10, real
    )  # covers everything, and more
    assert wide.precision < 0.1 and wide.recall > 0.9


def test_copies_of_one_sample_cover_nothing():
    """Their balls have radius 0 exactly."""
    real = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32) + 30
    assert not neighbour_radii(real[:1].repeat(10, 0)).any()
    assert precision_recall(real[:1].repeat(10, 0) + 1e-3, real).recall == 0


def test_too_few_features_for_neighbours_are_refused():
    with pytest.raises(ValueError, match="neighbours is 3, must be from 1 to 2"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


def of_faces(count, seed):
    """Features of images from one distribution."""
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


@pytest.mark.parametrize("heldout", [of_faces(4000, 1), None], ids=["held-out", "other training images"])
def test_a_generator_that_copies_is_told_from_one_that_does_not(heldout):
    train, fresh = of_faces(3000, 0), of_faces(4000, 2)
    found = memorisation(fresh, train, heldout)
    assert found.nearer == pytest.approx(0.05, abs=0.012)
    assert found.median == pytest.approx(found.median_of_others, rel=0.02)
    copies = train[:2000] + np.float32(0.001) * of_faces(2000, 3)
    found = memorisation(copies, train, heldout)
    assert found.nearer == 1 and found.median < 0.05 * found.median_of_others
    assert memorisation(np.vstack([copies, fresh[:2000]]), train, heldout).nearer == pytest.approx(0.525, abs=0.01)
    assert memorisation(fresh + 9, train, heldout).nearer == 0


def test_nearest_distances_are_those_of_all_pairs(monkeypatch):
    x, y = of_faces(50, 0), of_faces(40, 1)
    expected = np.linalg.norm(x[:, None] - y, axis=2).min(1)
    np.testing.assert_allclose(nearest(x, y), expected, rtol=1e-5)
    monkeypatch.setattr("fastgan.metrics.distances.BLOCK", 100)  # blocks of two rows
    np.testing.assert_allclose(nearest(x, y), expected, rtol=1e-5)


def test_features_of_other_lengths_are_not_compared_with_training_images():
    with pytest.raises(ValueError, match=r"features are \[9, 3\] and \[9, 2\]"):
        memorisation(np.zeros((9, 2)), np.zeros((9, 2)), np.zeros((9, 3)))


@needs_fidelity
def test_values_equal_those_of_torch_fidelity():
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = (np.random.default_rng(seed).standard_normal((60, 12)) + seed / 2 for seed in (0, 1))
    theirs = [torch.from_numpy(features) for features in (x, y)]
    statistics = map(fid_features_to_statistics, theirs)
    assert frechet_distance(x, y) == pytest.approx(*fid_statistics_to_metric(*statistics, False).values())
    found = kid_features_to_metric(*theirs, kid_subsets=1, kid_subset_size=60, verbose=False)
    assert squared_mmd(x, y) == pytest.approx(found["kernel_inception_distance_mean"])
    found = prc_features_to_metric(*theirs, verbose=False)
    assert precision_recall(x, y) == pytest.approx((found["precision"], found["recall"]))
    assert 0 < found["precision"] < 1


def test_importing_metrics_loads_no_torch():
    code = "import sys, fastgan.metrics; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
