"""Times `filtered_lrelu` beside its parts: `python -m bench.filtered_lrelu [FORM ...]`.

Prints time and peak memory, forward and backward, of the fused operation, and how many times as much fastgan's own
operations take that it is made of, and StyleGAN3's reference implementation in plain PyTorch. In channels_last; on a
GPU if there is one.
"""

import sys
from collections.abc import Callable
from functools import partial
from unittest import mock

from torch import Tensor

from bench import measure, memory
from bench.forms import FORMS
from bench.operations import DTYPES, Case, Inputs
from fastgan.ops import filtered_lrelu

SECONDS = 10.0  # per case


def _in_parts(fused: Callable[..., Tensor], x: Tensor, **others: Tensor) -> Tensor:
    """The same by upfirdn2d and noise_bias_act, as where no kernel serves."""
    with mock.patch.object(sys.modules[filtered_lrelu.__module__], "_fits", lambda *_: False):
        return fused(x, **others)


def run(case: Case) -> dict[str, tuple[float, int]]:
    """Seconds and peak bytes of each contestant, forward and backward."""
    inputs, form = Inputs(case), case.form
    functions = {"fused": form.fused, "parts": partial(_in_parts, form.fused), "plain PyTorch": form.textbook}
    contestants = {name: partial(inputs.train, function) for name, function in functions.items()}
    clock = measure.GpuClock() if case.device == "cuda" else measure.WallClock(measure.device())
    timings = measure.alternate(contestants, clock, SECONDS)
    return {name: (timings[name].seconds, memory.peak_of(call)) for name, call in contestants.items()}


def main(names: list[str]) -> None:
    device = measure.device().type
    forms = [form for form in FORMS if form.operation == "filtered_lrelu" and (not names or form.name in names)]
    print("| call | shape of x | dtype | time, ms | parts | plain PyTorch | peak memory, MB | parts | plain PyTorch |")
    print("| --- | --- | --- | --: | --: | --: | --: | --: | --: |")
    for form in forms:
        for shape in form.shapes[device]:
            for dtype in DTYPES:
                (seconds, peak), *others = run(Case(form, device, shape, dtype)).values()
                slower = [f"x {taken / seconds:.1f}" for taken, _ in others]
                larger = [f"x {most / peak:.1f}" for _, most in others]
                size = "x".join(map(str, shape))
                cells = [form.label, size, dtype, f"{1e3 * seconds:.1f}", *slower, f"{peak / 2**20:.0f}", *larger]
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
