"""Data sets of Hugging Face."""

import os
import random
import sys
from pathlib import Path

import pytest

from fastgan.data import isolated
from fastgan.data.images import Target, convert
from fastgan.errors import UserError
from tests.support.damage import damage_one
from tests.support.image_sources import encode, make_image, read_files, read_items

pytestmark = pytest.mark.usefixtures("one_cache")


def save(folder: Path) -> None:
    """A set of three pictures of two kinds, as `save_to_disk` writes it."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"picture": [{"bytes": encode(make_image(n)), "path": None} for n in range(3)], "kind": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))


def test_hugging_face_images_labels_and_class_names(tmp_path):
    save(tmp_path / "saved")
    source, found = read_items(f"hf:{tmp_path / 'saved'}")
    assert source.class_names == ["ant", "bee"] and [item.label for item in found] == [1, 0, 1]
    assert [item.data for item in found] == [encode(make_image(n)) for n in range(3)]
    with pytest.raises(UserError, match="--label-column other"):
        read_items(f"hf:{tmp_path / 'saved'}", label_column="other")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_damaged_folders_give_images_or_one_line_errors(tmp_path, monkeypatch):
    """Arrow ends the process on some of them."""
    save(tmp_path / "saved")
    monkeypatch.setattr(isolated, "START_METHOD", "fork")
    folder, rng = tmp_path / "saved", random.Random(0)
    whole = read_files(folder)
    spec, errors = f"hf:{folder}", 0
    for _ in range(25):
        damage_one(folder, whole, rng)
        try:
            reader, found = read_items(spec)
        except UserError as error:
            assert "\n" not in str(error) and spec in str(error)
            errors += 1
            continue
        for item in found:
            convert(item.data, Target((8, 8), 3), False)
    assert errors > 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_in_a_folder_is_refused(tmp_path):
    save(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").unlink()
    os.mkfifo(tmp_path / "saved" / "state.json")
    with pytest.raises(UserError, match="not a regular file"):
        read_items(f"hf:{tmp_path / 'saved'}")
