"""The feature extractor Inception-v3."""

import numpy as np
import pytest

from fastgan.errors import UserError
from tests.support.extras import needs_fidelity

pytestmark = pytest.mark.slow  # large networks


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """Random weights in the format of torch-fidelity, scaled so that activations neither vanish nor explode."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return path


@needs_fidelity
def test_metrics_with_inception_equal_those_of_torch_fidelity(inception_weights, tmp_path):
    """Compared with torch_fidelity.calculate_metrics on the same images."""
    import torch
    import torch_fidelity

    from fastgan.data import ImageDataset
    from fastgan.metrics.inception import Inception
    from fastgan.metrics.reference import ImageSubset, Reference

    rng = np.random.default_rng(0)
    fake, real = (rng.integers(low, 256, (count, 16, 16, 1), np.uint8) for low, count in ((0, 4), (60, 5)))

    class InColour(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = torch.from_numpy(images.repeat(3, 3)).movedim(3, 1)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index]

    theirs = torch_fidelity.calculate_metrics(
        input1=InColour(fake), input2=InColour(real), isc=True, fid=True, prc=True, isc_splits=4,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(inception_weights),
        cuda=False, cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    extractor = Inception(inception_weights)
    dataset = ImageDataset(real, None, [], "random", {"images": "random", "labels": ""})
    subset = ImageSubset(dataset, np.arange(5), "")
    features = subset.features(extractor, progress=False, cache_dir=tmp_path)
    assert features.shape == (5, 2048) and features.dtype == np.float32 and not extractor.original
    reference = Reference(subset, extractor, features, cache_dir=tmp_path)
    ours = reference.measure(("fid", "is", "pr-inception", "kid-inception"), extractor(fake))
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3) and ours["fid"] > 0
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    found = ours["precision_inception"], ours["recall_inception"]
    assert found == pytest.approx((theirs["precision"], theirs["recall"]))
    assert np.isfinite(ours["kid_inception"])


@needs_fidelity
@pytest.mark.parametrize("content", ["text", "other weights", "code"])
def test_other_files_than_inceptions_weights_are_refused(content, tmp_path):
    import torch

    from fastgan.metrics.inception import Inception

    path = tmp_path / "file.pth"
    if content == "text":
        path.write_text("weights")
    else:
        torch.save({"weight": torch.zeros(1)} if content == "other weights" else {"weight": Executed()}, path)
    with pytest.raises(UserError, match=r"file\.pth: cannot be read as Inception's weights .*; download https"):
        Inception(path)
    assert not executed


executed = []


def execute(what):
    executed.append(what)


class Executed:
    """Object whose pickle runs code when it is loaded."""

    def __reduce__(self):
        return execute, (1,)
