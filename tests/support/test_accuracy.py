"""`assert_as_good_as_plain`, on which the tables of all operations rest, fails where it should."""

import math

import pytest
import torch

from tests.support.accuracy import assert_as_good_as_plain

EPS = torch.finfo(torch.float32).eps
REFERENCE = torch.linspace(-1, 1, 101, dtype=torch.float64)


def off_by(error: float, index: int = 7) -> torch.Tensor:
    """The reference with one number changed."""
    changed = REFERENCE.clone()
    changed[index] += error
    return changed


def check(got, plain=REFERENCE, reference=REFERENCE, dtype=torch.float32, summed=0):
    assert_as_good_as_plain(got, plain, reference, dtype, "y", summed)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("plain_error", [0.0, 100 * EPS])
def test_twice_the_error_of_plain_pytorch_and_4_eps_are_allowed_and_no_more(plain_error, sign):
    allowed = 2 * plain_error + 4 * EPS
    check(off_by(sign * 0.99 * allowed), off_by(plain_error, index=50))
    with pytest.raises(AssertionError, match="y: error"):
        check(off_by(sign * 1.01 * allowed), off_by(plain_error, index=50))


def test_eps_is_that_of_the_dtype_and_relative_to_the_largest_value():
    error = 100 * EPS
    check(off_by(error), dtype=torch.bfloat16)
    with pytest.raises(AssertionError):
        check(off_by(error))
    larger = 1000 * REFERENCE
    check(larger + error, larger, larger)


def test_sums_may_be_off_by_a_random_walk():
    terms = 10_000
    check(off_by(0.99 * 4 * EPS * (1 + math.sqrt(terms))), summed=terms)
    with pytest.raises(AssertionError):
        check(off_by(1.01 * 4 * EPS * (1 + math.sqrt(terms))), summed=terms)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_fails(wrong):
    with pytest.raises(AssertionError):
        check(off_by(wrong))


@pytest.mark.parametrize("overflow", [math.nan, math.inf])
def test_an_overflow_of_plain_pytorch_allows_nothing(overflow):
    check(REFERENCE, plain=off_by(overflow))
    with pytest.raises(AssertionError):
        check(off_by(5 * EPS), plain=off_by(overflow))


@pytest.mark.parametrize("shape", [(101, 1), (1, 101), (100,), ()])
def test_another_shape_fails_even_if_it_broadcasts(shape):
    with pytest.raises(AssertionError, match="shape"):
        check(torch.zeros(shape))


def test_empty_tensors_must_have_the_right_shape():
    empty = torch.zeros(0, 3)
    check(empty, empty, empty)
    with pytest.raises(AssertionError, match="shape"):
        check(torch.zeros(3, 0), empty, empty)
