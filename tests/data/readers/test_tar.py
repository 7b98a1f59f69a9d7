"""Tar files: packed folders and WebDataset shards."""

import json
import os

import pytest

from fastgan.cli import dataset
from tests.support.image_sources import encode, make_image, open_images, prepare_images, read_items, write_tar

pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.mark.parametrize("ending", [".tgz", ".tar"])
def test_sub_folders_of_a_packed_folder_are_classes(tmp_path, ending):
    members = {
        "./set/readme.txt": b"",
        "./set/dog/b.1.png": encode(make_image(0)),
        "./set/dog/b.2.png": encode(make_image(1)),
    }
    members |= {"./set/cat/a.png": encode(make_image(2)), "./set/cat/._a.png": b""}
    path = write_tar(tmp_path / f"set{ending}", members, "w:gz" if ending == ".tgz" else "w")
    source, found = read_items(path)
    assert [item.label for item in found] == [1, 1, 0] and source.class_names == ["cat", "dog"]
    assert [item.data for item in found] == [encode(make_image(number)) for number in range(3)]
    prepare_images(path, "--resolution", "16x8", "--out", tmp_path / "out")
    assert open_images(tmp_path / "out").labels.tolist() == [1, 1, 0]


def test_dataset_json_in_a_packed_folder_gives_the_labels(tmp_path):
    labels = json.dumps({"labels": [["a/0.png", 1], ["a/1.png", 0]], "class_names": ["x", "y"]}).encode()
    members = {f"a/{number}.png": encode(make_image(number)) for number in range(2)} | {"dataset.json": labels}
    source, found = read_items(write_tar(tmp_path / "set.tar", members))
    assert [item.label for item in found] == [1, 0] and source.class_names == ["x", "y"]


def test_damage_in_a_packed_folder_is_an_item(tmp_path):
    members = {f"{kind}/{number}.png": encode(make_image(number)) for kind in "ab" for number in range(4)}
    path = write_tar(tmp_path / "set.tgz", members, "w:gz")
    path.write_bytes(path.read_bytes()[:-400])
    found = read_items(path)[1]
    assert 1 < len(found) < 9 and "is damaged after" in str(found[-1].data)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_webdataset_shards_are_read_in_order(tmp_path, mode):
    ending = ".tar.gz" if mode == "w:gz" else ".tar"
    for shard in range(2):
        members = {"__meta__.json": b"{}"}
        for number in range(2):
            members[f"dir/{shard}{number}.jpg"] = encode(make_image(2 * shard + number), "JPEG")
            members[f"dir/{shard}{number}.cls"] = str(number).encode()
        write_tar(tmp_path / f"set-00{shard}{ending}", members, mode)
    for spec in (f"set-{{000..001}}{ending}", f"set-*{ending}", f"set-{{000,001}}{ending}"):
        found = read_items(tmp_path / spec)[1]
        assert [item.label for item in found] == [0, 1, 0, 1]
        assert [item.data for item in found] == [encode(make_image(n), "JPEG") for n in range(4)]
    (tmp_path / "list").write_text(str(tmp_path / f"set-*{ending}"))
    assert len(read_items(f"@{tmp_path / 'list'}")[1]) == 4


def test_a_damaged_shard_is_skipped_and_the_next_one_read(tmp_path, capsys):
    first = write_tar(tmp_path / "0.tar", {f"{n}.png": encode(make_image(n)) for n in range(3)})
    os.truncate(first, 2600)
    write_tar(tmp_path / "1.tar", {"7.png": encode(make_image(7))})
    assert (
        prepare_images(tmp_path / "{0,1}.tar", "--resolution", "8", "--out", tmp_path / "out") == dataset.SKIPPED_IMAGES
    )
    assert len(open_images(tmp_path / "out", 8)) >= 2
    assert "is damaged after" in (tmp_path / "out.skipped.txt").read_text()
