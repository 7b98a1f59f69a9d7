"""Files in a zip: names, sizes and damage that do no harm."""

import json
import random
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgan.data import open_dataset
from fastgan.data.images import Target, convert
from fastgan.data.readers import open_reader
from fastgan.errors import UserError
from tests.support.damage import mutate
from tests.support.image_sources import (
    ZIP_NAMES,
    encode,
    make_image,
    prepare_images,
    read_files,
    read_items,
    write_stylegan_zip,
    write_tar,
    zip_labels,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


def test_names_with_parent_folders_in_a_zip_write_nothing_outside(tmp_path):
    (tmp_path / "below").mkdir()
    path = tmp_path / "below" / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../evil.png", "/tmp/evil.png", "..\\worse.png", "a/../../evil.png"):
            archive.writestr(name, encode(make_image()))
    prepare_images(path, "--resolution", "8", "--out", tmp_path / "below" / "out.zip", "--no-labels")
    assert sorted(read_files(tmp_path)) == ["below/evil.zip", "below/out.zip"]
    with zipfile.ZipFile(tmp_path / "below" / "out.zip") as archive:
        assert all(".." not in name and not name.startswith("/") for name in archive.namelist())


def test_a_member_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("fastgan.data.image_files.MAX_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", encode(make_image(0)))
        archive.writestr("1.png", bytes(1_000_000))
    found = read_items(tmp_path / "x.zip")[1]
    assert isinstance(found[0].data, bytes) and "MiB, more than" in str(found[1].data)


def test_backslashes_in_a_zip_are_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for kind in ("cat", "dog"):
            archive.writestr(f"set\\{kind}\\1.png", encode(make_image()))
    reader, found = read_items(tmp_path / "x.zip")
    assert reader.class_names == ["cat", "dog"] and [item.data for item in found] == 2 * [encode(make_image())]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(2):
            archive.writestr("1.png", encode(make_image(number)))
    with pytest.raises(UserError, match=r"several files named 1\.png"):
        read_items(tmp_path / "x.zip")


def test_a_zip_whose_directory_is_short_is_refused(small_zip, tmp_path):
    """A comment that claims to be longer hides the entries after it."""
    changed, entry = bytearray(small_zip), small_zip.index(b"PK\1\2")
    changed[entry + 32 : entry + 34] = (46 + len(ZIP_NAMES[0])).to_bytes(2, "little")
    (tmp_path / "x.zip").write_bytes(changed)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert len(archive.namelist()) == 3
    with pytest.raises(UserError, match=r"x\.zip is damaged: its directory has fewer or more files than it claims"):
        read_items(tmp_path / "x.zip")


def test_a_zip_of_more_files_than_16_bits_count_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(2**16):
            archive.writestr(f"{number}.png", b"")
    assert len(open_reader(str(tmp_path / "x.zip")).names) == 2**16


@pytest.mark.parametrize("pack", ["folder", "zip", "tar"])
def test_every_file_that_is_not_taken_is_counted(tmp_path, pack, capsys):
    files = {"1.png": encode(make_image()), "2.gif": b"GIF89a", "3.avif": b"", "4.jfif": encode(make_image(1), "JPEG")}
    files |= {"readme.txt": b"", "noname": b"", ".hidden.png": b"", "__MACOSX/1.png": b""}
    source = tmp_path / ("in" if pack == "folder" else f"in.{pack}")
    if pack == "tar":
        write_tar(source, files)
    for name, content in files.items() if pack == "folder" else ():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    if pack == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    assert prepare_images(source, "--resolution", "8", "--out", tmp_path / "out") == 1
    text = capsys.readouterr().out
    assert "2 images, 8x8 RGB" in text and "skipped 2 images" in text
    assert "  2 is not an image in PNG, JPEG, WebP, BMP, TIFF or PPM" in text
    assert "note: 2 other files were not read, no images by their names: 1 .txt, 1 without suffix" in text
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["left_out"] == {
        "is not an image in PNG, JPEG, WebP, BMP, TIFF or PPM": 2
    }


@pytest.fixture(scope="module")
def small_zip(tmp_path_factory):
    return write_stylegan_zip(
        tmp_path_factory.mktemp("zip") / "x.zip", zip_labels([1, 0, 1]), "", zipfile.ZIP_DEFLATED
    ).read_bytes()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms())
def test_damaged_zips_give_one_line_errors(small_zip, tmp_path, rng):
    path = tmp_path / f"{random.getrandbits(40):x}.zip"
    path.write_bytes(mutate(small_zip, rng))
    for attempt in (
        lambda: [convert(item.data, Target((8, 8), 3), False) for item in read_items(path)[1]],
        lambda: open_dataset(str(path), 8, 3, cache_dir=tmp_path / "cache", progress=False),
    ):
        try:
            attempt()
        except UserError as error:
            assert "\n" not in str(error)
