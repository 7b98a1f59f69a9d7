"""Preparation: outputs, what is left out, stopping and continuing, workers that die."""

import json
import multiprocessing
import os
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastgan.cli import dataset
from fastgan.data import images, prepare
from fastgan.data.images import Target, convert, fit
from fastgan.data.readers import Item
from fastgan.errors import UserError
from tests.support.image_sources import (
    OUTPUTS,
    encode,
    make_folder,
    make_image,
    open_images,
    prepare_images,
    read_files,
    write_tar,
)
from tests.support.processes import start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


@pytest.mark.parametrize("kind", OUTPUTS)
def test_training_reads_the_same_images_and_classes_from_every_output(source, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    assert prepare_images(source, "--resolution", "16x8", *OUTPUTS[kind]) == dataset.SKIPPED_IMAGES
    text = capsys.readouterr().out
    assert "9 images, 16x8 RGB, 2 classes" in text and "skipped 3 images" in text
    path = text.partition("--data ")[2].split()[0]
    found = open_images(path)
    assert found.class_names == ["cat", "dog"] and found.size == (16, 8) and found.resolution == "16x8"
    expected = {}
    for number in range(9):
        expected[fit(make_image(number), Target((16, 8), 3)).tobytes()] = 0 if number % 2 else 1
    order = np.arange(9)
    assert {image.tobytes(): label for image, label in zip(found.images[order], found.labels, strict=True)} == expected
    assert set(read_files(tmp_path)) >= {f"{OUTPUTS[kind][1]}.skipped.txt"} and not list(tmp_path.glob("*.unfinished"))


def test_skipped_images_are_listed_with_the_reason(source, tmp_path):
    prepare_images(source, "--resolution", "16x8", "--out", tmp_path / "out.zip")
    lines = dict(line.split("\t") for line in (tmp_path / "out.zip.skipped.txt").read_text().splitlines())
    assert lines.keys() == {"cat/002-bad.png", "dog/005-cut.jpg", "dog/small.png"}
    assert lines["cat/002-bad.png"] == "is not an image in PNG, JPEG, WebP, BMP, TIFF or PPM"
    assert lines["dog/005-cut.jpg"].startswith("cannot be decoded (") and lines["dog/small.png"].startswith(
        "is 4x4, smaller"
    )


def test_a_zip_has_stylegans_format(source, tmp_path):
    prepare_images(source, "--resolution", "8", "--out", tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        labels = json.loads(archive.read("dataset.json"))["labels"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert names[:2] == ["00000/img00000000.png", "00000/img00000001.png"]
    assert labels == [[name, 0 if number < 4 else 1] for number, name in enumerate(names[:-1])]


def test_nothing_skipped_means_status_0_and_no_list(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(encode(make_image()))
    (tmp_path / "out.zip.skipped.txt").write_text("from before")
    assert prepare_images(tmp_path / "in", "--resolution", "8", "--out", tmp_path / "out.zip") == 0
    assert set(read_files(tmp_path)) == {"in/1.png", "out.zip"}


def test_labels_can_be_left_out(source, tmp_path):
    prepare_images(source, "--resolution", "16x8", "--out", tmp_path / "out", "--no-labels")
    assert open_images(tmp_path / "out").labels is None


def test_the_default_output_is_in_the_cache(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    prepare_images(source, "--resolution", "16x8", "--channels", "1")
    assert open_images(tmp_path / "prepared" / "images-16x8-grey", channels=1).channels == 1


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
def test_an_error_is_one_line_and_status_2(source, tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    assert dataset.main([str(source), "--out", "out", *argv, *([] if "--workers" in argv else ["--workers", "1"])]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line and not list(tmp_path.glob("*.unfinished"))


def test_missing_files_and_labels_in_a_table_are_skipped(tmp_path):
    (tmp_path / "1.png").write_bytes(encode(make_image()))
    (tmp_path / "table.csv").write_text("file,label\n1.png,cat\ngone.png,cat\n1.png,\n")
    prepare_images(tmp_path / "table.csv", "--resolution", "16x8", "--out", tmp_path / "out")
    assert (tmp_path / "out.skipped.txt").read_text().splitlines() == [
        "gone.png\tcannot be read (No such file or directory)",
        "1.png\thas no label",
    ]


def test_no_labels_keeps_images_without_a_label(tmp_path):
    (tmp_path / "1.png").write_bytes(encode(make_image()))
    (tmp_path / "table.csv").write_text("file,label\n1.png,cat\n1.png,\n")
    prepare_images(tmp_path / "table.csv", "--resolution", "16x8", "--out", tmp_path / "out", "--no-labels")
    found = open_images(tmp_path / "out")
    assert len(found) == 2 and found.labels is None


def test_labels_that_start_later_in_a_shard_are_an_error(tmp_path, capsys):
    members = {"0.png": encode(make_image(0)), "1.png": encode(make_image(1)), "1.cls": b"1"}
    argv = [write_tar(tmp_path / "0.tar", members), "--resolution", "8", "--out", tmp_path / "out"]
    assert prepare_images(*argv) == 2
    assert (
        f"{argv[0]}:1 has a label, but the images before it have none; start again with --no" in capsys.readouterr().err
    )
    assert prepare_images(*argv[:-1], tmp_path / "anew", "--no-labels") == 0
    assert len(open_images(tmp_path / "anew", 8)) == 2 and open_images(tmp_path / "anew", 8).labels is None


def test_class_names_that_are_not_utf_8_are_escaped(tmp_path, capsys):
    for name in (b"caf\xe9", b"tea"):
        folder = tmp_path / "images" / os.fsdecode(name)
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(encode(make_image()))
    prepare_images(tmp_path / "images", "--resolution", "16x8", "--out", tmp_path / "out")
    for found in (open_images(tmp_path / "out"), open_images(tmp_path / "images", "24x16")):
        assert [name.encode().decode() for name in found.class_names] == ["caf\\udce9", "tea"]


def test_the_summary_names_the_option_for_smaller_images(tmp_path, capsys):
    make_folder(tmp_path / "images")
    (tmp_path / "images" / "dog" / "small.png").write_bytes(encode(make_image(0, 8, 8)))
    prepare_images(tmp_path / "images", "--resolution", "16x8", "--out", tmp_path / "out")
    assert "--enlarge uses smaller ones" in capsys.readouterr().out


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_stopped_preparation_continues_to_the_same_bytes(tmp_path, source, monkeypatch, capsys, kind, stop):
    monkeypatch.setattr(prepare, "SYNC_IMAGES", 2)
    monkeypatch.setattr(dataset, "MEGABYTE", 2000)  # several shards
    argv = [source, "--resolution", "16x8", *OUTPUTS[kind]]
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "unbroken")
    prepare_images(*argv)

    monkeypatch.chdir(tmp_path / "broken")
    whole, calls = images.convert, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "convert", interrupted)
        assert prepare_images(*argv) == 130
    assert f"stopped with {stop} images done; run the same command again" in capsys.readouterr().err
    work = next(Path.cwd().glob("*.unfinished"))
    for path in (work / "journal.jsonl", *([work / "content"] if kind == "zip" else work.glob("content/0*.tar"))):
        with open(path, "ab") as file:  # an incomplete write, as after a kill
            file.write(b'["written", 12')
    assert prepare_images(*argv) == dataset.SKIPPED_IMAGES
    assert f"{stop} images done" in capsys.readouterr().out
    assert read_files(tmp_path / "broken") == read_files(tmp_path / "unbroken")


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_killed_preparation_with_workers_continues_to_the_same_bytes(tmp_path):
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
    assert prepare_images(root, "--resolution", "16x8", "--out", tmp_path / "other.zip") == dataset.SKIPPED_IMAGES
    assert out.read_bytes() == (tmp_path / "other.zip").read_bytes()


@pytest.mark.parametrize("change", ["option", "source", "content", "journal"])
def test_a_changed_source_option_or_output_is_not_continued(tmp_path, monkeypatch, capsys, change):
    root = make_folder(tmp_path / "images")
    argv = [root, "--resolution", "16x8", "--out", tmp_path / "out.zip"]
    with monkeypatch.context() as patch:
        patch.setattr(prepare.ZipWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare_images(*argv) == 130
    if change == "source":
        (root / "cat" / "new.png").write_bytes(encode(make_image(77)))
    if change == "content":
        os.truncate(tmp_path / "out.zip.unfinished" / "content", 10)
    if change == "journal":  # as after a power failure
        journal = tmp_path / "out.zip.unfinished" / "journal.jsonl"
        first, second, rest = journal.read_bytes().split(b"\n", 2)
        journal.write_bytes(b"\n".join([first, bytes(len(second)), rest]))
    assert prepare_images(*argv, *(["--crop", "pad"] if change == "option" else [])) == 2
    words = {"option": "with other options (crop)", "source": "the source has changed"}
    assert words.get(change, "has been damaged; remove that folder") in capsys.readouterr().err


def test_a_full_disk_is_reported_and_the_work_is_kept(tmp_path, source, monkeypatch, capsys):
    argv = [source, "--resolution", "16x8", "--out", tmp_path / "out"]
    whole = prepare.ArrayWriter.append

    def full(self, content, kept):
        if len(self._labels) == 5:
            raise OSError(28, "No space left on device")
        whole(self, content, kept)

    with monkeypatch.context() as patch:
        patch.setattr(prepare.ArrayWriter, "append", full)
        assert prepare_images(*argv) == 2
    assert "No space left on device; make room" in capsys.readouterr().err
    assert prepare_images(*argv) == dataset.SKIPPED_IMAGES and len(open_images(tmp_path / "out")) == 9


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks used there")
def test_a_second_process_with_the_same_output_is_refused(tmp_path, source, capsys):
    (tmp_path / "out.unfinished").mkdir()
    with prepare.lock(tmp_path / "out.unfinished" / "lock"):
        assert prepare_images(source, "--resolution", "16x8", "--out", tmp_path / "out") == 2
    assert "another process is preparing" in capsys.readouterr().err


def dying(times: int):
    """Ten items; while they are read, all workers are killed `times` times. One left alive could finish the rest."""
    for number in range(10):
        if number in range(3, 3 + times):
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join()
        yield Item(f"{number}.png", None, encode(make_image(number)))


@pytest.mark.slow
def test_dead_workers_are_restarted(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PREFETCH", 1)
    job = prepare.Job("pictures", tmp_path / "out", Target((8, 8), 3), workers=2)
    expected = [convert(encode(make_image(number)), job.target, False) for number in range(10)]
    found = list(prepare._converted(dying(1), job, False))
    assert [item.name for item, _ in found] == [f"{number}.png" for number in range(10)]
    assert [result for _, result in found] == expected
    monkeypatch.setattr(prepare, "RESTARTS", 0)
    with pytest.raises(UserError, match=r"worker processes keep dying near \d.png"):
        list(prepare._converted(dying(1), job, False))
