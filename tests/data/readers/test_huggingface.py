"""Data sets of Hugging Face."""

import pytest

from fastgan.errors import UserError
from tests.support.image_sources import encode, make_image, read_items

pytestmark = pytest.mark.usefixtures("one_cache")


def test_hugging_face_images_labels_and_class_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"picture": [{"bytes": encode(make_image(n)), "path": None} for n in range(3)], "kind": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    source, found = read_items(f"hf:{tmp_path / 'saved'}")
    assert source.class_names == ["ant", "bee"] and [item.label for item in found] == [1, 0, 1]
    assert [item.data for item in found] == [encode(make_image(n)) for n in range(3)]
    with pytest.raises(UserError, match="--label-column other"):
        read_items(f"hf:{tmp_path / 'saved'}", label_column="other")
