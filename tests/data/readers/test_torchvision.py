"""Data sets of torchvision."""

import functools

import numpy as np
import pytest

from tests.support.image_sources import open_images, prepare_images

pytestmark = pytest.mark.usefixtures("one_cache")


def test_torchvision_images_labels_and_class_names(monkeypatch, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    small = functools.partial(torchvision.datasets.FakeData, size=5, image_size=(3, 8, 8), num_classes=3)

    class Small(torchvision.datasets.FakeData):
        classes = ("ant", "bee", "cat")

        def __init__(self, root, train=True, download=False):
            super().__init__(**small.keywords)
            assert not train and download

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Small)
    assert prepare_images("torchvision:CIFAR10", "--split", "test", "--resolution", "8", "--out", tmp_path / "out") == 0
    found, expected = open_images(tmp_path / "out", 8), [small()[i] for i in range(5)]
    assert found.class_names == ["ant", "bee", "cat"] and found.labels.tolist() == [
        int(expected[i][1]) for i in range(5)
    ]
    assert np.array_equal(found.images[3], np.asarray(expected[3][0]))
