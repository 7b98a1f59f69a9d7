"""Features of a data set: cached, and the same for any number of processes."""

import numpy as np
import pytest

from fastgan.data import glyphs
from tests.support.extras import needs_network

pytestmark = pytest.mark.slow  # large networks


@needs_network
def test_features_of_a_data_set_are_cached(extractor, tmp_path):
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
    others = extract_features(data, np.arange(4, 8), Counting(), **options)  # other images of the data set
    assert calls == [4, 4] and not np.array_equal(others, found)
    other = glyphs.render(16, count=8, seed=1, progress=False, cache_dir=tmp_path)
    extract_features(other, np.arange(4), Counting(), **options)
    assert calls == [4, 4, 4]
    for path in tmp_path.glob("features-*/array.npy"):
        path.write_bytes(path.read_bytes()[:100])  # damaged entries are computed again
    np.testing.assert_array_equal(extract_features(data, np.arange(4), Counting(), **options), found)
    assert calls == [4, 4, 4, 4] and not list(tmp_path.glob("*.tmp"))


@needs_network
def test_features_do_not_depend_on_the_number_of_processes(extractor):
    """Blocks have the same bounds for any number of processes."""
    from fastgan.distributed import Ranks
    from fastgan.metrics.efficientnet import EfficientNet
    from fastgan.metrics.parallel import BLOCK, compute_in_blocks

    assert BLOCK % extractor.batch == 0
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    extractor = EfficientNet(batch=2)
    apart = [extractor(images[start : start + 2]) for start in (0, 2, 4)]
    assert np.array_equal(np.concatenate(apart), extractor(images))
    assert compute_in_blocks(Ranks(), 5, lambda start, stop: images[start:stop]).tobytes() == images.tobytes()
