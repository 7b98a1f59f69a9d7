"""Cache: entries are complete or absent, and built once."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastgan.data import cache, glyphs, image_dataset, pixels_of
from fastgan.errors import UserError
from fastgan.files import lock
from tests.support.damage import overwrite
from tests.support.image_sources import cache_entries, make_glyphs


def test_an_entry_is_built_once(store, monkeypatch):
    first = make_glyphs(store)
    monkeypatch.setattr(glyphs, "_draw", lambda *_: pytest.fail("drawn again"))
    assert np.array_equal(make_glyphs(store).images, first.images)


def test_the_environment_variable_sets_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "here"))
    make_glyphs(None)
    assert len(cache_entries(tmp_path / "here")) == 1


def test_digests_of_pixels_and_labels(store):
    found = make_glyphs(store)
    assert found.digests["images"] == hashlib.sha256(found.images[:].tobytes()).hexdigest()
    assert found.digests["labels"] == hashlib.sha256(found.labels.tobytes()).hexdigest()
    assert make_glyphs(store).digests == found.digests  # from the cache


def _edit_meta(entry: Path, **changes) -> None:
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps(meta | changes))


def _replace(entry: Path, make) -> None:
    shutil.rmtree(entry)
    make(entry)


DAMAGES = {
    "cut": (lambda entry: os.truncate(entry / "images.npy", 1000), "images.npy cannot be read"),
    "pixels": (lambda entry: overwrite(entry / "images.npy", -300, b"U" * 200), "image 38 has other pixels"),
    "blanked header": (lambda entry: overwrite(entry / "images.npy", 20, b" "), "images.npy cannot be read"),
    "no meta": (lambda entry: (entry / "meta.json").unlink(), "meta.json cannot be read (No such file"),
    "meta is a list": (lambda entry: (entry / "meta.json").write_text("[]"), "meta.json has no digest"),
    "nested meta": (lambda entry: (entry / "meta.json").write_text(9**5 * "["), "meta.json cannot be read"),
    "other names": (lambda entry: _edit_meta(entry, class_names=["a"]), "meta.json has other content"),
    "no labels": (lambda entry: (entry / "labels.npy").unlink(), "labels.npy cannot be read"),
    "other label": (lambda entry: overwrite(entry / "labels.npy", -8, b"\7"), "labels.npy has other values"),
    "checksums": (lambda entry: overwrite(entry / "checksums.npy", -4, b"\7\7"), "checksums.npy has other values"),
    "a file": (lambda entry: _replace(entry, Path.touch), ""),
    "a lost link": (lambda entry: _replace(entry, lambda path: path.symlink_to("gone")), ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_built_again_and_named(store, capsys, damage):
    before = np.array(make_glyphs(store).images)
    (entry,) = [p for p in store.iterdir() if p.is_dir()]
    change, words = DAMAGES[damage]
    change(entry)
    after = make_glyphs(store)
    assert np.array_equal(after.images, before) and after.labels is not None
    said = capsys.readouterr().err
    assert words in said and said.count("it is built again") == bool(words)


def test_a_large_entry_is_compared_as_it_is_read(store, monkeypatch):
    monkeypatch.setattr(image_dataset, "CHECKED_AT_ONCE", 0)
    before = np.array(make_glyphs(store).images)
    (entry,) = [p for p in store.iterdir() if p.is_dir()]
    DAMAGES["pixels"][0](entry)
    found = make_glyphs(store)
    assert np.array_equal(found.images[:38], before[:38])
    read = [lambda: found.images[38], lambda: found.images[-2:], lambda: found.images[..., 0], lambda: pixels_of(found)]
    for attempt in [*read, lambda: np.asarray(found.images), lambda: found.images[np.array([3, 38])]]:
        with pytest.raises(UserError, match=r"image 38 has other pixels.*removed: run the same command again"):
            attempt()
    assert np.array_equal(make_glyphs(store).images, before)


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_a_damaged_array_is_computed_again(store, damage, capsys):
    value, calls = np.arange(5.0), []
    compute = lambda: calls.append(1) or value
    for _ in range(2):
        assert np.array_equal(cache.load_or_compute({"kind": "test"}, compute, store), value)
    (path,) = store.rglob("array.npy")
    path.write_bytes(damage + path.read_bytes()[len(damage) :]) if damage else os.truncate(path, 100)
    assert np.array_equal(cache.load_or_compute({"kind": "test"}, compute, store), value) and len(calls) == 2
    assert "array.npy has other values than were written" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_or_full_disk_leaves_nothing(store, monkeypatch, stop):
    def draw(*_):
        yield np.zeros((10, 16, 16, 1), np.uint8)
        raise stop

    monkeypatch.setattr(glyphs, "_draw", draw)
    if isinstance(stop, OSError):
        with pytest.raises(UserError, match=r"No space left.*FASTGAN_CACHE"):
            make_glyphs(store)
    else:
        with pytest.raises(KeyboardInterrupt):
            make_glyphs(store)
    assert cache_entries(store) == []


def test_files_of_a_killed_process_are_removed(store):
    make_glyphs(store)
    (name,) = cache_entries(store)
    os.rename(store / name, store / f"{name}.999999.tmp")
    (store / "images-0123.lock").touch()
    (store / "images-0123.77.tmp").mkdir()
    (store / "images-4567.lock").touch()
    (store / "images-4567.88.tmp").mkdir()
    with lock(store / "images-4567.lock"):  # a process that writes it now
        make_glyphs(store)
    assert cache_entries(store) == [name, "images-4567.88.tmp"]


def test_an_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the data cache .*file.*FASTGAN_CACHE"):
        make_glyphs(tmp_path / "file" / "below")


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
def test_two_processes_build_an_entry_once(store, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_ask, args=(store, tmp_path / "log")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0] and (tmp_path / "log").read_text() == "built\n"
