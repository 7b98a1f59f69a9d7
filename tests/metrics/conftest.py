"""Fixtures of the tests of metrics."""

import pytest


@pytest.fixture(scope="module")
def extractor():
    from fastgan.metrics.efficientnet import EfficientNet

    return EfficientNet()
