"""Fixtures of the tests of metrics."""

import pytest


@pytest.fixture(scope="module")
def extractor():
    from fastgan.metrics.efficientnet import EfficientNet

    return EfficientNet()


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory):
    """A file of random weights that is laid out like torchvision's of VGG-16."""
    import torch

    from fastgan.metrics import registry

    tensors, before, random = {}, 3, torch.Generator().manual_seed(0)
    for number, width in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (64,) * 2 + (128,) * 2 + (256,) * 3 + (512,) * 6, strict=True
    ):
        weight = torch.randn(width, before, 3, 3, generator=random) * (2 / (9 * before)) ** 0.5
        tensors[f"features.{number}.weight"] = weight
        tensors[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=random)
        before = width
    path = tmp_path_factory.mktemp("vgg") / registry.VGG_FILE
    torch.save(tensors | {"classifier.0.bias": torch.zeros(3)}, path)
    return path
