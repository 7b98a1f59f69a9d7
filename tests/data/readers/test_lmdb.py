"""LMDB databases of image files."""

import os
import random
import sys

import pytest

from fastgan.data import isolated
from fastgan.data.images import Target, convert
from fastgan.errors import UserError
from tests.support.image_sources import encode, make_image, prepare_images, read_items

pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.fixture
def forking(monkeypatch):
    """Children that are forked: a hundred times cheaper than `spawn`, and without threads in the parent as good."""
    if sys.platform != "linux":
        pytest.skip("needs fork")
    monkeypatch.setattr(isolated, "START_METHOD", "fork")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Path of an LMDB file of 24 images."""
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path_factory.mktemp("lmdb") / "set.lmdb"
    with lmdb.open(str(path), subdir=False) as environment, environment.begin(write=True) as transaction:
        for number in range(24):
            transaction.put(b"%03d" % number, encode(make_image(number)))
    return path


def test_lmdb_files_are_in_the_order_of_the_keys(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    for name, keys in {"plain": [b"b", b"a"], "rosinality": [b"8-00000", b"16-00001", b"16-00000"]}.items():
        with lmdb.open(str(tmp_path / name)) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"length", b"2")
            for number, key in enumerate(keys):
                transaction.put(key, encode(make_image(number)))
    assert [item.name for item in read_items(tmp_path / "plain")[1]] == ["a", "b"]
    reader, found = read_items(tmp_path / "rosinality")  # the largest resolution only
    assert reader.notes == ["1 images of smaller resolutions than 16 were not read"]
    assert [item.data for item in found] == [encode(make_image(2)), encode(make_image(1))]


@pytest.mark.slow
def test_a_cut_database_is_an_error_and_not_the_end_of_the_process(database, tmp_path, capfd, forking):
    """LMDB maps the file: reading a page that is not there is SIGBUS."""
    whole, path = database.read_bytes(), tmp_path / "cut.lmdb"
    crashes = 0
    for keep in (0, 1, 4095, 4096, 8192, 12288, len(whole) // 2 // 4096 * 4096, len(whole) - 8192, len(whole) - 100):
        path.write_bytes(whole[:keep])
        assert prepare_images(path, "--resolution", "8", "--out", tmp_path / f"{keep}") in (2, 1)
        error = capfd.readouterr().err
        assert "error: " in error and "cut.lmdb" in error and "Traceback" not in error
        crashes += "SIGBUS" in error
    assert crashes >= 2


@pytest.mark.slow
def test_a_database_that_ends_a_process_is_named(database, tmp_path):
    path = tmp_path / "cut.lmdb"
    path.write_bytes(database.read_bytes()[:8192])
    with pytest.raises(UserError, match=r"cut\.lmdb is a damaged LMDB: reading .* ended a process by SIG(BUS|SEGV)"):
        read_items(path)


@pytest.mark.slow
def test_damaged_databases_give_images_or_one_line_errors(database, tmp_path, forking):
    """PNGs have checksums: what differs is noticed."""
    whole, path, rng = database.read_bytes(), tmp_path / "set.lmdb", random.Random(0)
    expected = {f"{n:03}": convert(encode(make_image(n)), Target((8, 8), 3), False).content for n in range(24)}
    for _ in range(60):
        places = [rng.randrange(len(whole)) for _ in range(rng.randrange(1, 4))]
        if rng.random() < 0.7:  # in the structure, at the beginning of each page
            places = [place // 4096 * 4096 + rng.randrange(24) for place in places]
        changed = bytearray(whole)
        for place in places:
            changed[place] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
        os.utime(path)
        try:
            found = {item.name: convert(item.data, Target((8, 8), 3), False) for item in read_items(path)[1]}
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            continue
        assert all(isinstance(each, str) or each.content == expected.get(name) for name, each in found.items())
        assert len(found) == 24
