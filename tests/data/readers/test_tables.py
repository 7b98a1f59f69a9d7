"""Tables of image files."""

import pytest

from fastgan.data.readers import ReaderOptions, open_reader
from fastgan.errors import UserError
from tests.support.image_sources import encode, make_image, read_items

pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.mark.parametrize(
    ("text", "columns", "labels", "names"),
    [
        ("file,label\n1.png,cat\nsub/2.png,ant\n", {}, [1, 0], ["ant", "cat"]),
        ("label,Path\n3,1.png\n0,sub/2.png\n", {}, [3, 0], None),
        ("x,y,label\n1.png,b,1\nsub/2.png,a,1\n", {"image_column": "x", "label_column": "y"}, [1, 0], ["a", "b"]),
        ("image\n1.png\nsub/2.png\n", {}, [None, None], None),
        ("\n , \nfile,label\n\n1.png,1,,\nsub/2.png,0\n", {}, [1, 0], None),  # blank lines, empty cells
    ],
)
def test_a_table_gives_files_and_labels(tmp_path, text, columns, labels, names):
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("1.png", "sub/2.png")):
        (tmp_path / name).write_bytes(encode(make_image(number)))
    (tmp_path / "table.csv").write_text(text)
    source, found = read_items(tmp_path / "table.csv", **columns)
    assert [item.label for item in found] == labels and source.class_names == names
    assert [item.data for item in found] == [encode(make_image(0)), encode(make_image(1))]


@pytest.mark.parametrize("text", ["", "\n\n", "a,b\n", "a\n\xff", "file\n1.png\n", 'file\n"1.png\n2.png\n'])
def test_an_invalid_table_is_refused(tmp_path, text):
    (tmp_path / "table.csv").write_bytes(text.encode("latin-1"))
    columns = ReaderOptions(label_column="missing")
    with pytest.raises(UserError, match=r"has no rows|not a table|--label-column missing"):
        open_reader(str(tmp_path / "table.csv"), columns)


def test_contradictions_in_a_table_are_refused(tmp_path):
    for text, words in (
        ("file,label\n1.png,cat\n1.png,dog\n", "gives 1.png the labels cat and dog"),
        ("file,label,label\n1.png,cat,dog\n", "several columns named label"),
    ):
        (tmp_path / "table.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            open_reader(str(tmp_path / "table.csv"))


def test_a_row_with_too_many_cells_is_counted(tmp_path):
    (tmp_path / "a").write_bytes(encode(make_image()))
    (tmp_path / "table.csv").write_text("file,label\na,b.png,cat\na,0\n")
    first, second = read_items(tmp_path / "table.csv")[1]
    assert str(first.data) == "is in a row of 3 cells, but the header has 2" and second.data == encode(make_image())


def test_columns_that_may_be_labels_are_named(tmp_path):
    (tmp_path / "table.csv").write_text("file,kind,\n1.png,cat,\n")
    assert open_reader(str(tmp_path / "table.csv")).notes == [
        "no classes, as these were not read: kind; --label-column takes one of them"
    ]
    assert not open_reader(str(tmp_path / "table.csv"), ReaderOptions(label_column="kind")).notes
