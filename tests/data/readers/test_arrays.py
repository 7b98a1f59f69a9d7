"""Arrays of images: .npy, .npz, and the IDX files of MNIST."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgan.cli import dataset
from fastgan.data import open_dataset
from fastgan.data.readers import ReaderOptions, arrays, open_reader
from fastgan.errors import UserError
from tests.support.damage import mutate

COUNT = 5


def images(channels: int | None = None, height=6, width=8) -> np.ndarray:
    shape = (COUNT, height, width) if channels is None else (COUNT, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def idx(array: np.ndarray, kind=0x08) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, split: str, pixels: np.ndarray, labels: np.ndarray, zipped: bool) -> None:
    folder.mkdir(exist_ok=True)
    for name, array in ((f"{split}-images-idx3-ubyte", pixels), (f"{split}-labels-idx1-ubyte", labels)):
        content = idx(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)


def read(path, **columns) -> tuple[np.ndarray, list[int | None]]:
    source = open_reader(str(path), ReaderOptions(**columns))
    found = list(source.items(range(source.count)))
    return np.stack([np.asarray(item.data) for item in found]), [item.label for item in found]


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("channels_first", [False, True])
def test_arrays_of_any_layout_are_read(tmp_path, channels, channels_first):
    pixels = images(channels)
    stored = pixels.transpose(0, 3, 1, 2) if channels_first and channels else pixels
    np.save(tmp_path / "a.npy", stored)
    found, labels = read(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, pixels.squeeze(3) if channels == 1 else pixels)
    assert labels == [None] * COUNT


@pytest.mark.parametrize(("name", "beside"), [("a.npy", "a-labels.npy"), ("images.npy", "labels.npy")])
def test_labels_of_an_npy_are_in_a_file_beside_it(tmp_path, name, beside):
    np.save(tmp_path / name, images())
    np.save(tmp_path / beside, np.array([[2], [0], [-1], [1], [0]]))  # a column, and one without a label
    assert read(tmp_path / name)[1] == [2, 0, None, 1, 0]


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("x_train", "y_train", "x_test", "y_test"), {}),
        (("train_images", "train_labels", "test_images", "test_labels"), {}),
        (("images", "labels"), {}),
        (("arr_0", "arr_1"), {}),
        (("foo", "bar"), {"image_column": "foo", "label_column": "bar"}),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_npz_has_images_and_labels(tmp_path, names, columns, split):
    pixels = {"train": images(3), "test": 255 - images(3)}
    labels = {"train": [0, 1, 2, 0, 1], "test": [1, 1, 1, 1, 0]}
    stored = dict(zip(names, (pixels["train"], labels["train"], pixels["test"], labels["test"]), strict=False))
    np.savez_compressed(tmp_path / "a.npz", **stored)
    has = split if len(names) == 4 else "train"
    found, numbers = read(tmp_path / "a.npz", split=split, **columns)
    np.testing.assert_array_equal(found, pixels[has])
    assert numbers == labels[has]


def test_arrays_that_may_be_labels_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", images=images(), kinds=np.arange(COUNT))
    assert "not read: kinds; --label-column" in open_reader(str(tmp_path / "a.npz")).notes[0]


def test_words_as_labels_are_class_names(tmp_path):
    np.savez(tmp_path / "a.npz", images=images(), labels=np.array(["dog", "cat", "dog", "emu", "cat"]))
    source = open_reader(str(tmp_path / "a.npz"))
    assert (source.labels, source.class_names) == ([1, 0, 1, 2, 0], ["cat", "dog", "emu"])


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_prepared_from_its_folder_or_one_of_its_files(tmp_path, zipped):
    pixels, labels = images(height=28, width=28), np.array([3, 0, 2, 1, 3], np.uint8)
    write_mnist(tmp_path / "mnist", "train", pixels, labels, zipped)
    write_mnist(tmp_path / "mnist", "t10k", 255 - pixels, labels[::-1].copy(), zipped)
    (file,) = (tmp_path / "mnist").glob("t10k-images*")
    for source, split, expected, numbers in (
        (tmp_path / "mnist", "train", pixels, labels),
        (tmp_path / "mnist", "test", 255 - pixels, labels[::-1]),
        (file, "train", 255 - pixels, labels[::-1]),
    ):
        out = tmp_path / f"{source.name}-{split}"
        options = ["--resolution", "28", "--channels", "1", "--workers", "1", "--split", split, "--out", str(out)]
        assert dataset.main([str(source), *options]) == 0
        prepared = open_dataset(str(out), 28, 1)
        np.testing.assert_array_equal(prepared.images[:, :, :, 0], expected)
        np.testing.assert_array_equal(prepared.labels, numbers)
        assert prepared.class_names == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (images().astype(np.float32), r"values of type float32; images must be uint8"),
        (images()[0], r"the shape \[6, 8\]; images must be"),
        (images(2), r"the shape \[5, 6, 8, 2\]"),
        (images()[:0], r"the shape \[0, 6, 8\]"),
    ],
)
def test_an_array_that_does_not_hold_images_is_refused(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=words):
        open_reader(str(tmp_path / "a.npy"))


def test_labels_arrays_and_splits_that_do_not_match_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=images(), labels=np.arange(3), foo=1)
    with pytest.raises(UserError, match=r"labels of shape \[3\].*must be \[5\]"):
        open_reader(str(tmp_path / "a.npz"))
    with pytest.raises(UserError, match=r"--image-column bar: not in .*a.npz, which has images, labels, foo"):
        open_reader(str(tmp_path / "a.npz"), ReaderOptions(image_column="bar"))
    np.savez(tmp_path / "b.npz", foo=images())
    with pytest.raises(UserError, match=r"has the arrays foo; name the images with --image-column"):
        open_reader(str(tmp_path / "b.npz"))
    write_mnist(tmp_path / "mnist", "t10k", images(), np.zeros(COUNT, np.uint8), False)
    with pytest.raises(UserError, match=r"has images of t10k; give one of these files, or another --split"):
        open_reader(str(tmp_path / "mnist"))


def test_pickled_objects_are_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a.npy cannot be read"):
        open_reader(str(tmp_path / "a.npy"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["a.npy", "a.npz", "a-images-idx3-ubyte", "a-images-idx3-ubyte.gz"]), st.randoms())
def test_damaged_arrays_give_one_line_errors(tmp_path, name, rng):
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, images())
    elif name == "a.npz":
        np.savez_compressed(path, images=images(), labels=np.arange(COUNT))
    else:
        path.write_bytes(gzip.compress(idx(images()), mtime=0) if name.endswith(".gz") else idx(images()))
    path.write_bytes(mutate(path.read_bytes(), rng, head=200))
    try:
        read(path)
    except UserError as error:
        assert "\n" not in str(error)


def test_training_refers_arrays_to_preparation(tmp_path):
    np.save(tmp_path / "a.npy", images())
    with pytest.raises(UserError, match=r"prepare it first, with python -m fastgan.dataset"):
        open_dataset(str(tmp_path / "a.npy"), 8, 1)


def test_no_more_values_are_read_than_the_header_says(tmp_path):
    """A header of 2^96 values does not fill the memory."""
    (tmp_path / "a-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(100))
    with pytest.raises(UserError, match=r"100 bytes of values, its header says"):
        arrays.load_arrays(tmp_path / "a-images-idx3-ubyte", ReaderOptions())
