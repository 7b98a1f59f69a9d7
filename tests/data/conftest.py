"""Fixtures of the data tests. Fixtures import what a machine with torch and pytest alone lacks."""

import pytest


@pytest.fixture
def store(tmp_path):
    """An empty cache folder."""
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of images, see `make_folder`."""
    from tests.support.image_sources import make_folder

    return make_folder(tmp_path_factory.mktemp("source") / "images")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A folder `in` with 40 images of 16x8, and a folder `out` with them in twelve shards."""
    from fastgan.cli import dataset
    from tests.support.image_sources import encode, make_image, prepare_images

    root = tmp_path_factory.mktemp("sharded")
    for number in range(40):
        path = root / "in" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(make_image(number, 16, 8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "MEGABYTE", 9_500)
        assert prepare_images(root / "in", "--resolution", "16x8", "--out", root / "out", "--shards", "1") == 0
    return root
