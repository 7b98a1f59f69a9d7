"""Peak memory of whole training steps, against plain PyTorch.

Cases and contestants are those of training_step.py. The peak is what torch's allocator hands out, starting before the
networks are made: parameters, gradients, optimizer, EMA, and activations in steps of every kind. Allocations that
libraries make by themselves do not count.
"""

import gc
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch._C._profiler import _EventType, _ProfilerEvent
from torch.profiler import ProfilerActivity, profile

from bench import measure, report
from bench.training_step import CASES, Case, Ours, Textbook
from fastgan.training.configure import OF_BLOCKS

# Upper limits as a share of the textbook's peak, by (precision of the textbook, our precision).
TARGETS = {("fp32", "fp32"): 0.8, ("bf16", "bf16"): 0.8, ("fp32", "bf16"): 0.6}


def peak(make: Callable[[], Callable[[int], None]], case: Case) -> int:
    """Peak in bytes over two steps of each kind."""
    return peak_of(partial(_run, make, case))


def peak_of(function: Callable[[], object]) -> int:
    """Peak of a call in bytes above the level before it."""
    gc.collect()
    if measure.device().type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    allocations = [event for event in _all(profiled) if event.tag == _EventType.Allocation]
    first = min(allocations, key=lambda event: event.start_time_ns).extra_fields
    # The profiler's count continues from profile to profile, and misses what is freed between them.
    return max(event.extra_fields.total_allocated for event in allocations) - (first.total_allocated - first.alloc_size)


def _all(profiled: profile) -> Iterator[_ProfilerEvent]:
    events = list(profiled.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        yield event
        events += event.children


def _run(make: Callable[[], Callable[[int], None]], case: Case) -> None:
    step = make()
    for number in (*case.kinds, *case.kinds):  # optimizer state exists from the first step on
        step(number)


def run(arch: str) -> list[dict]:
    """Measures a family. Returns the report's row for each of our precisions."""
    case = CASES[arch]
    form = case.modulations[-1]
    precisions = {"fp32": False} | ({"bf16": True} if measure.has_bf16() else {})
    books = {
        name: peak(partial(Textbook, case, form, torch.channels_last, amp=amp), case)
        for name, amp in precisions.items()
    }
    rows = []
    for name, amp in precisions.items():
        ours = peak(partial(Ours, case, amp), case)
        sparing = case.network["arch"] in OF_BLOCKS and peak(partial(Ours, case, amp, checkpoint_blocks=True), case)
        share = {book: ours / theirs for book, theirs in books.items() if (book, name) in TARGETS}
        rows.append(
            {
                "operation": report.MEMORY,
                "arch": arch,
                "shape": case.shape,
                "dtype": name,
                "fastgan_mb": ours / 2**20,
                "checkpoint_blocks_mb": sparing / 2**20 if sparing else None,
                "textbook_fp32_mb": books["fp32"] / 2**20,
                "textbook_own_mb": books[name] / 2**20,
                "of_textbook_fp32": share["fp32"],
                "of_textbook_own": share[name],
                "targets": "met" if all(part <= TARGETS[book, name] for book, part in share.items()) else "missed",
                "notes": "",
                **measure.machine(),
            }
        )
    return rows
