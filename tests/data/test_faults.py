"""Faults from outside: damaged files by the hundred, kills and full disks at every call of the file system.

`FASTGAN_FAULTS=all` tries 500 damaged sets of each kind and full disks at every call (two minutes of a core).
"""

import os
import random
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastgan.cli import dataset
from fastgan.cli.train import main
from fastgan.data import ImageLoader, cache, folder, image_dataset, open_dataset
from fastgan.data.images import Target, convert
from fastgan.data.readers import open_reader
from fastgan.errors import UserError
from fastgan.runs.checkpoint import read_header
from tests.support import faults
from tests.support.damage import damage_one, mutate, overwrite
from tests.support.image_sources import (
    cache_entries,
    encode,
    make_image,
    prepare_images,
    read_files,
    read_items,
    write_tar,
)
from tests.support.tiny_run import arguments, assert_same_checkpoint, make_folder, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]

ALL = os.environ.get("FASTGAN_FAULTS") == "all"
MUTATIONS = 500 if ALL else 40  # of each kind
STEP = {"kill": 1 if ALL else 2, "full disk": 1 if ALL else 5}  # of the calls that are tried
TARGET = Target((8, 8), 3)
COUNT = 6


def pictures(labelled=True) -> dict[str, bytes]:
    """Files of a small labelled set."""
    return {f"{'ab'[n % 2] if labelled else 'a'}/{n}.png": encode(make_image(n, 8, 8)) for n in range(COUNT)}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


# Damaged files -------------------------------------------------------------------------------------------------------


def content_of(found) -> tuple:
    """All that a training reads of a data set."""
    pixels = found.images[np.arange(len(found))].tobytes()
    return pixels, found.labels.tolist(), found.class_names, found.source


def test_a_damaged_prepared_folder_is_whole_or_a_user_error(tmp_path):
    source = write_folder(tmp_path / "in", pictures())
    for name, options in {"array": [], "shards": ["--shards", "1"]}.items():
        assert prepare_images(source, "--resolution", "8", "--out", tmp_path / name, *options) == 0
        whole, rng = read_files(tmp_path / name), random.Random(name)
        opened = lambda name=name: content_of(open_dataset(str(tmp_path / name), 8, 3, cache_dir=tmp_path / "cache"))
        expected, errors = opened(), 0
        for _ in range(MUTATIONS):
            damage_one(tmp_path / name, whole, rng)
            try:
                assert opened() == expected, "a silent difference"
            except UserError as error:
                assert "\n" not in str(error) and str(tmp_path / name) in str(error)
                errors += 1
        assert errors > MUTATIONS / 4


def test_a_damaged_cache_is_never_an_error(tmp_path, capsys):
    source = write_folder(tmp_path / "in", pictures())
    opened = lambda: content_of(folder.load(source, (8, 8), 3, cache_dir=tmp_path / "cache", progress=False))
    expected, rng = opened(), random.Random(0)
    (name,) = cache_entries(tmp_path / "cache")
    whole = read_files(tmp_path / "cache" / name)
    for _ in range(MUTATIONS):
        damage_one(tmp_path / "cache" / name, whole, rng)
        assert opened() == expected
        assert cache_entries(tmp_path / "cache") == [name]
    assert capsys.readouterr().err.count("it is built again") > MUTATIONS / 2


def test_a_damaged_array_in_the_cache_is_never_an_error(tmp_path):
    compute, rng = (lambda: np.arange(12.0).reshape(3, 4)), random.Random(0)
    opened = lambda: cache.load_or_compute({"kind": "test"}, compute, tmp_path)
    assert np.array_equal(opened(), compute())
    (name,) = cache_entries(tmp_path)
    whole = read_files(tmp_path / name)
    for _ in range(MUTATIONS):
        damage_one(tmp_path / name, whole, rng)
        assert np.array_equal(opened(), compute())


def pack(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    return write_tar(path, files, {".tgz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(path.suffix, "w"))


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.tar.xz", "a.tar.bz2", "a.zip"])
def test_images_of_a_damaged_archive_are_the_same_or_counted(tmp_path, name):
    """The images are PNGs, which have checksums; a JPEG in a plain tar has none."""
    path, rng = tmp_path / name, random.Random(name)
    whole = pack(path, pictures(labelled=False)).read_bytes()

    def read() -> tuple[dict[str, object], list[str]]:
        reader, items = read_items(path)
        return {item.name.rpartition(":")[2]: convert(item.data, TARGET, False) for item in items}, list(reader.notes)

    (expected, _), errors = read(), 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(whole, rng))
        try:
            found, notes = read()
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            errors += 1
            continue
        same = [image for image, result in found.items() if result == expected.get(image)]
        assert all(isinstance(found[image], str) for image in found.keys() - same), "a silent difference"
        assert len(found) + bool(notes) >= COUNT, "an image is lost"
    assert errors > MUTATIONS / 4


@pytest.mark.parametrize("name", ["a.csv", "a.tar", "a.zip", "a.npz", "a.npy"])
def test_damaged_sources_with_labels_give_no_traceback(tmp_path, name):
    """Plain text and arrays have no checksums: what they say now is what is read."""
    path, rng, files = tmp_path / name, random.Random(name), pictures()
    if name == "a.csv":
        write_folder(tmp_path, files)
        path.write_text("file,label\n" + "".join(f"{image},{image[0]}\n" for image in files))
    elif name.startswith("a.np"):
        pixels = np.stack([np.asarray(make_image(n, 8, 8)) for n in range(COUNT)])
        np.save(path, pixels) if name == "a.npy" else np.savez(path, images=pixels, labels=np.arange(COUNT))
    else:
        labels = {f"{image[:-4]}.cls": b"%d" % n for n, image in enumerate(files)} if name == "a.tar" else {}
        labels |= {"dataset.json": b'{"labels": [["a/0.png", 0], ["b/1.png", 1]]}'} if name == "a.zip" else {}
        pack(path, dict(sorted({**files, **labels}.items())))
    whole = path.read_bytes()
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(whole, rng))
        try:
            for item in read_items(path)[1]:
                convert(item.data, TARGET, False)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device here")
@pytest.mark.parametrize(
    "name", ["x.csv", "x.tar", "x.tgz", "x.zip", "x.npy", "x.npz", "x.lmdb", "x", "images-idx3-ubyte", "shards.json"]
)
def test_devices_that_never_end_are_refused(tmp_path, monkeypatch, name):
    (tmp_path / name).symlink_to("/dev/zero")
    for attempt in (
        lambda: list(open_reader(str(tmp_path / name)).items(range(1))),
        lambda: open_dataset(str(tmp_path / name), 8, 3, progress=False),
    ):
        with pytest.raises(UserError, match=name.partition(".")[0]):
            attempt()


def test_a_training_that_meets_a_damaged_image_saves_first_and_the_next_start_repairs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_dataset, "CHECKED_AT_ONCE", 0)  # as for a large set
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    images = make_folder(tmp_path / "images")
    real = ImageLoader.batch

    def batch(self, position):
        if position == 16:
            (path,) = (tmp_path / "cache").rglob("images.npy")
            overwrite(path, -20 * 64, 20 * 64 * b"U")
            self._mapped._unread[:] = True  # the samples of the reals have read them all
        return real(self, position)

    monkeypatch.setattr(ImageLoader, "batch", batch)
    assert main(arguments(images, tmp_path / "run")) == 2
    monkeypatch.setattr(ImageLoader, "batch", real)
    told = capsys.readouterr()
    assert "has other pixels than were written; it has been removed: run the same command again" in told.err
    assert not list((tmp_path / "cache").rglob("images.npy")) and read_header(tmp_path / "run").images == 16
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert_same_checkpoint(tmp_path / "run", train(images, tmp_path / "whole"))


# Kills and full disks ------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="needs fork")


@needs_fork
@pytest.mark.parametrize("fault", ["kill", "full disk"])
@pytest.mark.parametrize("output", ["array", "zip", "shards"])
def test_a_preparation_stopped_at_any_call_leaves_nothing_or_all_and_continues(tmp_path, monkeypatch, output, fault):
    source = write_folder(tmp_path / "in", pictures() | {"a/bad.png": b"no image"})
    monkeypatch.setattr(dataset, "MEGABYTE", 4_000)  # several shards
    monkeypatch.setattr(dataset.prepare, "SYNC_IMAGES", 3)

    def prepare(place: Path) -> int:
        out = place / ("out.zip" if output == "zip" else "out")
        return prepare_images(source, "--resolution", "8", "--out", out, *["--shards", "1"][: 2 * (output == "shards")])

    (tmp_path / "whole").mkdir()
    assert prepare(tmp_path / "whole") == 1
    expected = read_files(tmp_path / "whole")
    is_content = lambda name: not name.startswith(("out.unfinished", "out.zip.unfinished")) and "skipped" not in name
    for number in range(1, 1000, STEP[fault]):
        place = tmp_path / f"{number}"
        place.mkdir()
        call, status = faults.run_with_fault(lambda place=place: prepare(place), place, number, fault)
        left = {name: content for name, content in read_files(place).items() if is_content(name)}
        assert not left or left == {name: expected[name] for name in expected if is_content(name)}, number
        if call is None:
            break
        assert status in (2, -signal.SIGKILL) or (status == 1 and left), number
        status = prepare(place)
        assert status == 1 or (left and status == 2), number  # 2: it exists already
        assert read_files(place) == expected and {path.name for path in place.iterdir()} == {
            name.partition("/")[0] for name in expected
        }, number
    assert 15 < number < 990


@needs_fork
@pytest.mark.parametrize("fault", ["kill", "full disk"])
@pytest.mark.parametrize("what", ["damaged", "array", "shard"])
def test_a_cache_stopped_at_any_call_is_built_by_the_next_start(tmp_path, what, fault):
    source = write_folder(tmp_path / "in", pictures())
    if what == "shard":
        assert prepare_images(source, "--resolution", "8", "--out", tmp_path / "out", "--shards", "1") == 0

    def opened(place: Path) -> object:
        if what == "array":
            return cache.load_or_compute({"kind": "test"}, lambda: np.arange(9.0), place).tolist()
        if what == "shard":
            return open_dataset(str(tmp_path / "out"), 8, 3, cache_dir=place).images[np.arange(COUNT)].tolist()
        return content_of(folder.load(source, (8, 8), 3, cache_dir=place, progress=False))

    def tried(place: Path) -> int:
        try:
            opened(place)
        except UserError:
            return 2
        return 0

    expected = opened(tmp_path / "whole")
    entries = read_files(tmp_path / "whole")
    for number in range(1, 1000, STEP[fault]):
        place = tmp_path / f"{number}"
        if what == "damaged":
            shutil.copytree(tmp_path / "whole", place)
            next(place.rglob("images.npy")).write_bytes(b"")
        call, status = faults.run_with_fault(lambda place=place: tried(place), tmp_path, number, fault)
        assert status in (0, 2, -signal.SIGKILL), number
        assert opened(place) == expected, number
        assert read_files(place) == entries and not [*place.rglob("*.tmp"), *place.rglob("*.unfinished")], number
        if call is None:
            break
    assert 8 < number < 990
