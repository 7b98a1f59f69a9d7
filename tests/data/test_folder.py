"""User-supplied folders and zips."""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan.data import folder, open_dataset
from fastgan.errors import UserError
from tests.support.image_sources import cache_entries


def make_image(value=0, size=8, mode="RGB", width=None) -> Image.Image:
    """A random image, different for each `value`."""
    rng = np.random.default_rng(value)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    return Image.fromarray(rng.integers(0, 255, (size, width or size, channels), np.uint8).squeeze(), mode)


def write_files(root: Path, files: dict) -> Path:
    """Write a folder of images, bytes, or values as JSON."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content.save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(content))
    root.mkdir(exist_ok=True)
    return root


def zip_folder(root: Path) -> Path:
    return Path(shutil.make_archive(str(root), "zip", root))


def load(path, store, resolution=8, channels=3, **options):
    return open_dataset(str(path), resolution, channels, cache_dir=store, progress=False, **options)


@pytest.mark.parametrize("pack", [lambda root: root, zip_folder], ids=["folder", "zip"])
class TestFolderAndZip:
    def test_sub_folders_are_classes(self, tmp_path, store, pack):
        files = {
            "cat/1.png": make_image(1),
            "dog/2.png": make_image(2),
            "cat/deep/3.BMP": make_image(3),
            "notes.txt": b"no image",
        }
        data = load(pack(write_files(tmp_path / "in", files)), store)
        assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [0, 0, 1]
        for image, value in zip(data.images, [1, 3, 2], strict=True):  # in the order of the names
            assert np.array_equal(image, np.asarray(make_image(value)))

    def test_shared_folders_are_not_classes(self, tmp_path, store, pack):
        shared = {"all/of/it/a/1.png": make_image(1), "all/of/it/b/1.png": make_image(2)}
        assert load(pack(write_files(tmp_path / "two", shared)), store).class_names == ["a", "b"]
        single = {"images/1.png": make_image(1), "images/2.png": make_image(2)}
        assert load(pack(write_files(tmp_path / "one", single)), store).labels is None

    def test_without_folders_there_are_no_labels(self, tmp_path, store, pack):
        data = load(pack(write_files(tmp_path / "in", {"1.png": make_image(1)})), store)
        assert data.labels is None and data.num_classes == 0 and "unlabelled" in data.describe()

    def test_dataset_json_gives_the_labels_before_sub_folders(self, tmp_path, store, pack):
        files = {f"0000{i}/img{i}.png": make_image(i) for i in range(3)}
        labels = [[name, label] for name, label in zip(files, [2, 0, 2], strict=True)]
        data = load(pack(write_files(tmp_path / "in", files | {"dataset.json": {"labels": labels}})), store)
        assert data.labels.tolist() == [2, 0, 2] and data.class_names == ["0", "1", "2"]

    @pytest.mark.parametrize("labels", [None, [["a/1.png", None], ["b/2.png", None]]])
    def test_null_labels_mean_unlabelled(self, tmp_path, store, pack, labels):
        files = {"a/1.png": make_image(1), "b/2.png": make_image(2), "dataset.json": {"labels": labels}}
        assert load(pack(write_files(tmp_path / "in", files)), store).labels is None

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"{not json", "dataset.json is not JSON"),
            (b"[1, 2]", "dataset.json is not JSON"),
            (b"\xff\xfe\x00", "dataset.json is not JSON"),
            ({"labels": 7}, "every label must be"),
            ({"labels": [["1.png"]]}, "every label must be"),
            ({"labels": [["1.png", "cat"]]}, "label of 1.png must be an integer"),
            ({"labels": [["1.png", 0.5]]}, "label of 1.png must be an integer"),
            ({"labels": [["1.png", True]]}, "label of 1.png must be an integer"),
            ({"labels": [["1.png", -1]]}, "label of 1.png must be an integer"),
            ({"labels": [["gone.png", 1]]}, "names gone.png and others, none of which exists"),
            ({"labels": [["1.png", [0, 0.5]], ["2.png", "cat"]]}, "label of 2.png must be an integer"),
            ({"labels": [["1.png", 0], ["2.png", 2]], "class_names": ["a", "b"]}, '"class_names" must be a list'),
            ({"labels": [["1.png", 0]]}, "no label for 2.png"),
            ({"labels": [["1.png", 0], ["2.png", None]]}, "no label for 2.png"),
            ({"labels": [["1.png", 0], ["2.png", 10**9]]}, "a label is 1000000000"),
        ],
    )
    def test_an_invalid_dataset_json_is_named(self, tmp_path, store, pack, content, words):
        files = {"1.png": make_image(1), "2.png": make_image(2), "dataset.json": content}
        assert_refused(pack(write_files(tmp_path / "in", files)), store, "dataset.json", words)

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (b"", "is not an image in PNG"),
            (b"nothing like an image", "is not an image in PNG, JPEG, WebP, BMP, TIFF or PPM; replace or remove it"),
            (make_image(2, size=4), "is 4x4, but a/1.png is 8x8; all images must have one size"),
            (make_image(2, size=8, width=9), "is 9x8, but a/1.png is 8x8"),
            (make_image(2, mode="RGBA"), "partly transparent; .* without alpha"),
            (Image.new("I;16", (8, 8)), "has 16 bits a channel; prepare such images with"),
        ],
    )
    def test_an_image_that_does_not_fit_is_named(self, tmp_path, store, pack, bad, words):
        files = {"a/1.png": make_image(1), "b/bad.png": bad}
        assert_refused(pack(write_files(tmp_path / "in", files)), store, "bad.png", words)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
    def test_a_truncated_image_is_named(self, tmp_path, store, pack, suffix):
        root = write_files(tmp_path / "in", {"1.png": make_image(1, 32), f"bad.{suffix}": make_image(2, 32)})
        os.truncate(root / f"bad.{suffix}", (root / f"bad.{suffix}").stat().st_size * 2 // 3)
        assert_refused(pack(root), store, f"bad.{suffix}", "cannot be decoded", resolution=32)

    @pytest.mark.parametrize(
        ("size", "words"),
        [
            ((8, 16), "8x16, not square; crop all images to 8x8"),
            ((4, 4), "4x4, not 8 times 1, 2, 4"),
            ((12, 12), "12x12, not 8 times"),
            ((24, 24), "24x24, not 8 times 1, 2, 4, ...; resize all images to 8x8, .*or choose another --resolution"),
        ],
    )
    def test_a_size_that_is_not_a_multiple_is_refused(self, tmp_path, store, pack, size, words):
        root = write_files(tmp_path / "in", {"1.png": make_image(1, size[1], width=size[0])})
        assert_refused(pack(root), store, "1.png", words)

    def test_images_of_twice_and_four_times_the_size_are_averaged_down(self, tmp_path, store, pack):
        large = make_image(1, size=32)
        data = load(pack(write_files(tmp_path / "in", {"1.png": large})), store)
        mean = np.asarray(large, np.float64).reshape(8, 4, 8, 4, 3).mean((1, 3))
        assert np.abs(data.images[0] - mean).max() <= 0.51

    def test_a_source_without_images_is_refused(self, tmp_path, store, pack):
        assert_refused(
            pack(write_files(tmp_path / "in", {"notes.txt": b"x"})), store, "in", r"no images in it; .*\.png"
        )

    def test_images_beside_class_folders_are_refused(self, tmp_path, store, pack):
        files = {"a/1.png": make_image(1), "b/2.png": make_image(2), "stray.png": make_image(3)}
        assert_refused(pack(write_files(tmp_path / "in", files)), store, "stray.png", "beside sub-folders")


def assert_refused(path, store, name, words, resolution=8, channels=3):
    """Opening the data is a one-line error with the file and the remedy, and the cache stays empty."""
    with pytest.raises(UserError, match=words) as caught:
        load(path, store, resolution, channels)
    assert name in str(caught.value) and "\n" not in str(caught.value) and cache_entries(store) == []


def test_colour_for_one_channel_is_refused_with_the_remedy(tmp_path, store):
    assert_refused(
        write_files(tmp_path / "in", {"1.png": make_image(1)}), store, "1.png", "in colour.*--channels 3", channels=1
    )


def test_grey_becomes_rgb_and_back_without_loss(tmp_path, store):
    grey = make_image(1, mode="L")
    root = write_files(tmp_path / "in", {"1.png": grey, "2.png": grey.convert("RGB"), "3.png": grey.convert("LA")})
    as_grey, as_rgb = load(root, store, channels=1), load(root, store, channels=3)
    for i in range(3):
        assert np.array_equal(as_grey.images[i, ..., 0], np.asarray(grey))
        assert np.array_equal(as_rgb.images[i], np.asarray(grey.convert("RGB")))


def test_opaque_alpha_and_palettes_are_converted(tmp_path, store):
    opaque = make_image(1).convert("RGBA")
    palette = make_image(2).quantize(16)
    data = load(write_files(tmp_path / "in", {"1.png": opaque, "2.png": palette}), store)
    assert np.array_equal(data.images[0], np.asarray(make_image(1)))
    assert np.array_equal(data.images[1], np.asarray(palette.convert("RGB")))


def test_a_palette_with_a_transparent_colour_is_refused(tmp_path, store):
    palette = make_image(2).quantize(16)
    root = write_files(tmp_path / "in", {})
    palette.save(root / "1.png", transparency=palette.getpixel((0, 0)))
    assert_refused(root, store, "1.png", "partly transparent")


@pytest.mark.parametrize("channels", [0, 2, 5])
def test_other_channel_counts_are_refused(tmp_path, store, channels):
    assert_refused(
        write_files(tmp_path / "in", {"1.png": make_image(1)}), store, "--channels", "choose 1", channels=channels
    )


def test_a_missing_path_is_refused(tmp_path, store):
    assert_refused(tmp_path / "gone", store, "gone", "no such folder or zip")


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_an_invalid_or_truncated_zip_is_refused(tmp_path, store, content):
    if content is None:
        path = zip_folder(write_files(tmp_path / "in", {"1.png": make_image(1)}))
        content = path.read_bytes()[:-30]
    (tmp_path / "data.zip").write_bytes(content)
    assert_refused(tmp_path / "data.zip", store, "data.zip", "not a readable zip")


def test_a_damaged_member_of_a_zip_is_named(tmp_path, store):
    path = tmp_path / "data.zip"
    root = write_files(tmp_path / "in", {"1.bmp": make_image(1, 32)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(root / "1.bmp", "1.bmp")
    content = bytearray(path.read_bytes())
    content[600] ^= 255
    path.write_bytes(content)
    assert_refused(path, store, "1.bmp", "CRC", resolution=32)


def test_hidden_files_and_those_of_macos_are_ignored(tmp_path, store):
    files = {"1.png": make_image(1), "._1.png": b"x", "__MACOSX/._1.png": b"x", ".git/x.png": b"x"}
    root = write_files(tmp_path / "in", files)
    assert len(load(root, store)) == len(load(zip_folder(root), store)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_linked_folders_are_followed_without_loops(tmp_path, store):
    elsewhere = write_files(tmp_path / "elsewhere", {"1.png": make_image(1)})
    root = write_files(tmp_path / "in", {"a/2.png": make_image(2)})
    (root / "b").symlink_to(elsewhere)
    (root / "a" / "loop").symlink_to(root)
    data = load(root, store)
    assert data.class_names == ["a", "b"] and len(data) == 2


def test_only_a_changed_folder_is_decoded_again(tmp_path, store, monkeypatch):
    root = write_files(tmp_path / "in", {"1.png": make_image(1)})
    assert len(load(root, store)) == 1
    write_files(root, {"2.png": make_image(2)})
    assert len(load(root, store)) == 2
    monkeypatch.setattr(folder, "_decode", lambda *_: pytest.fail("decoded again"))
    write_files(root, {"log.txt": b"a file that is no image changes nothing"})
    assert len(load(root, store)) == 2


def test_more_images_than_a_block_keep_their_order(tmp_path, store):
    n = folder.BLOCK + 3
    data = load(write_files(tmp_path / "in", {f"{i:03}.png": make_image(i) for i in range(n)}), store)
    assert all(np.array_equal(data.images[i], np.asarray(make_image(i))) for i in range(n))


def test_a_folder_has_no_held_out_part(tmp_path, store):
    root = write_files(tmp_path / "in", {"1.png": make_image(1)})
    with pytest.raises(UserError, match="no held-out part"):
        load(root, store, split="heldout")
