"""Labels in dataset.json: every variant in use, and mistakes."""

import json
import shutil
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgan.cli import dataset
from fastgan.data.readers import open_reader
from fastgan.errors import UserError
from tests.support.image_sources import (
    ZIP_NAMES,
    encode,
    make_image,
    open_images,
    prepare_images,
    write_stylegan_zip,
    write_tar,
    zip_labels,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


@pytest.mark.parametrize("prefix", ["", "ffhq/", "a/b/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, None),
        ("none", None),
        ([], None),
        (zip_labels([2, 0, 1]), [2, 0, 1]),
        (zip_labels([2.0, 0.0, 1.0]), [2, 0, 1]),
        (zip_labels([[2], [0], [1]]), [2, 0, 1]),
        (zip_labels([[0, 0, 1], [1, 0, 0], [0, 1, 0]]), [2, 0, 1]),
        (zip_labels([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), [2, 0, 1]),
        (zip_labels([[0.3, 0.1], [0.5, -1.0], [0.0, 1.0]]), None),  # poses of cameras, attributes
        (dict(zip_labels([1, 1, 0])), [1, 1, 0]),
        ([*zip_labels([1, 1, 0]), ["00000/gone.png", 5]], [1, 1, 0]),
        ([[name.replace("/", "\\"), 1] for name in ZIP_NAMES], [1, 1, 1]),
    ],
)
def test_every_variant_of_labels_is_read(tmp_path, labels, expected, prefix, compression):
    path = write_stylegan_zip(tmp_path / "x.zip", labels, prefix, compression)
    found = open_images(path, 8)
    assert len(found) == 3 and (found.labels if expected is None else found.labels.tolist()) == expected


def test_names_may_start_with_the_shared_folder(tmp_path):
    labels = [[f"all/{name}", number] for number, name in enumerate(ZIP_NAMES)]
    assert open_images(write_stylegan_zip(tmp_path / "x.zip", labels, "all/"), 8).labels.tolist() == [0, 1, 2]


def test_training_refuses_images_without_a_label_and_preparation_skips_them(tmp_path):
    path = write_stylegan_zip(tmp_path / "x.zip", zip_labels([1, 1, 0])[:2])
    with pytest.raises(UserError, match=r"no label for 00000/img00000002.png"):
        open_images(path, 8)
    assert prepare_images(path, "--resolution", "8", "--out", tmp_path / "out") == dataset.SKIPPED_IMAGES
    assert open_images(tmp_path / "out", 8).labels.tolist() == [1, 1]


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path, capsys):
    labels = [*zip_labels([1, 1, 0])[:2], ["gone.png", 1]]
    path = write_stylegan_zip(tmp_path / "x.zip", labels, "\x1b[2J\n/")
    with pytest.raises(UserError, match=r"zip:\\x1b\[2J\\n/dataset.json has no label for .*/img00000002.png") as error:
        open_images(path, 8)
    assert str(error.value).isprintable()
    assert r"zip:\x1b[2J\n/dataset.json has labels of 1 images that do not exist" in capsys.readouterr().err


def test_a_zip_may_have_class_names(tmp_path):
    found = open_images(
        write_stylegan_zip(tmp_path / "x.zip", zip_labels([1, 1, 0]), class_names=["ant", "bee", "cat"]), 8
    )
    assert found.class_names == ["ant", "bee", "cat"]


def test_labels_with_a_huge_gap_are_refused(tmp_path, capsys):
    (tmp_path / "1.png").write_bytes(encode(make_image()))
    table, archive = tmp_path / "table.csv", tmp_path / "set.zip"
    table.write_text("file,label\n1.png,0\n1.png,999999\n")
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(2):
            file.writestr(f"{number}.png", encode(make_image(number, 8, 8)))
        file.writestr("dataset.json", json.dumps({"labels": [["0.png", 0], ["1.png", 999_999]]}))
    members = {f"{number}.{ending}": content for number in range(2) for ending, content in (
        ("png", encode(make_image())), ("cls", str(999_999 * number).encode())
    )}  # fmt: skip
    shard = write_tar(tmp_path / "set.tar", members)
    for source in (table, archive, shard):
        options = ["--resolution", "16x8", "--workers", "1", "--enlarge", "--out", str(tmp_path / "out")]
        assert dataset.main([str(source), *options]) == 2
        assert "a label is 999999, but there are" in capsys.readouterr().err
        shutil.rmtree(tmp_path / "out.unfinished", ignore_errors=True)
    with pytest.raises(UserError, match="a label is 999999"):
        open_images(archive, 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": [*zip_labels([2, 0, 1]), [ZIP_NAMES[0], 1]]}, f"{ZIP_NAMES[0]} has the labels 2 and 1; remove"),
        ('{"labels": {"0.png": 1, "0.png": 2}}', "gives 0.png two values; remove one"),
        ('{"labels": null, "labels": [["a.png", 1]]}', "gives labels two values"),
    ],
)
def test_contradictory_labels_are_refused(tmp_path, content, words):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ZIP_NAMES:
            archive.writestr(name, encode(make_image()))
        archive.writestr("dataset.json", content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words):
        open_reader(str(path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", *ZIP_NAMES]),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", *ZIP_NAMES]), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_random_labels_are_read_or_give_a_one_line_error(tmp_path, labels):
    path = write_stylegan_zip(tmp_path / "x.zip", labels)
    try:
        open_reader(str(path))
    except UserError as error:
        assert "\n" not in str(error)
