import pytest

from bench import data_path


@pytest.mark.parametrize(("form", "shape", "dtype"), data_path.cases(), ids=str)
def test_image_batch(form, shape, dtype, record):
    for row, call in data_path.run_operation(form, shape, dtype):
        record(row, call)


@pytest.mark.parametrize("step", data_path.STEPS)
def test_loader(step, record):
    for row, call in data_path.run_loader(step):
        record(row, call)
