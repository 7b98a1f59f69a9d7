"""The embedded glyphs, folders and zips of images, their cache, and the order of batches."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastgan.data import ShuffledStream, cache, folder, glyphs, open_dataset
from fastgan.data.shuffle import CoinFlips
from fastgan.errors import UserError

TINY = {"count": 40, "progress": False}


@pytest.fixture
def store(tmp_path):
    return tmp_path / "cache"


def entries(store: Path) -> list[str]:
    """What lies in the cache, without the lock files."""
    return sorted(p.name for p in store.glob("*") if p.suffix != ".lock") if store.exists() else []


def glyph_set(store, resolution=16, channels=1, **options):
    return glyphs.render(resolution, channels, cache_dir=store, **(TINY | options))


# ---------------------------------------------------------------------------------------------------------- glyphs


@pytest.mark.parametrize(("classes", "first", "last"), [(10, "0", "9"), (26, "A", "Z"), (62, "0", "z")])
def test_glyphs_have_balanced_labels_of_the_alphabet(store, classes, first, last):
    data = glyph_set(store, classes=classes, count=2 * classes)
    assert data.num_classes == classes and (data.class_names[0], data.class_names[-1]) == (first, last)
    assert data.labels.dtype == np.int64 and (np.bincount(data.labels, minlength=classes) == 2).all()


@pytest.mark.parametrize("resolution", [8, 20, 32, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_glyphs_come_at_any_resolution_in_grey_and_colour(store, resolution, channels):
    data = glyph_set(store, resolution, channels, count=12)
    assert isinstance(data.images, np.memmap) and data.images.dtype == np.uint8
    assert data.images.shape == (12, resolution, resolution, channels)
    assert (data.resolution, data.channels, len(data)) == (resolution, channels, 12)
    assert (np.ptp(data.images.reshape(12, -1), axis=1) > 60).all(), "an image is nearly constant"
    assert "12 images" in data.describe() and f"{resolution}x{resolution}" in data.describe()
    assert "\n" not in data.describe()


@pytest.mark.parametrize("classes", [10, 26])
def test_grey_glyphs_are_white_on_black_anti_aliased_and_not_cut_off(store, classes):
    images = glyph_set(store, 32, classes=classes, count=300).images[..., 0]
    assert (images.reshape(300, -1).max(1) > 200).all()
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    assert border.max() < 32
    assert 0.05 < (images > 128).mean() < 0.4
    assert ((images > 20) & (images < 235)).mean() > 0.05


def test_colours_of_ink_and_ground_contrast():
    pairs = glyphs._contrasting_colours(500, np.random.default_rng(0))
    luma = pairs @ (0.299, 0.587, 0.114)
    assert pairs.min() >= 0 and pairs.max() <= 255 and (np.abs(luma[:, 0] - luma[:, 1]) >= 90).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    one, two = glyph_set(tmp_path / "a", 16, 3), glyph_set(tmp_path / "b", 16, 3)
    other = glyph_set(tmp_path / "a", 16, 3, seed=1)
    assert np.array_equal(one.images, two.images)
    assert not np.array_equal(one.images, other.images)


def test_held_out_families_are_not_in_training_and_can_write_everything(store):
    train, held_out = glyphs.fonts("train"), glyphs.fonts("heldout")
    assert {f.family for f in held_out} == set(glyphs.HELD_OUT_FAMILIES)
    assert not {f.family for f in train} & {f.family for f in held_out}
    assert len(train) >= 10 and len({f.family for f in train}) >= 5
    assert not np.array_equal(glyph_set(store).images, glyph_set(store, split="heldout").images)


def test_fonts_without_letters_or_with_other_signs_in_their_places_are_skipped():
    families = {f.family for f in glyphs.fonts("train") + glyphs.fonts("heldout")}
    for wrong in ["cmsy10", "cmex10", "cmmi10", "Last Resort High-Efficiency", "STIXSizeOneSym", "DejaVu Sans Display"]:
        assert wrong not in families


def test_every_character_of_every_face_and_weight_has_a_shape_of_its_own():
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
    assert "\n" not in str(caught.value) and entries(store) == []


# ----------------------------------------------------------------------------------------------------------- cache


def test_the_second_time_comes_from_the_cache(store, monkeypatch):
    first = glyph_set(store)
    monkeypatch.setattr(glyphs, "_draw", lambda *_: pytest.fail("drawn again"))
    assert np.array_equal(glyph_set(store).images, first.images)


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "here"))
    glyph_set(None)
    assert len(entries(tmp_path / "here")) == 1


def test_the_digests_are_those_of_the_pixels_and_of_the_labels(store):
    found = glyph_set(store)
    assert found.digests["images"] == hashlib.sha256(found.images.tobytes()).hexdigest()
    assert found.digests["labels"] == hashlib.sha256(found.labels.tobytes()).hexdigest()
    assert glyph_set(store).digests == found.digests  # from the cache


@pytest.mark.parametrize("damage", ["cut", "no meta", "no labels", "no digests"])
def test_a_damaged_entry_is_built_again(store, damage):
    before = np.array(glyph_set(store).images)
    (entry,) = [p for p in store.iterdir() if p.is_dir()]
    if damage == "cut":
        os.truncate(entry / "images.npy", 1000)
    elif damage == "no digests":  # as earlier versions left it
        meta = json.loads((entry / "meta.json").read_text())
        del meta["digests"]
        (entry / "meta.json").write_text(json.dumps(meta))
    else:
        (entry / {"no meta": "meta.json", "no labels": "labels.npy"}[damage]).unlink()
    after = glyph_set(store)
    assert np.array_equal(after.images, before) and after.labels is not None


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_or_full_disk_leaves_nothing(store, monkeypatch, stop):
    def draw(*_):
        yield np.zeros((10, 16, 16, 1), np.uint8)
        raise stop

    monkeypatch.setattr(glyphs, "_draw", draw)
    if isinstance(stop, OSError):
        with pytest.raises(UserError, match=r"No space left.*FASTGAN_CACHE"):
            glyph_set(store)
    else:
        with pytest.raises(KeyboardInterrupt):
            glyph_set(store)
    assert entries(store) == []


def test_what_a_killed_process_left_is_cleared_away(store):
    glyph_set(store)
    (name,) = entries(store)
    os.rename(store / name, store / f"{name}.999999.tmp")
    glyph_set(store)
    assert entries(store) == [name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the data cache .*file.*FASTGAN_CACHE"):
        glyph_set(tmp_path / "file" / "below")


def _slow_recipe(log: Path):
    def blocks():
        with open(log, "a") as file:
            file.write("built\n")
        time.sleep(0.3)
        yield np.zeros((1, 2, 2, 1), np.uint8)

    return cache.Recipe((1, 2, 2, 1), None, [], "test", blocks(), "test")


def _ask(store: Path, log: Path):
    cache.load_or_build({"kind": "test"}, lambda: _slow_recipe(log), store, False)


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks used there")
def test_two_processes_that_ask_at_once_build_once(store, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_ask, args=(store, tmp_path / "log")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0] and (tmp_path / "log").read_text() == "built\n"


def test_importing_the_package_loads_neither_pillow_nor_matplotlib():
    code = "import sys, fastgan.data; print([m for m in ('PIL', 'matplotlib') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


# --------------------------------------------------------------------------------------------- folders and zips


def picture(value=0, size=8, mode="RGB", width=None) -> Image.Image:
    """A picture that `value` tells from others, coloured where the mode can."""
    rng = np.random.default_rng(value)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    return Image.fromarray(rng.integers(0, 255, (size, width or size, channels), np.uint8).squeeze(), mode)


def write(root: Path, files: dict) -> Path:
    """A folder of pictures (saved by suffix), bytes, or values written as JSON."""
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


def zipped(root: Path) -> Path:
    return Path(shutil.make_archive(str(root), "zip", root))


def read(path, store, resolution=8, channels=3, **options):
    return open_dataset(str(path), resolution, channels, cache_dir=store, progress=False, **options)


@pytest.mark.parametrize("pack", [lambda root: root, zipped], ids=["folder", "zip"])
class TestFolderAndZip:
    def test_sub_folders_are_classes(self, tmp_path, store, pack):
        files = {
            "cat/1.png": picture(1),
            "dog/2.png": picture(2),
            "cat/deep/3.BMP": picture(3),
            "notes.txt": b"no image",
        }
        data = read(pack(write(tmp_path / "in", files)), store)
        assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [0, 0, 1]
        for image, value in zip(data.images, [1, 3, 2], strict=True):  # in the order of the names
            assert np.array_equal(image, np.asarray(picture(value)))

    def test_folders_that_all_share_are_no_classes(self, tmp_path, store, pack):
        shared = {"all/of/it/a/1.png": picture(1), "all/of/it/b/1.png": picture(2)}
        assert read(pack(write(tmp_path / "two", shared)), store).class_names == ["a", "b"]
        single = {"images/1.png": picture(1), "images/2.png": picture(2)}
        assert read(pack(write(tmp_path / "one", single)), store).labels is None

    def test_without_folders_there_are_no_labels(self, tmp_path, store, pack):
        data = read(pack(write(tmp_path / "in", {"1.png": picture(1)})), store)
        assert data.labels is None and data.num_classes == 0 and "unlabelled" in data.describe()

    def test_dataset_json_gives_the_labels_before_sub_folders(self, tmp_path, store, pack):
        files = {f"0000{i}/img{i}.png": picture(i) for i in range(3)}
        labels = [[name, label] for name, label in zip(files, [2, 0, 2], strict=True)]
        data = read(pack(write(tmp_path / "in", files | {"dataset.json": {"labels": labels}})), store)
        assert data.labels.tolist() == [2, 0, 2] and data.class_names == ["0", "1", "2"]

    @pytest.mark.parametrize("labels", [None, [["a/1.png", None], ["b/2.png", None]]])
    def test_null_labels_mean_unlabelled(self, tmp_path, store, pack, labels):
        files = {"a/1.png": picture(1), "b/2.png": picture(2), "dataset.json": {"labels": labels}}
        assert read(pack(write(tmp_path / "in", files)), store).labels is None

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
    def test_a_wrong_dataset_json_is_named(self, tmp_path, store, pack, content, words):
        files = {"1.png": picture(1), "2.png": picture(2), "dataset.json": content}
        refused(pack(write(tmp_path / "in", files)), store, "dataset.json", words)

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (b"", "cannot be decoded"),
            (b"nothing like an image", r"cannot be decoded \(not an image\); replace or remove it"),
            (picture(2, size=4), "is 4x4, but a/1.png is 8x8; all images must have one size"),
            (picture(2, size=8, width=9), "is 9x8, but a/1.png is 8x8"),
            (picture(2, mode="RGBA"), "partly transparent; .* without alpha"),
            (Image.new("I;16", (8, 8)), "has mode I;16; save all images as 8-bit"),
        ],
    )
    def test_an_image_that_does_not_fit_is_named(self, tmp_path, store, pack, bad, words):
        files = {"a/1.png": picture(1), "b/bad.png": bad}
        refused(pack(write(tmp_path / "in", files)), store, "bad.png", words)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
    def test_a_truncated_image_is_named(self, tmp_path, store, pack, suffix):
        root = write(tmp_path / "in", {"1.png": picture(1, 32), f"bad.{suffix}": picture(2, 32)})
        os.truncate(root / f"bad.{suffix}", (root / f"bad.{suffix}").stat().st_size * 2 // 3)
        refused(pack(root), store, f"bad.{suffix}", "cannot be decoded", resolution=32)

    @pytest.mark.parametrize(
        ("size", "words"),
        [
            ((8, 16), "8x16, not square; crop all images to 8x8"),
            ((4, 4), "4x4, not 8 times 1, 2, 4"),
            ((12, 12), "12x12, not 8 times"),
            ((24, 24), "24x24, not 8 times 1, 2, 4, ...; resize all images to 8x8, .*or choose another --resolution"),
        ],
    )
    def test_a_size_that_is_no_multiple_is_refused_with_the_remedy(self, tmp_path, store, pack, size, words):
        root = write(tmp_path / "in", {"1.png": picture(1, size[1], width=size[0])})
        refused(pack(root), store, "1.png", words)

    def test_images_of_twice_and_four_times_the_size_are_averaged_down(self, tmp_path, store, pack):
        large = picture(1, size=32)
        data = read(pack(write(tmp_path / "in", {"1.png": large})), store)
        mean = np.asarray(large, np.float64).reshape(8, 4, 8, 4, 3).mean((1, 3))
        assert np.abs(data.images[0] - mean).max() <= 0.51

    def test_no_images_at_all(self, tmp_path, store, pack):
        refused(pack(write(tmp_path / "in", {"notes.txt": b"x"})), store, "in", r"no images in it; .*\.png")

    def test_images_beside_class_folders_are_refused(self, tmp_path, store, pack):
        files = {"a/1.png": picture(1), "b/2.png": picture(2), "stray.png": picture(3)}
        refused(pack(write(tmp_path / "in", files)), store, "stray.png", "beside sub-folders")


def refused(path, store, name, words, resolution=8, channels=3):
    """One line that names the file and the remedy, and a cache as empty as before."""
    with pytest.raises(UserError, match=words) as caught:
        read(path, store, resolution, channels)
    assert name in str(caught.value) and "\n" not in str(caught.value) and entries(store) == []


def test_colour_for_one_channel_is_refused_with_the_remedy(tmp_path, store):
    refused(write(tmp_path / "in", {"1.png": picture(1)}), store, "1.png", "in colour.*--channels 3", channels=1)


def test_grey_becomes_rgb_and_back_without_loss(tmp_path, store):
    grey = picture(1, mode="L")
    root = write(tmp_path / "in", {"1.png": grey, "2.png": grey.convert("RGB"), "3.png": grey.convert("LA")})
    as_grey, as_rgb = read(root, store, channels=1), read(root, store, channels=3)
    for i in range(3):
        assert np.array_equal(as_grey.images[i, ..., 0], np.asarray(grey))
        assert np.array_equal(as_rgb.images[i], np.asarray(grey.convert("RGB")))


def test_opaque_alpha_and_palettes_are_read_as_what_they_show(tmp_path, store):
    opaque = picture(1).convert("RGBA")
    palette = picture(2).quantize(16)
    data = read(write(tmp_path / "in", {"1.png": opaque, "2.png": palette}), store)
    assert np.array_equal(data.images[0], np.asarray(picture(1)))
    assert np.array_equal(data.images[1], np.asarray(palette.convert("RGB")))


def test_a_palette_with_a_transparent_colour_is_refused(tmp_path, store):
    palette = picture(2).quantize(16)
    root = write(tmp_path / "in", {})
    palette.save(root / "1.png", transparency=palette.getpixel((0, 0)))
    refused(root, store, "1.png", "partly transparent")


@pytest.mark.parametrize("channels", [0, 2, 5])
def test_other_channel_counts_are_refused(tmp_path, store, channels):
    refused(write(tmp_path / "in", {"1.png": picture(1)}), store, "--channels", "choose 1", channels=channels)


def test_a_missing_path_is_refused(tmp_path, store):
    refused(tmp_path / "gone", store, "gone", "no such folder or zip")


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_file_that_is_no_zip_or_half_a_zip_is_refused(tmp_path, store, content):
    if content is None:
        path = zipped(write(tmp_path / "in", {"1.png": picture(1)}))
        content = path.read_bytes()[:-30]
    (tmp_path / "data.zip").write_bytes(content)
    refused(tmp_path / "data.zip", store, "data.zip", "not a readable zip")


def test_a_zip_damaged_inside_names_the_image(tmp_path, store):
    path = tmp_path / "data.zip"
    root = write(tmp_path / "in", {"1.bmp": picture(1, 32)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(root / "1.bmp", "1.bmp")
    content = bytearray(path.read_bytes())
    content[600] ^= 255
    path.write_bytes(content)
    refused(path, store, "1.bmp", "CRC", resolution=32)


def test_hidden_files_and_what_macos_adds_are_passed_over(tmp_path, store):
    files = {"1.png": picture(1), "._1.png": b"x", "__MACOSX/._1.png": b"x", ".git/x.png": b"x"}
    root = write(tmp_path / "in", files)
    assert len(read(root, store)) == len(read(zipped(root), store)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_linked_folders_are_followed_and_loops_end(tmp_path, store):
    elsewhere = write(tmp_path / "elsewhere", {"1.png": picture(1)})
    root = write(tmp_path / "in", {"a/2.png": picture(2)})
    (root / "b").symlink_to(elsewhere)
    (root / "a" / "loop").symlink_to(root)
    data = read(root, store)
    assert data.class_names == ["a", "b"] and len(data) == 2


def test_a_changed_folder_is_decoded_again_and_an_unchanged_one_is_not(tmp_path, store, monkeypatch):
    root = write(tmp_path / "in", {"1.png": picture(1)})
    assert len(read(root, store)) == 1
    write(root, {"2.png": picture(2)})
    assert len(read(root, store)) == 2
    monkeypatch.setattr(folder, "_decode", lambda *_: pytest.fail("decoded again"))
    write(root, {"log.txt": b"a file that is no image changes nothing"})
    assert len(read(root, store)) == 2


def test_more_images_than_a_block_keep_their_order(tmp_path, store):
    n = folder.BLOCK + 3
    data = read(write(tmp_path / "in", {f"{i:03}.png": picture(i) for i in range(n)}), store)
    assert all(np.array_equal(data.images[i], np.asarray(picture(i))) for i in range(n))


def test_a_folder_has_no_held_out_part(tmp_path, store):
    root = write(tmp_path / "in", {"1.png": picture(1)})
    with pytest.raises(UserError, match="no held-out part"):
        read(root, store, split="heldout")


# ------------------------------------------------------------------------------------------------------- batches


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 50), batch=st.integers(1, 70), seed=st.integers(0, 2**40))
def test_every_epoch_visits_every_image_once(size, batch, seed):
    stream = ShuffledStream(size, seed)
    order = np.concatenate([stream.take(start, batch) for start in range(0, 3 * size, batch)])
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 50), count=st.integers(0, 70), starts=st.lists(st.integers(0, 10**6), min_size=1, max_size=8)
)
def test_what_is_taken_depends_on_the_position_only(size, count, starts):
    stream = ShuffledStream(size, seed=3)
    for start in starts:
        indices = stream.take(start, count)
        assert indices.dtype == np.int64 and indices.shape == (count,)
        assert np.array_equal(indices, ShuffledStream(size, seed=3).take(start, count))


def test_epochs_and_seeds_differ_in_order():
    stream = ShuffledStream(100, seed=0)
    orders = [stream.take(0, 100), stream.take(100, 100), ShuffledStream(100, seed=1).take(0, 100)]
    assert len({order.tobytes() for order in orders}) == 3


def test_a_caller_that_changes_a_batch_does_not_change_the_epoch():
    stream = ShuffledStream(10)
    stream.take(0, 10)[:] = 0
    assert sorted(stream.take(0, 10)) == list(range(10))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 70), position=st.integers(65500, 65600) | st.integers(0, 10**9), seed=st.integers(0, 2**64 - 1)
)
def test_coins_that_are_flipped_depend_on_seed_and_position_only(count, position, seed):
    flips = CoinFlips(seed).take(position, count)
    assert flips.dtype == bool and flips.shape == (count,)
    one_by_one = CoinFlips(seed)
    assert flips.tolist() == [one_by_one.take(position + i, 1)[0] for i in range(count)]


def test_coins_are_fair_and_independent_of_order_and_seed():
    n = 200_000
    flips, others = CoinFlips(0).take(0, n), CoinFlips(1).take(0, n)
    order = ShuffledStream(n, 0).take(0, n) < n // 2
    tolerance = 5 * 0.5 / n**0.5  # five standard deviations of a share
    for share in (flips.mean(), (flips ^ others).mean(), (flips ^ order).mean(), (flips[1:] ^ flips[:-1]).mean()):
        assert abs(share - 0.5) < tolerance
    assert abs((flips[:65536] ^ flips[65536:131072]).mean() - 0.5) < 2 * tolerance  # of blocks


def test_an_empty_set_and_a_negative_position_are_refused():
    with pytest.raises(ValueError, match="1 or more"):
        ShuffledStream(0)
    with pytest.raises(ValueError, match="0 or more"):
        ShuffledStream(5).take(-1, 1)
