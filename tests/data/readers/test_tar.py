"""Tar files: packed folders and WebDataset shards."""

import gzip
import io
import json
import os
import tarfile

import pytest

from fastgan.cli import dataset
from fastgan.data.readers import ReaderOptions, open_reader, tar
from fastgan.errors import UserError
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


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_file_that_is_cut_anywhere_is_an_error(tmp_path, mode, labelled):
    """A shard (labelled) and a packed folder, cut in headers, contents, padding and between members."""
    members = {}
    for number in range(4):
        members[f"{number}.png"] = encode(make_image(number, 8, 8))
        members |= {f"{number}.cls": str(number).encode()} if labelled else {}
    whole = write_tar(tmp_path / "whole.tar", members, mode).read_bytes()
    assert len(read_items(tmp_path / "whole.tar")[1]) == 4
    path, size = tmp_path / "cut.tar", len(whole)
    if mode == "w":
        size = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # the end mark and its padding follow
    for keep in sorted({*range(1, size, size // 40), *(range(512, size, 512) if mode == "w" else [])}):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"cut\.tar is cut or damaged after .*; get it again"):
            read_items(path)


def test_a_changed_byte_in_a_header_or_compressed_content_is_an_error(tmp_path):
    members = {f"{number}.png": encode(make_image(number, 8, 8)) for number in range(3)}
    for mode in ("w", "w:gz", "w:xz"):
        whole = write_tar(tmp_path / "set.tar", members, mode).read_bytes()
        for place in range(1100, 1400, 37) if mode == "w" else range(len(whole) // 2, len(whole) - 5, len(whole) // 9):
            changed = bytearray(whole)
            changed[place] ^= 16
            (tmp_path / "set.tar").write_bytes(changed)
            with pytest.raises(UserError, match=r"set\.tar is cut or damaged"):
                read_items(tmp_path / "set.tar")


def test_the_names_of_a_packed_folder_are_read_without_its_images(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "set.tar", {f"{number}.png": bytes(2**20) for number in range(10)})
    count = 0

    class Counted(io.FileIO):
        def readinto(self, buffer):
            nonlocal count
            count += (found := super().readinto(buffer))
            return found

    monkeypatch.setattr(tar, "open_path_or_url", lambda place: io.BufferedReader(Counted(place), 8192))
    assert open_reader(str(path), ReaderOptions()).names == [] and count < 11 * 3 * 8192 < path.stat().st_size / 30
    assert len(read_items(path)[1]) == 10 and count > path.stat().st_size


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_header_that_leads_back_does_not_repeat_the_file(tmp_path, mode):
    info = tarfile.TarInfo("1.png")
    info.pax_headers = {"size": "-1536"}  # the three blocks of its header and attributes
    with tarfile.open(tmp_path / "set.tar", mode, format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
        archive.addfile(info)
    with pytest.raises(UserError, match=r"set\.tar is cut or damaged after 1.png \((a header leads back|seeking back)"):
        read_items(tmp_path / "set.tar")


def test_two_tar_files_in_one_are_refused(tmp_path):
    one = write_tar(tmp_path / "set.tar", {"1.png": encode(make_image())})
    one.write_bytes(2 * one.read_bytes())
    with pytest.raises(UserError, match=r"data after the end mark: several tar files in one"):
        read_items(one)


def test_a_header_that_claims_gigabytes_is_refused_before_they_are_read(tmp_path):
    """A long name of 6 GB in a .tar.gz of 6 MB: here only the header, since nothing after it may be read."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE):
        info = tarfile.TarInfo("@LongLink")
        info.type, info.size = kind, 6 * 2**30
        (tmp_path / "bomb.tgz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)))
        with pytest.raises(UserError, match=r"claims 6,442,450,944 bytes|sparse"):
            read_items(tmp_path / "bomb.tgz")


def test_everything_in_a_shard_that_is_not_taken_is_counted(tmp_path, capsys):
    picture = encode(make_image())
    members = {
        "0.v1.png": picture, "0.cls": b"1",  # a dot in the name
        "1.a.png": picture, "1.png": picture, "1.b.jfif": picture, "1.cls": b"0",
        "2.png": picture, "2.cls": b"cat",
        "3.png": picture, "3.cls": b"-1",
        "4.png": picture, "4.json": b'{"label": 1}',
        "5.png": picture, "5.json": b'{"class": "dog"}',
        "6.png": picture, "6.cls": b"1", "6.json": b'{"label": 0}',
        "7.cls": b"1",
        "8.gif": picture[:4], "8.cls": b"1",
        "9.png": picture,
        "b.png": picture, "b.cls": b"",
        "c.png": picture, "c.cls": 101 * b"1",
    }  # fmt: skip
    path = write_tar(tmp_path / "set.tar", members)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.LNKTYPE, "9.png"
        archive.addfile(link)
    assert prepare_images(path, "--resolution", "8", "--out", tmp_path / "out") == dataset.SKIPPED_IMAGES
    assert open_images(tmp_path / "out", 8).labels.tolist() == [1, 0, 1]
    name = f"{path}:"
    assert dict(line.split("\t") for line in (tmp_path / "out.skipped.txt").read_text().splitlines()) == {
        f"{name}1.a.png": "is a further image of its sample; the png is taken",
        f"{name}1.b.jfif": "is a further image of its sample; the png is taken",
        f"{name}2": "has the label cat, not a class number from 0 to 999,999",
        f"{name}3": "has the label -1, not a class number from 0 to 999,999",
        f"{name}5": "has the label dog, not a class number from 0 to 999,999",
        f"{name}6": "has the label 1 in one file and 0 in another",
        f"{name}7.cls": "is a label without an image beside it",
        f"{name}8": "is not an image in PNG, JPEG, WebP, BMP, TIFF or PPM",
        f"{name}9": "has no label",
        f"{name}b": "has the label (empty), not a class number from 0 to 999,999",
        f"{name}c": "has the label (long), not a class number from 0 to 999,999",
        f"{name}a": "is a link or another special file in the archive; pack it as a file",
    }
    text = capsys.readouterr().out
    assert "skipped 12 images" in text and "  5 has the label ..., not a class number" in text
    assert prepare_images(path, "--resolution", "8", "--out", tmp_path / "all", "--no-labels") == dataset.SKIPPED_IMAGES
    assert len(open_images(tmp_path / "all", 8)) == 10


def test_a_shard_whose_labels_are_all_words_says_so(tmp_path, capsys):
    path = write_tar(tmp_path / "set.tar", {"0.png": encode(make_image()), "0.cls": b"cat"})
    assert prepare_images(path, "--resolution", "8", "--out", tmp_path / "out") == 2
    assert "none of its 1 images can be used" in (text := capsys.readouterr().err) and "has the label cat, not" in text


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


def test_a_damaged_shard_stops_the_preparation_and_is_named(tmp_path, capsys):
    write_tar(tmp_path / "0.tar", {"7.png": encode(make_image(7)), "7.cls": b"0"})
    second = write_tar(tmp_path / "1.tar", {f"{n}.png": encode(make_image(n)) for n in range(3)})
    os.truncate(second, 2600)
    assert prepare_images(tmp_path / "{0,1}.tar", "--resolution", "8", "--out", tmp_path / "out") == 2
    assert "1.tar is cut or damaged after" in capsys.readouterr().err and not (tmp_path / "out").exists()
