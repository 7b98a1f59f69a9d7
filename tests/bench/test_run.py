"""The names that `python -m bench.run` takes."""

import pytest

from bench import run


def test_every_benchmark_has_cases_that_its_name_selects():
    for name, cases in run.BENCHMARKS.items():
        assert list(run.chosen([name])) == [f"{name} {case}" for case in cases()]


def test_part_of_a_case_selects():
    chosen = run.chosen(["operations:adain", "training_step:pggan"])
    assert chosen and all("adain" in name or name == "training_step pggan" for name in chosen)
    assert "training_step pggan" in chosen


@pytest.mark.parametrize("name", ["operation", "operations:adani"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"there are: (operations|bias-)"):
        run.chosen([name])


def test_results_have_the_fields_of_pytest_benchmark():
    row = {"operation": "memory", "arch": "dcgan", "shape": "64x1x32x32", "dtype": "fp32", "fastgan_mb": 90.0}
    (found,) = run._as_pytest_benchmark([row])["benchmarks"]
    assert found == {"name": "dcgan-64x1x32x32-fp32", "group": "memory", "stats": {}, "extra_info": row}
