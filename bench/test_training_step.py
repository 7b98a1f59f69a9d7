import pytest

from bench import training_step


@pytest.mark.parametrize("arch", training_step.quick_cases())
def test_training_step(arch, record):
    for row, call in training_step.run(arch):
        record(row, call)
