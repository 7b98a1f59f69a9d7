"""Glyphs: labelled characters drawn from fonts."""

import numpy as np
import pytest

from fastgan.data import glyphs, open_dataset
from fastgan.errors import UserError
from tests.support.image_sources import cache_entries, make_glyphs


@pytest.mark.parametrize(("classes", "first", "last"), [(10, "0", "9"), (26, "A", "Z"), (62, "0", "z")])
def test_glyphs_have_balanced_labels_of_the_alphabet(store, classes, first, last):
    data = make_glyphs(store, classes=classes, count=2 * classes)
    assert data.num_classes == classes and (data.class_names[0], data.class_names[-1]) == (first, last)
    assert data.labels.dtype == np.int64 and (np.bincount(data.labels, minlength=classes) == 2).all()


@pytest.mark.parametrize("resolution", [8, 20, 32, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_glyphs_of_any_resolution_in_grey_and_colour(store, resolution, channels):
    data = make_glyphs(store, resolution, channels, count=12)
    assert isinstance(data.images.array, np.memmap) and data.images[:].dtype == np.uint8
    assert data.images.shape == (12, resolution, resolution, channels)
    assert (data.resolution, data.channels, len(data)) == (resolution, channels, 12)
    assert (np.ptp(data.images[:].reshape(12, -1), axis=1) > 60).all(), "an image is nearly constant"
    assert "12 images" in data.describe() and f"{resolution}x{resolution}" in data.describe()
    assert "\n" not in data.describe()


@pytest.mark.parametrize("classes", [10, 26])
def test_grey_glyphs_are_white_on_black_anti_aliased_and_not_cut_off(store, classes):
    images = make_glyphs(store, 32, classes=classes, count=300).images[..., 0]
    assert (images.reshape(300, -1).max(1) > 200).all()
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    assert border.max() < 32
    assert 0.05 < (images > 128).mean() < 0.4
    assert ((images > 20) & (images < 235)).mean() > 0.05


def test_foreground_and_background_contrast():
    pairs = glyphs._contrasting_colours(500, np.random.default_rng(0))
    luma = pairs @ (0.299, 0.587, 0.114)
    assert pairs.min() >= 0 and pairs.max() <= 255 and (np.abs(luma[:, 0] - luma[:, 1]) >= 90).all()


def test_bytes_depend_on_the_seed_only(tmp_path):
    one, two = make_glyphs(tmp_path / "a", 16, 3), make_glyphs(tmp_path / "b", 16, 3)
    other = make_glyphs(tmp_path / "a", 16, 3, seed=1)
    assert np.array_equal(one.images, two.images)
    assert not np.array_equal(one.images, other.images)


def test_held_out_families_are_not_in_training(store):
    train, held_out = glyphs.fonts("train"), glyphs.fonts("heldout")
    assert {f.family for f in held_out} == set(glyphs.HELD_OUT_FAMILIES)
    assert not {f.family for f in train} & {f.family for f in held_out}
    assert len(train) >= 10 and len({f.family for f in train}) >= 5
    assert not np.array_equal(make_glyphs(store).images, make_glyphs(store, split="heldout").images)


def test_fonts_without_the_62_characters_are_skipped():
    families = {f.family for f in glyphs.fonts("train") + glyphs.fonts("heldout")}
    for wrong in ["cmsy10", "cmex10", "cmmi10", "Last Resort High-Efficiency", "STIXSizeOneSym", "DejaVu Sans Display"]:
        assert wrong not in families


def test_all_characters_of_a_face_and_weight_differ():
    faces = glyphs.fonts("train") + glyphs.fonts("heldout")
    masters = glyphs._Masters(faces, glyphs.ALPHABETS[10], 48)
    for face in range(len(faces)):
        for weight in range(len(glyphs.WEIGHTS)):
            pictures = [masters.get(face, character, weight)[0].tobytes() for character in range(10)]
            assert len(set(pictures)) == 10 and all(any(picture) for picture in pictures)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": 4}, "--resolution 4"),
        ({"resolution": 0}, "--resolution"),
        ({"channels": 2}, "--channels 2"),
        ({"classes": 11}, "--classes 11"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_glyphs_are_refused_in_one_line(store, options, words):
    with pytest.raises(UserError, match=words) as caught:
        open_dataset("glyphs", **({"resolution": 16, "cache_dir": store} | options))
    assert "\n" not in str(caught.value) and cache_entries(store) == []
