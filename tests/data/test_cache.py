"""Cache: entries are complete or absent, and built once."""

import errno
import hashlib
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastgan.data import cache, glyphs
from fastgan.errors import UserError
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
    assert found.digests["images"] == hashlib.sha256(found.images.tobytes()).hexdigest()
    assert found.digests["labels"] == hashlib.sha256(found.labels.tobytes()).hexdigest()
    assert make_glyphs(store).digests == found.digests  # from the cache


@pytest.mark.parametrize("damage", ["cut", "no meta", "no labels", "no digests"])
def test_a_damaged_entry_is_built_again(store, damage):
    before = np.array(make_glyphs(store).images)
    (entry,) = [p for p in store.iterdir() if p.is_dir()]
    if damage == "cut":
        os.truncate(entry / "images.npy", 1000)
    elif damage == "no digests":  # as earlier versions left it
        meta = json.loads((entry / "meta.json").read_text())
        del meta["digests"]
        (entry / "meta.json").write_text(json.dumps(meta))
    else:
        (entry / {"no meta": "meta.json", "no labels": "labels.npy"}[damage]).unlink()
    after = make_glyphs(store)
    assert np.array_equal(after.images, before) and after.labels is not None


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
    make_glyphs(store)
    assert cache_entries(store) == [name]


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
