"""LMDB databases of image files."""

import pytest

from tests.support.image_sources import encode, make_image, read_items

pytestmark = pytest.mark.usefixtures("one_cache")


def test_lmdb_files_are_in_the_order_of_the_keys(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    for name, keys in {"plain": [b"b", b"a"], "rosinality": [b"8-00000", b"16-00001", b"16-00000"]}.items():
        with lmdb.open(str(tmp_path / name)) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"length", b"2")
            for number, key in enumerate(keys):
                transaction.put(key, encode(make_image(number)))
    assert [item.name for item in read_items(tmp_path / "plain")[1]] == ["a", "b"]
    found = read_items(tmp_path / "rosinality")[1]  # the largest resolution only
    assert [item.data for item in found] == [encode(make_image(2)), encode(make_image(1))]
