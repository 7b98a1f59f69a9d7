"""`python -m fastgan.dataset`: every source, every output, what is left out, stopping and going on; training on it."""

import functools
import http.server
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastgan import data, models
from fastgan.augment import Augment
from fastgan.cli import dataset
from fastgan.data import ImageLoader, images, open_dataset, prepare, shards
from fastgan.data.images import Target, UnusableImage, convert, fit, parse_size
from fastgan.data.readers import Item, ReaderOptions, open_reader
from fastgan.data.shards import CACHED_SHARDS, SHUFFLED_SHARDS, ShardedStream
from fastgan.errors import UserError
from fastgan.penalties import logits_and_squared_grad
from fastgan.runs import config as configuration
from fastgan.runs.grid import Section, draw_grid
from fastgan.training import configure
from tests.data.test_loader import HostTransfer
from tests.support.tiny_run import WIDTHS, assert_same_checkpoint, start, train, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]
OUTPUTS = {"array": ["--out", "out"], "zip": ["--out", "out.zip"], "shards": ["--out", "out", "--shards", "1"]}


def picture(value=0, width=24, height=16, mode="RGB") -> Image.Image:
    """A picture that `value` tells from others; smooth, so that it is small as a file."""
    rng = np.random.default_rng(value)
    small = rng.integers(0, 256, (4, 4, {"L": 1, "RGB": 3, "RGBA": 4}[mode]), np.uint8).squeeze()
    return Image.fromarray(small).resize((width, height))


def file_of(image: Image.Image, kind="PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def make_folder(root: Path, count=9) -> Path:
    """Pictures of two classes and, among them, three files that are none of use."""
    for number in range(count):
        path = root / ("cat" if number % 2 else "dog") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_of(picture(number)))
    (root / "cat" / "002-bad.png").write_bytes(b"nothing like an image")
    (root / "dog" / "005-cut.jpg").write_bytes(file_of(picture(1), "JPEG")[:-40])
    (root / "dog" / "small.png").write_bytes(file_of(picture(1, 4, 4)))
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("source") / "images")


def run(*argv: object) -> int:
    return dataset.main([str(each) for each in argv] + ["--workers", "1"])


def files(place: Path) -> dict[str, bytes]:
    """What a preparation left in a folder, by name."""
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def opened(path, resolution="16x8", channels=3):
    return open_dataset(str(path), resolution, channels, progress=False)


# ----------------------------------------------------------------------------------------------------- one picture


def test_the_largest_middle_part_of_the_wanted_shape_is_taken():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    assert (fit(Image.fromarray(pixels), Target((5, 5), 3)) == 200).all()
    assert (fit(Image.fromarray(pixels.transpose(1, 0, 2)), Target((4, 4), 3)) == 200).all()


def test_an_image_of_the_right_size_is_not_touched():
    image = picture(1)
    for crop in ("center", "pad", "none"):
        assert np.array_equal(fit(image, Target(image.size, 3, crop)), np.asarray(image))


def test_shrinking_is_antialiased():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    small = fit(Image.fromarray(checks.astype(np.uint8)), Target((8, 8), 1))
    assert np.abs(small[1:-1, 1:-1].astype(int) - 127).max() <= 3  # without, they are 0 or 255


def test_padding_shows_all_of_an_image_on_the_ground():
    dark = Image.new("RGB", (8, 4))
    assert fit(dark, Target((4, 4), 3, "pad"))[:, 0, 0].tolist() == [255, 0, 0, 255]
    assert fit(dark, Target((4, 4), 4, "pad"))[:, 0].tolist() == [[0] * 4, [0, 0, 0, 255], [0, 0, 0, 255], [0] * 4]
    assert not fit(dark, Target((4, 4), 3, "pad", "black")).any()


@pytest.mark.parametrize(
    ("image", "wanted", "why"),
    [
        (picture(), Target((8, 8), 3, "none"), "is 24x16, not of the shape 8x8"),
        (picture(), Target((24, 24), 3), "is 24x16, smaller than 24x24"),
        (Image.new("F", (8, 8)), Target((8, 8), 3), "mode F"),
    ],
)
def test_what_does_not_fit_says_why(image, wanted, why):
    with pytest.raises(UnusableImage, match=why):
        fit(image, wanted)


def test_smaller_images_are_enlarged_if_asked_for():
    assert fit(picture(), Target((48, 48), 3, enlarge=True)).shape == (48, 48, 3)
    for crop in ("center", "pad"):
        assert fit(picture(1, 1, 1), Target((64, 32), 3, crop, enlarge=True)).shape == (32, 64, 3)


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
def test_every_mode_becomes_every_kind_of_pixels(mode, channels):
    image = Image.new("I;16", (8, 8), 40000) if mode == "I;16" else picture(1, 8, 8).convert(mode)
    pixels = fit(image, Target((8, 8), channels))
    assert pixels.shape == (8, 8, channels) and pixels.dtype == np.uint8
    assert channels < 4 or (pixels[..., 3] == 255).all()
    assert mode != "I;16" or (pixels[..., 0] == 40000 // 257).all()


def test_what_exif_says_is_up_is_up():
    image = picture(1, 24, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert np.array_equal(fit(images.decode(buffer.getvalue()), Target((16, 24), 3)), np.rot90(np.asarray(image), 3))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_decompression_bombs_are_refused_by_their_headers():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    assert "pixels" in convert(bomb, Target((8, 8), 3), True)


def test_programs_that_pillow_would_start_are_not(monkeypatch):
    assert "not an image" in convert(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", Target((8, 8), 3), True)


KINDS = {kind: file_of(picture(1), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")}
mutations = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6)


def mutated(content: bytes, flips: list[tuple[float, int]], keep: float) -> bytes:
    changed = bytearray(content)
    for place, bits in flips:
        changed[int(place * len(changed))] ^= bits
    return bytes(changed[: int(keep * len(changed)) + 1])


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow; `prepare` ignores them, too
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(KINDS)), flips=mutations, keep=st.floats(0, 1))
def test_whatever_bytes_are_an_image_or_listed(kind, flips, keep):
    found = convert(mutated(KINDS[kind], flips, keep), Target((8, 8), 3), False)
    assert isinstance(found, str) or len(found[0]) == 8 * 8 * 3


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=200), start=st.sampled_from([b"", *(kind[:12] for kind in KINDS.values())]))
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow; `prepare` ignores them, too
def test_random_bytes_are_listed(content, start):
    assert isinstance(convert(start + content, Target((8, 8), 3), False), str | tuple)


# -------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_output_is_opened_by_training_with_the_same_images_and_classes(
    source, tmp_path, monkeypatch, capsys, kind
):
    monkeypatch.chdir(tmp_path)
    assert run(source, "--resolution", "16x8", *OUTPUTS[kind]) == dataset.SKIPPED_IMAGES
    text = capsys.readouterr().out
    assert "9 images, 16x8 RGB, 2 classes" in text and "skipped 3 images" in text
    path = text.partition("--data ")[2].split()[0]
    found = opened(path)
    assert found.class_names == ["cat", "dog"] and found.size == (16, 8) and found.resolution == "16x8"
    expected = {}
    for number in range(9):
        expected[fit(picture(number), Target((16, 8), 3)).tobytes()] = 0 if number % 2 else 1
    order = np.arange(9)
    assert {image.tobytes(): label for image, label in zip(found.images[order], found.labels, strict=True)} == expected
    assert set(files(tmp_path)) >= {f"{OUTPUTS[kind][1]}.skipped.txt"} and not list(tmp_path.glob("*.unfinished"))


def test_what_is_left_out_is_listed_with_the_reason(source, tmp_path):
    run(source, "--resolution", "16x8", "--out", tmp_path / "out.zip")
    lines = dict(line.split("\t") for line in (tmp_path / "out.zip.skipped.txt").read_text().splitlines())
    assert lines.keys() == {"cat/002-bad.png", "dog/005-cut.jpg", "dog/small.png"}
    assert lines["cat/002-bad.png"] == "cannot be decoded (not an image)"
    assert lines["dog/005-cut.jpg"].startswith("cannot be decoded (") and lines["dog/small.png"].startswith(
        "is 4x4, smaller"
    )


def test_a_zip_has_the_form_that_stylegan_reads(source, tmp_path):
    run(source, "--resolution", "8", "--out", tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        labels = json.loads(archive.read("dataset.json"))["labels"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert names[:2] == ["00000/img00000000.png", "00000/img00000001.png"]
    assert labels == [[name, 0 if number < 4 else 1] for number, name in enumerate(names[:-1])]


def test_a_set_that_is_complete_has_status_0_and_no_list(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(file_of(picture()))
    (tmp_path / "out.zip.skipped.txt").write_text("from before")
    assert run(tmp_path / "in", "--resolution", "8", "--out", tmp_path / "out.zip") == 0
    assert set(files(tmp_path)) == {"in/1.png", "out.zip"}


def test_classes_can_be_left_behind(source, tmp_path):
    run(source, "--resolution", "16x8", "--out", tmp_path / "out", "--no-labels")
    assert opened(tmp_path / "out").labels is None


def test_without_a_name_it_is_put_into_the_cache(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    run(source, "--resolution", "16x8", "--channels", "1")
    assert opened(tmp_path / "prepared" / "images-16x8-grey", channels=1).channels == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--resolution", "0"], "--resolution 0: must be a number of pixels, or WIDTHxHEIGHT"),
        (["--resolution", "8x"], "--resolution 8x: must be"),
        (["--resolution", "100000"], "--resolution 100000: must be at most 178,956,970 pixels in all"),
        (["--resolution", "8", "--workers", "-1"], "--workers -1"),
        (["--resolution", "8", "--workers", "1000000"], "--workers 1000000: must be 1 to 512"),
        (["--resolution", "8", "--shards", "-1"], "--shards -1"),
        (["--resolution", "8", "--shards", "1", "--out", "a.zip"], "--shards 1: a zip has none"),
        (["--resolution", "8", "--out", "taken"], "taken exists already"),
        (["--resolution", "999"], "none of its 12 images can be used"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(source, tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    assert dataset.main([str(source), "--out", "out", *argv, *([] if "--workers" in argv else ["--workers", "1"])]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line and not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("spec", ["gone", "gone.csv", "gone.tar", "gone.lmdb", "@gone", "torchvision:Gone"])
def test_a_source_that_is_not_there_is_named(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"gone|Gone"):
        open_reader(spec)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("@list.txt", "list.txt names the list @list.txt"),
        ("a{0..999999}{0..999999}.tar", "more than 1,000,000 files"),
        ("https://example.org/x.zip", "https://example.org/x.zip: only tar files are read from URLs"),
    ],
)
def test_a_source_without_end_or_at_a_url_is_refused(tmp_path, monkeypatch, spec, words):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("@list.txt\n")
    with pytest.raises(UserError, match=re.escape(words)):
        open_reader(spec)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["meta.json", "images.npy", "labels.npy"])
def test_a_prepared_folder_with_a_named_pipe_is_refused(source, tmp_path, name):
    run(source, "--resolution", "8", "--out", tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    os.mkfifo(tmp_path / "out" / name)
    with pytest.raises(UserError, match=r"out is damaged|no images in it"):
        opened(tmp_path / "out", 8)


# ------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_stopped_preparation_goes_on_to_the_same_bytes(tmp_path, source, monkeypatch, capsys, kind, stop):
    monkeypatch.setattr(prepare, "SYNC_IMAGES", 2)
    monkeypatch.setattr(dataset, "MEGABYTE", 2000)  # several shards
    argv = [source, "--resolution", "16x8", *OUTPUTS[kind]]
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "unbroken")
    run(*argv)

    monkeypatch.chdir(tmp_path / "broken")
    whole, calls = images.convert, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "convert", interrupted)
        assert run(*argv) == 130
    assert f"stopped with {stop} images done; run the same command again" in capsys.readouterr().err
    work = next(Path.cwd().glob("*.unfinished"))
    for path in (work / "journal.jsonl", *([work / "content"] if kind == "zip" else work.glob("content/0*.tar"))):
        with open(path, "ab") as file:  # what a kill left of a write
            file.write(b'["written", 12')
    assert run(*argv) == dataset.SKIPPED_IMAGES
    assert f"{stop} images done" in capsys.readouterr().out
    assert files(tmp_path / "broken") == files(tmp_path / "unbroken")


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_killed_preparation_by_several_processes_goes_on_to_the_bytes_of_one(tmp_path):
    root = make_folder(tmp_path / "images", 60)
    argv = [str(root), "--resolution", "16x8", "--out", str(tmp_path / "out.zip")]
    slow = "from fastgan.data import prepare as p; import time; p.SYNC_IMAGES = 1; f = p.Journal.add\n"
    slow += "p.Journal.add = lambda *a: (f(*a), time.sleep(0.05))\n"
    process = start([*argv, "--workers", "2"], slow, "dataset")
    out = tmp_path / "out.zip"
    wait_for(lambda: (prepare.images_done(out) or 0) >= 10, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists() and prepare.images_done(out) < 60
    assert dataset.main([*argv, "--workers", "2"]) == dataset.SKIPPED_IMAGES
    assert run(root, "--resolution", "16x8", "--out", tmp_path / "other.zip") == dataset.SKIPPED_IMAGES
    assert out.read_bytes() == (tmp_path / "other.zip").read_bytes()


@pytest.mark.parametrize("change", ["option", "source", "content", "journal"])
def test_what_is_not_the_same_any_more_is_not_gone_on_with(tmp_path, monkeypatch, capsys, change):
    root = make_folder(tmp_path / "images")
    argv = [root, "--resolution", "16x8", "--out", tmp_path / "out.zip"]
    with monkeypatch.context() as patch:
        patch.setattr(prepare.ZipWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*argv) == 130
    if change == "source":
        (root / "cat" / "new.png").write_bytes(file_of(picture(77)))
    if change == "content":
        os.truncate(tmp_path / "out.zip.unfinished" / "content", 10)
    if change == "journal":  # as a machine that lost its power may leave it
        journal = tmp_path / "out.zip.unfinished" / "journal.jsonl"
        first, second, rest = journal.read_bytes().split(b"\n", 2)
        journal.write_bytes(b"\n".join([first, bytes(len(second)), rest]))
    assert run(*argv, *(["--crop", "pad"] if change == "option" else [])) == 2
    words = {"option": "with other options (crop)", "source": "the source has changed"}
    assert words.get(change, "has been damaged; remove that folder") in capsys.readouterr().err


def test_a_full_disk_is_named_and_what_is_done_is_kept(tmp_path, source, monkeypatch, capsys):
    argv = [source, "--resolution", "16x8", "--out", tmp_path / "out"]
    whole = prepare.ArrayWriter.append

    def full(self, content, kept):
        if len(self._labels) == 5:
            raise OSError(28, "No space left on device")
        whole(self, content, kept)

    with monkeypatch.context() as patch:
        patch.setattr(prepare.ArrayWriter, "append", full)
        assert run(*argv) == 2
    assert "No space left on device; make room" in capsys.readouterr().err
    assert run(*argv) == dataset.SKIPPED_IMAGES and len(opened(tmp_path / "out")) == 9


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks used there")
def test_two_at_once_do_not_mix(tmp_path, source, capsys):
    (tmp_path / "out.unfinished").mkdir()
    with prepare.lock(tmp_path / "out.unfinished" / "lock"):
        assert run(source, "--resolution", "16x8", "--out", tmp_path / "out") == 2
    assert "another process is preparing" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- sources


def items(spec, **columns):
    source = open_reader(str(spec), ReaderOptions(**columns))
    return source, list(source.items(range(source.count) if source.count is not None else iter([0])))


@pytest.mark.parametrize(
    ("text", "columns", "labels", "names"),
    [
        ("file,label\n1.png,cat\nsub/2.png,ant\n", {}, [1, 0], ["ant", "cat"]),
        ("label,Path\n3,1.png\n0,sub/2.png\n", {}, [3, 0], None),
        ("x,y,label\n1.png,b,1\nsub/2.png,a,1\n", {"image_column": "x", "label_column": "y"}, [1, 0], ["a", "b"]),
        ("image\n1.png\nsub/2.png\n", {}, [None, None], None),
    ],
)
def test_a_table_names_files_and_classes(tmp_path, text, columns, labels, names):
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("1.png", "sub/2.png")):
        (tmp_path / name).write_bytes(file_of(picture(number)))
    (tmp_path / "table.csv").write_text(text)
    source, found = items(tmp_path / "table.csv", **columns)
    assert [item.label for item in found] == labels and source.class_names == names
    assert [item.data for item in found] == [file_of(picture(0)), file_of(picture(1))]


def test_gaps_in_a_table_are_left_out(tmp_path):
    (tmp_path / "1.png").write_bytes(file_of(picture()))
    (tmp_path / "table.csv").write_text("file,label\n1.png,cat\ngone.png,cat\n1.png,\n")
    run(tmp_path / "table.csv", "--resolution", "16x8", "--out", tmp_path / "out")
    assert (tmp_path / "out.skipped.txt").read_text().splitlines() == [
        "gone.png\tcannot be read (No such file or directory)",
        "1.png\thas no label",
    ]


def test_without_labels_no_image_is_left_out_for_want_of_one(tmp_path):
    (tmp_path / "1.png").write_bytes(file_of(picture()))
    (tmp_path / "table.csv").write_text("file,label\n1.png,cat\n1.png,\n")
    run(tmp_path / "table.csv", "--resolution", "16x8", "--out", tmp_path / "out", "--no-labels")
    found = opened(tmp_path / "out")
    assert len(found) == 2 and found.labels is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_regular_file_is_neither_waited_for_nor_read_for_ever(tmp_path):
    folder = make_folder(tmp_path / "images")
    os.mkfifo(folder / "cat" / "pipe.png")
    (tmp_path / "table.csv").write_text("file\nimages/cat/001.png\nimages/cat/pipe.png\n/dev/zero\nimages\n")
    for source in (folder, tmp_path / "table.csv"):
        out = tmp_path / f"{source.name}-out"
        run(source, "--resolution", "16x8", "--out", out)
        assert "pipe.png\tcannot be" in out.with_name(f"{out.name}.skipped.txt").read_text()
    assert (tmp_path / "table.csv-out.skipped.txt").read_text().count("(not a regular file)") == 3
    (folder / "cat" / "002-bad.png").unlink()
    with pytest.raises(UserError, match=r"pipe.png cannot be decoded \(not a regular file\)"):
        opened(folder, "24x16")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize(
    "name", ["a.csv", "a.tar", "a.lmdb", "@a.txt", "a.zip", "a.npz", "a.npy", "a-images-idx3-ubyte"]
)
def test_a_source_that_is_a_named_pipe_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(name.removeprefix("@"))
    with pytest.raises(UserError, match=r"a[.-]"):
        list(open_reader(name).items(range(1)))


def test_numbers_of_classes_with_a_huge_gap_are_refused(tmp_path, capsys):
    (tmp_path / "1.png").write_bytes(file_of(picture()))
    table, archive = tmp_path / "table.csv", tmp_path / "set.zip"
    table.write_text("file,label\n1.png,0\n1.png,999999\n")
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(2):
            file.writestr(f"{number}.png", file_of(picture(number, 8, 8)))
        file.writestr("dataset.json", json.dumps({"labels": [["0.png", 0], ["1.png", 999_999]]}))
    members = {f"{number}.{ending}": content for number in range(2) for ending, content in (
        ("png", file_of(picture())), ("cls", str(999_999 * number).encode())
    )}  # fmt: skip
    shard = tar(tmp_path / "set.tar", members)
    for source in (table, archive, shard):
        options = ["--resolution", "16x8", "--workers", "1", "--enlarge", "--out", str(tmp_path / "out")]
        assert dataset.main([str(source), *options]) == 2
        assert "a label is 999999, but there are" in capsys.readouterr().err
        shutil.rmtree(tmp_path / "out.unfinished", ignore_errors=True)
    with pytest.raises(UserError, match="a label is 999999"):
        opened(archive, 8)


def test_names_of_classes_that_are_no_utf_8_can_be_printed(tmp_path, capsys):
    for name in (b"caf\xe9", b"tea"):
        folder = tmp_path / "images" / os.fsdecode(name)
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(file_of(picture()))
    run(tmp_path / "images", "--resolution", "16x8", "--out", tmp_path / "out")
    for found in (opened(tmp_path / "out"), opened(tmp_path / "images", "24x16")):
        assert [name.encode().decode() for name in found.class_names] == ["caf\\udce9", "tea"]


def test_the_option_that_takes_smaller_images_is_named(tmp_path, capsys):
    make_folder(tmp_path / "images")
    (tmp_path / "images" / "dog" / "small.png").write_bytes(file_of(picture(0, 8, 8)))
    run(tmp_path / "images", "--resolution", "16x8", "--out", tmp_path / "out")
    assert "--enlarge uses smaller ones" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "a,b\n", "a\n\xff", "file\n1.png\n"])
def test_a_table_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "table.csv").write_bytes(text.encode("latin-1"))
    columns = ReaderOptions(label_column="missing")
    with pytest.raises(UserError, match=r"has no rows|not a table|--label-column missing"):
        open_reader(str(tmp_path / "table.csv"), columns)


def test_an_lmdb_gives_its_files_in_the_order_of_the_keys(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    for name, keys in {"plain": [b"b", b"a"], "rosinality": [b"8-00000", b"16-00001", b"16-00000"]}.items():
        with lmdb.open(str(tmp_path / name)) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"length", b"2")
            for number, key in enumerate(keys):
                transaction.put(key, file_of(picture(number)))
    assert [item.name for item in items(tmp_path / "plain")[1]] == ["a", "b"]
    found = items(tmp_path / "rosinality")[1]  # the largest resolution only
    assert [item.data for item in found] == [file_of(picture(2)), file_of(picture(1))]


def tar(path: Path, members: dict[str, bytes], mode="w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("ending", [".tgz", ".tar"])
def test_a_packed_folder_has_the_classes_of_its_folders(tmp_path, ending):
    members = {
        "./set/readme.txt": b"",
        "./set/dog/b.1.png": file_of(picture(0)),
        "./set/dog/b.2.png": file_of(picture(1)),
    }
    members |= {"./set/cat/a.png": file_of(picture(2)), "./set/cat/._a.png": b""}
    path = tar(tmp_path / f"set{ending}", members, "w:gz" if ending == ".tgz" else "w")
    source, found = items(path)
    assert [item.label for item in found] == [1, 1, 0] and source.class_names == ["cat", "dog"]
    assert [item.data for item in found] == [file_of(picture(number)) for number in range(3)]
    run(path, "--resolution", "16x8", "--out", tmp_path / "out")
    assert opened(tmp_path / "out").labels.tolist() == [1, 1, 0]


def test_a_packed_folder_may_have_its_classes_in_a_dataset_json(tmp_path):
    labels = json.dumps({"labels": [["a/0.png", 1], ["a/1.png", 0]], "class_names": ["x", "y"]}).encode()
    members = {f"a/{number}.png": file_of(picture(number)) for number in range(2)} | {"dataset.json": labels}
    source, found = items(tar(tmp_path / "set.tar", members))
    assert [item.label for item in found] == [1, 0] and source.class_names == ["x", "y"]


def test_a_damaged_packed_folder_is_listed(tmp_path):
    members = {f"{kind}/{number}.png": file_of(picture(number)) for kind in "ab" for number in range(4)}
    path = tar(tmp_path / "set.tgz", members, "w:gz")
    path.write_bytes(path.read_bytes()[:-400])
    found = items(path)[1]
    assert 1 < len(found) < 9 and "is damaged after" in str(found[-1].data)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_shards_of_webdataset_are_read_in_order(tmp_path, mode):
    ending = ".tar.gz" if mode == "w:gz" else ".tar"
    for shard in range(2):
        members = {"__meta__.json": b"{}"}
        for number in range(2):
            members[f"dir/{shard}{number}.jpg"] = file_of(picture(2 * shard + number), "JPEG")
            members[f"dir/{shard}{number}.cls"] = str(number).encode()
        tar(tmp_path / f"set-00{shard}{ending}", members, mode)
    for spec in (f"set-{{000..001}}{ending}", f"set-*{ending}", f"set-{{000,001}}{ending}"):
        found = items(tmp_path / spec)[1]
        assert [item.label for item in found] == [0, 1, 0, 1]
        assert [item.data for item in found] == [file_of(picture(n), "JPEG") for n in range(4)]
    (tmp_path / "list").write_text(str(tmp_path / f"set-*{ending}"))
    assert len(items(f"@{tmp_path / 'list'}")[1]) == 4


def test_a_damaged_shard_is_listed_and_the_next_one_read(tmp_path, capsys):
    first = tar(tmp_path / "0.tar", {f"{n}.png": file_of(picture(n)) for n in range(3)})
    os.truncate(first, 2600)
    tar(tmp_path / "1.tar", {"7.png": file_of(picture(7))})
    assert run(tmp_path / "{0,1}.tar", "--resolution", "8", "--out", tmp_path / "out") == dataset.SKIPPED_IMAGES
    assert len(opened(tmp_path / "out", 8)) >= 2
    assert "is damaged after" in (tmp_path / "out.skipped.txt").read_text()


def test_labels_that_only_later_images_of_a_shard_have_are_no_silent_loss(tmp_path, capsys):
    members = {"0.png": file_of(picture(0)), "1.png": file_of(picture(1)), "1.cls": b"1"}
    argv = [tar(tmp_path / "0.tar", members), "--resolution", "8", "--out", tmp_path / "out"]
    assert run(*argv) == 2
    assert (
        f"{argv[0]}:1 has a label, but the images before it have none; start again with --no" in capsys.readouterr().err
    )
    assert run(*argv[:-1], tmp_path / "anew", "--no-labels") == 0
    assert len(opened(tmp_path / "anew", 8)) == 2 and opened(tmp_path / "anew", 8).labels is None


def test_a_set_of_torchvision(monkeypatch, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    small = functools.partial(torchvision.datasets.FakeData, size=5, image_size=(3, 8, 8), num_classes=3)

    class Small(torchvision.datasets.FakeData):
        classes = ("ant", "bee", "cat")

        def __init__(self, root, train=True, download=False):
            super().__init__(**small.keywords)
            assert not train and download

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Small)
    assert run("torchvision:CIFAR10", "--split", "test", "--resolution", "8", "--out", tmp_path / "out") == 0
    found, expected = opened(tmp_path / "out", 8), [small()[i] for i in range(5)]
    assert found.class_names == ["ant", "bee", "cat"] and found.labels.tolist() == [
        int(expected[i][1]) for i in range(5)
    ]
    assert np.array_equal(found.images[3], np.asarray(expected[3][0]))


def test_a_set_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"picture": [{"bytes": file_of(picture(n)), "path": None} for n in range(3)], "kind": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    source, found = items(f"hf:{tmp_path / 'saved'}")
    assert source.class_names == ["ant", "bee"] and [item.label for item in found] == [1, 0, 1]
    assert [item.data for item in found] == [file_of(picture(n)) for n in range(3)]
    with pytest.raises(UserError, match="--label-column other"):
        items(f"hf:{tmp_path / 'saved'}", label_column="other")


@pytest.mark.parametrize(
    ("module", "spec"), [("torchvision", "torchvision:CIFAR10"), ("datasets", "hf:x"), ("lmdb", "x.lmdb")]
)
def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch, module, spec):
    for name in [module, *(each for each in sys.modules if each.startswith(module + "."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"needs the extra .* pip install"):
        open_reader(spec)


# --------------------------------------------------------------------------------- zips as they are in the world


def stylegan_zip(path: Path, labels, prefix="", compression=zipfile.ZIP_STORED, **more) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for number in range(3):
            archive.writestr(f"{prefix}00000/img0000000{number}.png", file_of(picture(number, 8, 8)))
        archive.writestr(f"{prefix}dataset.json", json.dumps({"labels": labels} | more if labels != "none" else {}))
    return path


NAMES = [f"00000/img0000000{number}.png" for number in range(3)]
WITH = lambda values: [[name, value] for name, value in zip(NAMES, values, strict=True)]


@pytest.mark.parametrize("prefix", ["", "ffhq/", "a/b/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, None),
        ("none", None),
        ([], None),
        (WITH([2, 0, 1]), [2, 0, 1]),
        (WITH([2.0, 0.0, 1.0]), [2, 0, 1]),
        (WITH([[2], [0], [1]]), [2, 0, 1]),
        (WITH([[0, 0, 1], [1, 0, 0], [0, 1, 0]]), [2, 0, 1]),
        (WITH([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), [2, 0, 1]),
        (WITH([[0.3, 0.1], [0.5, -1.0], [0.0, 1.0]]), None),  # poses of cameras, attributes
        (dict(WITH([1, 1, 0])), [1, 1, 0]),
        ([*WITH([1, 1, 0]), ["00000/gone.png", 5]], [1, 1, 0]),
        ([[name.replace("/", "\\"), 1] for name in NAMES], [1, 1, 1]),
    ],
)
def test_labels_of_every_kind_are_read(tmp_path, labels, expected, prefix, compression):
    path = stylegan_zip(tmp_path / "x.zip", labels, prefix, compression)
    found = opened(path, 8)
    assert len(found) == 3 and (found.labels if expected is None else found.labels.tolist()) == expected


def test_names_with_the_common_folder_in_the_labels_are_read(tmp_path):
    labels = [[f"all/{name}", number] for number, name in enumerate(NAMES)]
    assert opened(stylegan_zip(tmp_path / "x.zip", labels, "all/"), 8).labels.tolist() == [0, 1, 2]


def test_images_without_a_label_are_refused_by_training_and_left_out_by_preparation(tmp_path):
    path = stylegan_zip(tmp_path / "x.zip", WITH([1, 1, 0])[:2])
    with pytest.raises(UserError, match=r"no label for 00000/img00000002.png"):
        opened(path, 8)
    assert run(path, "--resolution", "8", "--out", tmp_path / "out") == dataset.SKIPPED_IMAGES
    assert opened(tmp_path / "out", 8).labels.tolist() == [1, 1]


def test_names_of_classes_go_with_a_zip(tmp_path):
    found = opened(stylegan_zip(tmp_path / "x.zip", WITH([1, 1, 0]), class_names=["ant", "bee", "cat"]), 8)
    assert found.class_names == ["ant", "bee", "cat"]


def test_names_that_lead_out_of_a_zip_write_nothing_there(tmp_path):
    (tmp_path / "below").mkdir()
    path = tmp_path / "below" / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../evil.png", "/tmp/evil.png", "..\\evil.png", "a/../../evil.png"):
            archive.writestr(name, file_of(picture()))
    run(path, "--resolution", "8", "--out", tmp_path / "below" / "out.zip", "--no-labels")
    assert sorted(files(tmp_path)) == ["below/evil.zip", "below/out.zip"]
    with zipfile.ZipFile(tmp_path / "below" / "out.zip") as archive:
        assert all(".." not in name and not name.startswith("/") for name in archive.namelist())


def test_a_member_that_would_fill_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("fastgan.data.image_files.MAX_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", file_of(picture(0)))
        archive.writestr("1.png", bytes(1_000_000))
    found = items(tmp_path / "x.zip")[1]
    assert isinstance(found[0].data, bytes) and "MiB, more than" in str(found[1].data)


@pytest.fixture(scope="module")
def small_zip(tmp_path_factory):
    return stylegan_zip(
        tmp_path_factory.mktemp("zip") / "x.zip", WITH([1, 0, 1]), "", zipfile.ZIP_DEFLATED
    ).read_bytes()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=mutations, keep=st.floats(0, 1))
@example(flips=[], keep=1.0)
def test_whatever_is_wrong_with_a_zip_is_said_in_a_line(small_zip, tmp_path, flips, keep):
    path = tmp_path / f"{random.getrandbits(40):x}.zip"
    path.write_bytes(mutated(small_zip, flips, keep))
    for attempt in (
        lambda: [convert(item.data, Target((8, 8), 3), False) for item in items(path)[1]],
        lambda: open_dataset(str(path), 8, 3, cache_dir=tmp_path / "cache", progress=False),
    ):
        try:
            attempt()
        except UserError as error:
            assert "\n" not in str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", *NAMES]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", *NAMES]), inner, max_size=3),
        max_leaves=12,
    )
)
def test_whatever_labels_are_is_understood_or_said_in_a_line(tmp_path, labels):
    path = stylegan_zip(tmp_path / "x.zip", labels)
    try:
        open_reader(str(path))
    except UserError as error:
        assert "\n" not in str(error)


# --------------------------------------------------------------------------------------------- training on shards


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=12), seed=st.integers(0, 99), epoch=st.integers(0, 3))
def test_every_epoch_over_shards_has_every_image_once_and_few_shards_at_a_time(counts, seed, epoch):
    stream, size = ShardedStream(counts, seed), sum(counts)
    order = stream.take(epoch * size, size)
    assert sorted(order) == list(range(size))
    assert (ShardedStream(counts, seed).take(epoch * size + size // 2, size - size // 2) == order[size // 2 :]).all()
    numbers = np.repeat(np.arange(len(counts)), counts)[order]
    (groups, ends), start = stream._groups(epoch), 0
    for group, following, end in zip(groups, [*groups[1:], stream._groups(epoch + 1)[0][0]], ends, strict=True):
        assert len(group) <= SHUFFLED_SHARDS and {*numbers[start:end].tolist()} == {*group.tolist()}
        for position in (start, end - 1):
            assert stream.next_group(epoch * size + position) == following.tolist()
        start = end


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Twelve shards of 40 images, 16x8."""
    root = tmp_path_factory.mktemp("sharded")
    for number in range(40):
        path = root / "in" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_of(picture(number, 16, 8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "MEGABYTE", 9_500)
        assert run(root / "in", "--resolution", "16x8", "--out", root / "out", "--shards", "1") == 0
    return root


def test_shards_have_the_images_of_the_folder_in_a_shuffled_order(sharded):
    found, plain = opened(sharded / "out"), opened(sharded / "in")
    counts = found.images.counts
    assert len(counts) > CACHED_SHARDS and sum(counts) == 40 == len(found)
    rows = lambda s: {
        (image.tobytes(), int(label)) for image, label in zip(s.images[np.arange(40)], s.labels, strict=True)
    }
    assert rows(found) == rows(plain)
    assert found.labels.tolist() != sorted(found.labels.tolist())
    found.images.close()


def test_webdataset_reads_the_shards(sharded):
    webdataset = pytest.importorskip("webdataset")
    paths = [str(path) for path in sorted((sharded / "out").glob("*.tar"))]
    rows = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    found = opened(sharded / "out")
    assert [label for _, label in rows] == found.labels.tolist()
    assert np.array_equal(np.asarray(rows[3][0]), found.images[3])


def test_the_cache_holds_a_few_shards_only(sharded, tmp_path):
    found = open_dataset(str(sharded / "out"), "16x8", 3, cache_dir=tmp_path)
    found.images[np.arange(40)]
    assert len(list(tmp_path.rglob("*.npy"))) == CACHED_SHARDS and not list(tmp_path.rglob("download-*"))


def test_batches_over_shards_are_the_same_on_every_way_to_a_device(sharded):
    found = opened(sharded / "out")
    make = lambda transfer: ImageLoader(
        found, torch.device("cpu"), 3, lambda _: 6, labels=True, mirror=True, transfer=transfer
    )
    plain, ahead = make(None), make(HostTransfer())
    order = ShardedStream(found.images.counts, 3)
    for position in (0, 6, 12, 36, 42, 78):
        one, two = plain.batch(position), ahead.batch(position)
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
        assert one.labels.tolist() == found.labels[order.take(position, 6)].tolist()
    plain.close()
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastgan-data")]


class Server:
    """Files of a folder at a URL; counts what was asked for."""

    def __init__(self, folder: Path):
        asked = self.asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                asked.append(self.path)

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def server(sharded):
    server = Server(sharded / "out")
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_a_training_on_shards_at_a_url_resumes_exactly(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    more = ["--resolution", "16x8", "--channels", "3", "--images", "48", "--checkpoint-interval", "24"]
    spec = f"{server.url}/shards.json"
    whole = train(spec, tmp_path / "whole", *more)
    half = train(spec, tmp_path / "half", *more[:-3], "24")
    from fastgan.cli.train import main

    assert main(["--resume", str(half), "--images", "48"]) == 0
    assert_same_checkpoint(whole, half)


def test_a_server_that_fails_once_is_asked_again(server, sharded, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "RETRY_PAUSES", (0, 0))
    real, failures = shards.open_path_or_url, iter([True, False, True])

    def failing(place):
        if place.endswith(".tar") and next(failures, False):
            raise OSError("connection reset")
        return real(place)

    monkeypatch.setattr(shards, "open_path_or_url", failing)
    found = open_dataset(f"{server.url}/shards.json", "16x8", 3, cache_dir=tmp_path)
    assert np.array_equal(found.images[np.arange(40)], opened(sharded / "out").images[np.arange(40)])
    monkeypatch.setattr(shards, "open_path_or_url", lambda place: real(f"{place}.gone"))
    with pytest.raises(UserError, match=r"cannot read http.*000000\.tar"):
        open_dataset_again(server, tmp_path / "other", found)


def open_dataset_again(server, cache_dir, found):
    """The first image, with nothing in the cache."""
    again = shards.ShardedImages(
        found.images._shards, found.images.counts, found.images._digests, (8, 16, 3), cache_dir
    )
    return again[0]


def test_shards_at_urls_are_a_source(server, sharded, tmp_path):
    assert run(f"{server.url}/{{000000..000001}}.tar", "--resolution", "8", "--out", tmp_path / "out") == 0
    assert len(opened(tmp_path / "out", 8)) == sum(opened(sharded / "out").images.counts[:2])
    with pytest.raises(UserError, match=r"cannot read .*/999\.tar"):
        items(f"{server.url}/999.tar")


def test_a_damaged_shard_is_named_before_it_is_trained_on(sharded, tmp_path):
    for name, content in files(sharded / "out").items():
        (tmp_path / name).write_bytes(content)
    changed = bytearray((tmp_path / "000002.tar").read_bytes())
    changed[700] ^= 1
    (tmp_path / "000002.tar").write_bytes(changed)
    found = open_dataset(str(tmp_path), "16x8", 3, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"000002\.tar is damaged"):
        found.images[np.arange(len(found))]


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"shards": []}, {"labels": [0]}, {"size": 3}, {"channels": 2}, {"class_names": ["a"]},
        {"shards": [{"file": "../evil.tar", "images": 40, "bytes": 1, "sha256": "0"}]},
    ],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(sharded, tmp_path, change):
    content = json.loads((sharded / "out" / "shards.json").read_text()) | change
    (tmp_path / "shards.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not an index"):
        opened(tmp_path)


@pytest.mark.parametrize("spec", ["set-{000..009}.tar", "x.csv", "torchvision:CIFAR10", "hf:x", "x.lmdb"])
def test_training_points_to_preparation_for_what_it_does_not_read(spec):
    with pytest.raises(UserError, match=r"prepare it first, with python -m fastgan.dataset"):
        opened(spec)


@pytest.mark.parametrize("kind", ["array", "shards"])
def test_another_size_than_prepared_is_refused_with_the_right_options(source, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    run(source, "--resolution", "16x8", *OUTPUTS[kind])
    with pytest.raises(UserError, match="RGB images of 16x8; give --resolution 16x8 --channels 3"):
        opened("out", 8)


# ----------------------------------------------------------------------------------- not square, and transparent


@pytest.mark.parametrize(
    ("resolution", "square", "first"),
    [(32, 32, (4, 4)), ("64x32", 32, (4, 8)), ("32x64", 32, (8, 4)), ("1024x768", 512, (6, 8)), ("80x64", 64, (4, 5))],
)
def test_a_resolution_is_a_smallest_plane_doubled(resolution, square, first):
    assert configuration.pyramid(resolution) == (square, first)
    height, width = models.ModelConfig(resolution=square, base_size=first).feature_size(square)
    assert f"{width}x{height}" == ("32x32" if resolution == 32 else resolution)


@pytest.mark.parametrize("arch", ["stylegan2", "r3gan"])
@pytest.mark.parametrize("channels", [3, 4])
def test_networks_of_any_shape_draw_and_judge_it(arch, channels):
    options = {"resolution": 16, "channel_base": 128, "channel_max": 16, "z_dim": 8, "channels": channels}
    torch.manual_seed(0)
    generator, discriminator = models.build(models.ModelConfig(arch=arch, base_size=[4, 6], **options))
    images = generator(torch.randn(4, 8))
    assert images.shape == (4, channels, 16, 24)
    images = images.detach()
    logits, squares = logits_and_squared_grad(discriminator, images)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images)
    torch.testing.assert_close(squares, gradient.square().sum((1, 2, 3)), rtol=1e-4, atol=1e-8)
    logits.sum().backward()
    assert gradient.flatten(2).abs().sum((0, 1)).min() > 0, "a pixel is not looked at"


def test_other_families_refuse_what_is_not_square():
    with pytest.raises(
        UserError, match=r"--resolution 64x32: must be a power of two for pggan, whose images are square"
    ):
        configure.resolve(configure.parse(["--arch", "pggan", "--resolution", "64x32"]))
    with pytest.raises(ValueError, match=r"base_size is \(4, 8\), must be \(4, 4\) for pggan"):
        models.build(models.ModelConfig(arch="pggan", base_size=(4, 8)))


@pytest.mark.parametrize("resolution", ["28", "48", "24x16"])
@pytest.mark.parametrize(
    "arch, variant",
    [
        ("mlp", ""),
        ("dcgan", "transposed"),
        ("dcgan", "upsample"),
        ("cgan", "conv"),
        ("cgan", "mlp"),
        ("stylegan2", ""),
        ("r3gan", ""),
    ],
)
def test_images_of_28_pixels_and_others_that_halve_to_5_6_or_7(arch, variant, resolution):
    """MNIST's are 28 = 4 * 7."""
    options = ["--arch", arch, "--resolution", resolution, *(["--variant", variant] if variant else [])]
    config = configure.resolve(configure.parse(options))
    size, first = configuration.pyramid(config.data.resolution)
    model = models.ModelConfig(
        arch=arch, variant=variant, resolution=size, base_size=first, num_classes=3, z_dim=8, channel_base=512,
        channel_max=16,
    )  # fmt: skip
    generator, discriminator = models.build(model)
    label = torch.tensor([0, 1, 2, 0])
    images = generator(torch.randn(4, 8), label)
    width, height = parse_size(resolution)
    assert images.shape == (4, 1, height, width)
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images, label).sum(), images)
    assert gradient.abs().sum((0, 1)).min() > 0, "a pixel is not looked at"


@pytest.mark.parametrize("resolution", ["50", "36x36", "50x30", "8x9", "64x", "4x8"])
def test_a_shape_that_cannot_be_halved_is_refused(resolution):
    with pytest.raises(UserError, match=r"--resolution .*: must be"):
        configure.resolve(configure.parse(["--resolution", resolution]))


def test_two_equal_sides_are_one_number():
    assert configure.resolve(configure.parse(["--resolution", "64x64"])).data.resolution == 64


@pytest.mark.parametrize("arch", ["stylegan2", "r3gan"])
def test_transparent_images_that_are_not_square_are_trained_on(tmp_path, arch):
    for number in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.png").write_bytes(file_of(picture(number, 24, 16, "RGBA")))
    assert run(tmp_path / "in", "--resolution", "24x16", "--channels", "4", "--out", tmp_path / "out.zip") == 0
    more = ["--resolution", "24x16", "--channels", "4", "--arch", arch, "--images", "8", "--augment", "fixed"]
    found = train(tmp_path / "out.zip", tmp_path / arch, *more, "--channel-base", "128", *WIDTHS[2:])
    from fastgan.runs.checkpoint import load_generator
    from fastgan.runs.drawing import draw

    generator, _ = load_generator(found)
    assert draw(generator, torch.randn(2, 8), None).shape == (2, 16, 24, 4)
    with Image.open(found / "grid-000000008.png") as grid:
        assert grid.mode == "RGB"


def test_augmentation_recolours_what_is_seen_and_not_the_transparency():
    augment = Augment(1.0, groups=("color",))
    images, parameters = torch.rand(4, 4, 8, 8), augment.draw(4)
    changed = augment.transform(images, parameters)
    assert torch.equal(changed[:, 3], images[:, 3]) and not torch.allclose(changed[:, :3], images[:, :3])
    torch.testing.assert_close(changed[:, :3], augment.transform(images[:, :3], parameters))


def test_a_grid_shows_transparency_as_chequers():
    clear = np.zeros((1, 16, 16, 4), np.uint8)
    opaque = np.full((1, 16, 16, 4), 255, np.uint8)
    opaque[..., :3] = 7
    grid = np.asarray(draw_grid([Section("", [("", clear), ("", opaque)])], 16))
    colours = {tuple(colour) for colour in grid.reshape(-1, 3)}
    assert {(204, 204, 204), (255, 255, 255), (7, 7, 7)} <= colours


def test_importing_the_data_loads_no_torch():
    code = "import sys, fastgan.data.prepare, fastgan.dataset; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
    assert data.ImageLoader is ImageLoader


# Workers that die ----------------------------------------------------------------------------------------------------


def dying(times: int):
    """Ten pictures; while they are read, all workers are killed `times` times. One left alive might finish the rest."""
    for number in range(10):
        if number in range(3, 3 + times):
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join()
        yield Item(f"{number}.png", None, file_of(picture(number)))


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PREFETCH", 1)
    job = prepare.Job("pictures", tmp_path / "out", Target((8, 8), 3), workers=2)
    expected = [convert(file_of(picture(number)), job.target, False) for number in range(10)]
    found = list(prepare._converted(dying(1), job, False))
    assert [item.name for item, _ in found] == [f"{number}.png" for number in range(10)]
    assert [result for _, result in found] == expected
    monkeypatch.setattr(prepare, "RESTARTS", 0)
    with pytest.raises(UserError, match=r"worker processes keep dying near \d.png"):
        list(prepare._converted(dying(1), job, False))
