import pytest

from bench import training_step
from fastgan import models


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_training_step(arch, record):
    record(*training_step.run(arch))
