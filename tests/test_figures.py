"""Studies as labelled pictures: labels, and images equal to those of `fastgan.studies`."""

import numpy as np
import pytest
import torch

from fastgan import figures, studies
from tests.test_studies import Growing, build


@pytest.fixture(scope="module")
def generator():
    return build(num_classes=3)


def images(section):
    """Images of a section, uint8 [rows, columns, H, W, C]."""
    return np.stack([row for _, row in section.rows])


def test_classes(generator):
    section = figures.classes(generator, [3, 1], [("cat", 0), ("owl", 2)], truncation=0.7)
    assert (section.columns, [label for label, _ in section.rows]) == (["seed 3", "seed 1"], ["cat", "owl"])
    assert np.array_equal(images(section), studies.to_uint8(studies.classes(generator, [3, 1], [0, 2], truncation=0.7)))
    with pytest.raises(studies.Unsupported, match="this network of stylegan2 was trained without classes"):
        figures.classes(build(), [3], [("", None)])


def test_interpolation_and_its_frames(generator):
    section = figures.interpolation(generator, [3, 1, 4], steps=3, space="w", label=1)
    assert section.heading == "along the line between styles" and section.columns == ["0", "0.5", "1"]
    assert [label for label, _ in section.rows] == ["seed 3 to 1", "seed 1 to 4"]
    frames = list(figures.interpolation_frames(generator, [3, 1, 4], [1, 2], steps=3, space="w", batch=1))
    assert len(frames) == 5 and frames[0].shape == (16, 32, 1)
    assert np.array_equal([frame[:, :16] for frame in frames[:3]], images(section)[0])


def test_a_loop_has_a_row_back_to_the_first_seed(generator):
    options = {"steps": 4, "space": "spline", "loop": True, "label": 1}
    section = figures.interpolation(generator, [3, 1, 4], **options)
    assert section.heading == "along the curve through styles"
    assert [label for label, _ in section.rows] == ["seed 3 to 1", "seed 1 to 4", "seed 4 to 3"]
    assert np.array_equal(images(section), studies.to_uint8(studies.interpolate(generator, [3, 1, 4], **options)))


def test_a_frame_has_a_grid_of_interpolations_for_each_class(generator):
    """Two columns and three rows through two seeds each, of classes 2 and 0."""
    options = {"steps": 3, "space": "spline", "loop": True, "batch": 1}
    frames = np.stack(list(figures.interpolation_frames(generator, range(12), [2, 0], grid=(2, 3), **options)))
    assert frames.shape == (4, 3 * 16, 4 * 16, 1)
    cells = frames.reshape(4, 3, 16, 4, 16, 1).swapaxes(2, 3)
    for row in range(3):
        for column in range(4):
            start = 2 * (2 * row + column % 2)
            given = [start, start + 1], [(2, 0)[column // 2]]
            own = list(figures.interpolation_frames(generator, *given, **options))
            assert np.array_equal(cells[:, row, column], own), (row, column)
    with pytest.raises(ValueError, match="seeds is of length 12, must be a multiple of 5 x 1, the grid"):
        figures.interpolation_frames(generator, range(12), [0], grid=(5, 1), **options)


def test_mixing_has_its_sources_in_the_first_row_and_column(generator):
    section = figures.mixing(generator, [3, 1], [5], "coarse", label=0)
    assert section.sources and section.columns == ["source A", "seed 5"]
    assert section.heading == "layers 0-3 (coarse) of 0-5 from source B"
    assert figures.mixing(generator, [3], [5], [0, 1, 4], label=0).heading == "layers 0-1, 4 of 0-5 from source B"
    table = images(section)
    assert (table[0, 0] == 255).all()
    own = studies.to_uint8(studies.samples(generator, [3, 1], label=0)[0])
    assert np.array_equal(table[1:, 0], own)
    assert np.array_equal(table[1:, 1:], studies.to_uint8(studies.mix(generator, [3, 1], [5], "coarse", label=0)))


def test_noise_has_one_scale_for_all_deviations(generator):
    section = figures.noise(generator, [3, 1], draws=4, label=0)
    assert len(section.columns) == 5 and "over 4 draws" in section.heading
    deviation = studies.noise_deviation(generator, [3, 1], draws=4, label=0)[:, 0]
    expected = studies.to_uint8(2 * deviation / deviation.max() - 1)
    assert np.array_equal(images(section)[:, 4], expected) and expected.max() == 255


def test_truncation_and_growth(generator):
    section = figures.truncation(generator, [3], [-1, 0.25], label=0)
    assert section.columns == ["-1", "0.25"]
    assert np.array_equal(
        images(section), studies.to_uint8(studies.truncation_sweep(generator, [3], [-1, 0.25], label=0))
    )
    section = figures.growth(Growing(), [3, 1])
    assert section.columns == ["4x4", "8x8", "16x16"] and [label for label, _ in section.rows] == ["seed 3", "seed 1"]


def test_numpy_seeds(generator):
    z = torch.from_numpy(np.random.RandomState(3).randn(1, generator.z_dim)).float()
    section = figures.truncation(generator, [3], [1], label=0, seed_format="numpy")
    assert np.array_equal(images(section)[0], studies.to_uint8(studies.samples(generator, z, label=0)[0]))
