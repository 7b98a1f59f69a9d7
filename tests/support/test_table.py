"""Choices of cases from the tables."""

from itertools import combinations, product

from tests.support.table import in_pairs


def test_every_two_values_meet_in_few_tuples():
    choices = ["abcdefgh", (0, 1, 2), (False, True), (0, 1, 2)]
    chosen = in_pairs(choices)
    for i, j in combinations(range(4), 2):
        assert {(case[i], case[j]) for case in chosen} == set(product(choices[i], choices[j]))
    assert len(chosen) == len({*chosen}) <= 27  # of 144; 24 have a value of each of the first two
    assert set(chosen) <= set(product(*choices))


def test_seeds_choose_other_tuples_each_the_same_every_time():
    choices = [range(5), range(4), range(3)]
    assert in_pairs(choices, seed="a") == in_pairs(choices, seed="a") != in_pairs(choices, seed="b")
