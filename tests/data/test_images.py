"""One image: decoding, cropping, resizing, and untrusted bytes."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastgan.data import images
from fastgan.data.images import Target, UnusableImage, convert, fit
from tests.support.damage import mutate
from tests.support.image_sources import encode, make_image

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


def test_center_crop_keeps_the_largest_part_of_the_target_shape():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    assert (fit(Image.fromarray(pixels), Target((5, 5), 3)) == 200).all()
    assert (fit(Image.fromarray(pixels.transpose(1, 0, 2)), Target((4, 4), 3)) == 200).all()


def test_an_image_of_the_target_size_is_unchanged():
    image = make_image(1)
    for crop in ("center", "pad", "none"):
        assert np.array_equal(fit(image, Target(image.size, 3, crop)), np.asarray(image))


def test_shrinking_is_antialiased():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    small = fit(Image.fromarray(checks.astype(np.uint8)), Target((8, 8), 1))
    assert np.abs(small[1:-1, 1:-1].astype(int) - 127).max() <= 3  # 0 or 255 without antialiasing


def test_padding_keeps_the_whole_image_on_a_background():
    dark = Image.new("RGB", (8, 4))
    assert fit(dark, Target((4, 4), 3, "pad"))[:, 0, 0].tolist() == [255, 0, 0, 255]
    assert fit(dark, Target((4, 4), 4, "pad"))[:, 0].tolist() == [[0] * 4, [0, 0, 0, 255], [0, 0, 0, 255], [0] * 4]
    assert not fit(dark, Target((4, 4), 3, "pad", "black")).any()


@pytest.mark.parametrize(
    ("image", "wanted", "why"),
    [
        (make_image(), Target((8, 8), 3, "none"), "is 24x16, not of the shape 8x8"),
        (make_image(), Target((24, 24), 3), "is 24x16, smaller than 24x24"),
        (Image.new("F", (8, 8)), Target((8, 8), 3), "mode F"),
    ],
)
def test_an_image_that_the_target_does_not_accept_says_why(image, wanted, why):
    with pytest.raises(UnusableImage, match=why):
        fit(image, wanted)


def test_smaller_images_are_enlarged_on_request():
    assert fit(make_image(), Target((48, 48), 3, enlarge=True)).shape == (48, 48, 3)
    for crop in ("center", "pad"):
        assert fit(make_image(1, 1, 1), Target((64, 32), 3, crop, enlarge=True)).shape == (32, 64, 3)


def test_colours_behind_transparency_do_not_bleed():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = [0, 200, 0, 255]
    pixels[:, 4:] = [255, 0, 0, 0]  # invisible red
    image = Image.fromarray(pixels)
    small = fit(image, Target((2, 2), 4))
    assert small[..., 0].max() <= 1 and small[0, 0, 3] > 230 and small[0, 1, 3] < 25
    assert fit(image, Target((8, 8), 3))[0].tolist() == [[0, 200, 0]] * 4 + [[255] * 3] * 4
    assert fit(image, Target((8, 8), 3, ground="black"))[0, 7].tolist() == [0, 0, 0]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_converts_to_every_number_of_channels(mode, channels):
    image = Image.new("I;16", (8, 8), 40000) if mode == "I;16" else make_image(1, 8, 8).convert(mode)
    pixels = fit(image, Target((8, 8), channels))
    assert pixels.shape == (8, 8, channels) and pixels.dtype == np.uint8
    assert channels < 4 or (pixels[..., 3] == 255).all()
    assert mode != "I;16" or (pixels[..., 0] == 40000 // 257).all()


def test_exif_orientation_is_applied():
    image = make_image(1, 24, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert np.array_equal(fit(images.decode(buffer.getvalue()), Target((16, 24), 3)), np.rot90(np.asarray(image), 3))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_decompression_bombs_are_refused_before_decoding():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    assert "pixels" in convert(bomb, Target((8, 8), 3), True)


def test_formats_for_which_pillow_starts_programs_are_refused(monkeypatch):
    assert "not an image" in convert(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", Target((8, 8), 3), True)


def deep_png(colour_type: int, channels: int) -> bytes:
    """A PNG of 8x8 pixels with 16 bits a channel, all 0x1234."""
    rows = 8 * (b"\0" + 8 * channels * b"\x12\x34")
    header = struct.pack(">IIBBBBB", 8, 8, 16, colour_type, 0, 0, 0)
    return images.PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data", [deep_png(0, 1), deep_png(2, 3), deep_png(4, 2), deep_png(6, 4), b"P6 8 8 65535\n" + 192 * b"\x12\x34"]
)
def test_bits_that_are_left_out_are_said(data):
    found = convert(data, Target((8, 8), 3, ground="black"), False)
    assert found.losses == ["has 16 bits a channel; the upper 8 are kept"] and max(found.content) <= 0x12


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "PNG"])
def test_further_pictures_in_a_file_are_said(kind):
    buffer = io.BytesIO()
    make_image(1).save(buffer, kind, save_all=True, append_images=[make_image(2), make_image(3)])
    assert images.losses(buffer.getvalue()) == ["has several pictures in one file; the first one is taken"]


def test_no_loss_is_said_of_a_usual_image():
    assert [images.losses(KINDS[kind]) for kind in KINDS] == [[]] * len(KINDS)


def test_every_changed_bit_of_a_png_is_noticed():
    """Pillow alone returns other pixels: it does not compare the checksums of pixel data."""
    whole = KINDS["PNG"]
    expected = convert(whole, Target((24, 16), 3), False).content
    start = whole.index(b"IDAT")
    for place in range(start, len(whole) - 12, 3):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        found = convert(bytes(changed), Target((24, 16), 3), False)
        assert isinstance(found, str) or found.content == expected


KINDS = {kind: encode(make_image(1), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow; `prepare.run` ignores them too
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(KINDS)), rng=st.randoms())
def test_damaged_files_give_pixels_or_a_reason(kind, rng):
    found = convert(mutate(KINDS[kind], rng), Target((8, 8), 3), False)
    assert isinstance(found, str) or len(found[0]) == 8 * 8 * 3


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=200), start=st.sampled_from([b"", *(kind[:12] for kind in KINDS.values())]))
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow; `prepare.run` ignores them too
def test_random_bytes_give_a_reason(content, start):
    assert isinstance(convert(start + content, Target((8, 8), 3), False), str | tuple)
