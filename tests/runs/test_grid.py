"""Pictures of many images."""

import numpy as np
from PIL import Image

from fastgan.runs.grid import Section, draw_grid, save_picture


def test_labels_are_not_cut_off():
    """Ink, which is black, ends before the borders, however long the text and small the images."""
    images = np.full((2, 8, 8, 1), 200, np.uint8)
    long = "seed 18446744073709551615"
    for section in (
        Section(long + long + "\nsecond line " + long, [(long, images)], [long, long]),
        Section("short", [("a", images), (long, images)], ["b", long], sources=True),
    ):
        picture = np.asarray(draw_grid([section, section]).convert("L"))
        ink = picture < 128
        assert ink.any() and not ink[:, [0, -1]].any() and not ink[[0, -1]].any()
        assert (picture == 200).sum() == 4 * len(section.rows) * 48 * 48  # and no text over an image


def test_a_grid_holds_every_image_of_every_row():
    images = np.full((3, 16, 16, 1), 200, np.uint8)
    picture = np.asarray(draw_grid([Section("some", [("a", images), ("b", images[:2])])]))
    assert (picture == 200).all(2).sum() == 5 * 48 * 48


def test_transparent_images_get_a_chequered_background_in_jpeg(tmp_path):
    save_picture(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), tmp_path / "a.jpg")
    assert set(np.unique(np.asarray(Image.open(tmp_path / "a.jpg").convert("L")).round(-1))) <= {200, 250, 260, 4}
