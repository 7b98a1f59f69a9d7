import pytest
import torch

from bench import noise_bias_act
from fastgan.ops import backends


@pytest.mark.parametrize(("case", "backend"), noise_bias_act.cases(), ids=str)
def test_noise_bias_act(case, backend, record):
    if reason := backends.why_not(backend, noise_bias_act.OPERATION, case.device):
        pytest.skip(f"{backend}: {reason}")
    rows, calls = noise_bias_act.run(case)

    def call():
        calls[backend]()
        if case.device == "cuda":
            torch.cuda.synchronize()

    record(rows[backend], call)
