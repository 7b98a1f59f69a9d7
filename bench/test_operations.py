import pytest
import torch

from bench import operations
from bench.forms import FORMS


@pytest.mark.parametrize(("case", "backend"), operations.cases(FORMS), ids=str)
def test_operation(case, backend, record):
    rows, calls = operations.run(case)
    if backend not in rows:
        pytest.skip(f"{backend} cannot serve {case.form.operation} here")

    def call():
        calls[backend]()
        if case.device == "cuda":
            torch.cuda.synchronize()

    record(rows[backend], call)
