import pytest

from bench import training_step


@pytest.mark.parametrize("arch", training_step.FAMILIES)
def test_training_step(arch, record):
    record(*training_step.run(arch))
