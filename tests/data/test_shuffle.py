"""Order of the training images and mirroring."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan.data import ShuffledStream
from fastgan.data.shuffle import CoinFlips


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 50), batch=st.integers(1, 70), seed=st.integers(0, 2**40))
def test_every_epoch_visits_every_image_once(size, batch, seed):
    stream = ShuffledStream(size, seed)
    order = np.concatenate([stream.take(start, batch) for start in range(0, 3 * size, batch)])
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 50), count=st.integers(0, 70), starts=st.lists(st.integers(0, 10**6), min_size=1, max_size=8)
)
def test_indices_depend_on_the_position_only(size, count, starts):
    stream = ShuffledStream(size, seed=3)
    for start in starts:
        indices = stream.take(start, count)
        assert indices.dtype == np.int64 and indices.shape == (count,)
        assert np.array_equal(indices, ShuffledStream(size, seed=3).take(start, count))


def test_epochs_and_seeds_differ_in_order():
    stream = ShuffledStream(100, seed=0)
    orders = [stream.take(0, 100), stream.take(100, 100), ShuffledStream(100, seed=1).take(0, 100)]
    assert len({order.tobytes() for order in orders}) == 3


def test_changing_a_batch_does_not_change_the_epoch():
    stream = ShuffledStream(10)
    stream.take(0, 10)[:] = 0
    assert sorted(stream.take(0, 10)) == list(range(10))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 70), position=st.integers(65500, 65600) | st.integers(0, 10**9), seed=st.integers(0, 2**64 - 1)
)
def test_coin_flips_depend_on_seed_and_position_only(count, position, seed):
    flips = CoinFlips(seed).take(position, count)
    assert flips.dtype == bool and flips.shape == (count,)
    one_by_one = CoinFlips(seed)
    assert flips.tolist() == [one_by_one.take(position + i, 1)[0] for i in range(count)]


def test_coin_flips_are_fair_and_independent_of_order_and_seed():
    n = 200_000
    flips, others = CoinFlips(0).take(0, n), CoinFlips(1).take(0, n)
    order = ShuffledStream(n, 0).take(0, n) < n // 2
    tolerance = 5 * 0.5 / n**0.5  # five standard deviations of a share
    for share in (flips.mean(), (flips ^ others).mean(), (flips ^ order).mean(), (flips[1:] ^ flips[:-1]).mean()):
        assert abs(share - 0.5) < tolerance
    assert abs((flips[:65536] ^ flips[65536:131072]).mean() - 0.5) < 2 * tolerance  # of blocks


def test_empty_sets_and_negative_positions_are_refused():
    with pytest.raises(ValueError, match="1 or more"):
        ShuffledStream(0)
    with pytest.raises(ValueError, match="0 or more"):
        ShuffledStream(5).take(-1, 1)
