"""The training step's launches, FLOPs and bytes on a GPU, held to stored figures."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from bench import budget
from fastgan.models import stylegan2
from fastgan.ops.constants import constant
from tests.emulation import build as emulation
from tests.support import traffic

SMALL = budget.Case("stylegan2", 16, batch=8, network={"channel_base": 256, "channel_max": 16, "mapping_layers": 2})

# Launches, TFLOP, GB outside convolutions, GB inside. A step may take 2 % more. After an improvement, lower them:
# `python -m bench.budget NAME --top 0` prints the new ones.
STORED = {
    ("stylegan2-256", "plain"): (661, 10.74, 30.38, 24.78),
    ("stylegan2-256", "path length"): (1337, 13.59, 40.62, 30.40),
    ("stylegan2-256", "R1 and path length"): (1702, 16.55, 54.54, 38.28),
    ("r3gan-256", "R1 and R2"): (2199, 25.79, 286.3, 229.7),
    ("stylegan-256", "R1"): (997, 16.43, 37.90, 29.41),
}


def figures(found):
    return found.launches, found.flops / 1e12, found.bytes_outside / 1e9, found.bytes_inside / 1e9


def within(found, stored):
    return all(ours <= 1.005 * limit for ours, limit in zip(figures(found), stored, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stylegan2-256", "r3gan-256", "stylegan-256"])
def test_every_kind_of_step_takes_no_more_than_stored(name):
    found = {(name, kind): each for kind, each in budget.count(budget.CASES[name]).items()}
    stored = {key: limits for key, limits in STORED.items() if key[0] == name}
    assert found.keys() == stored.keys()
    too_much = {key: figures(each) for key, each in found.items() if not within(each, stored[key])}
    assert too_much == {}


@pytest.fixture(scope="module")
def plain():
    (found,) = budget.count(SMALL, only="plain").values()
    return found


def test_an_additional_pass_over_the_image_shows(plain, monkeypatch):
    forward = stylegan2.Generator.synthesize
    monkeypatch.setattr(stylegan2.Generator, "synthesize", lambda self, ws, **kwargs: forward(self, ws, **kwargs) * 1.0)
    (more,) = budget.count(SMALL, only="plain").values()
    images = 8 * 3 * 16 * 16 * 4
    assert more.launches == plain.launches + 2  # forward and backward
    assert more.bytes_outside == plain.bytes_outside + 4 * images
    assert (more.flops, more.bytes_inside) == (plain.flops, plain.bytes_inside)


def test_the_report_names_every_kind_and_judges_the_goals(plain):
    budgets = {"plain": plain, "path length": plain}
    text = "\n".join(budget.lines("stylegan2-256", budgets, top=3))
    assert "plain: the 3 operations that move most" in text
    assert "mean" in text and "others" in text
    assert "at most 32.0 GB outside convolutions" in text and text.count("met") == 3
    several = budget.Budget(1.0, plain.work * 9)
    missed = budget.lines("stylegan2-256", {"plain": several, "path length": plain}, top=0)[-2]
    assert f"{9 * plain.launches - 900:,} too many; most: " in missed


def recorded(function, *tensors):
    with budget._counted_kernels() as record:
        with record:
            function(*tensors)
        return record.take()


def test_constants_are_not_counted():
    def ones(device):
        return torch.ones(4, device=device) * 2

    assert recorded(lambda x: constant(ones)(x.device) + x, torch.zeros(4)) == recorded(
        torch.add, torch.ones(4), torch.zeros(4)
    )


def test_convolutions_count_two_operations_for_each_multiply_add():
    x, conv = torch.randn(2, 3, 8, 8, requires_grad=True), nn.Conv2d(3, 5, 3, padding=1, bias=False)
    forward, backward = recorded(lambda grad: conv(x).backward(grad), torch.randn(2, 5, 8, 8))[:2]
    one = 2 * (2 * 8 * 8) * (3 * 5 * 9)
    assert (forward.category, forward.launches, forward.flops) == (budget.CONVOLUTION, 1, one)
    assert (backward.category, backward.launches, backward.flops) == (budget.CONVOLUTION, 2, 2 * one)
    dx, dw, dy = (4 * count for count in (2 * 3 * 64, 135, 2 * 5 * 64))
    assert forward.bytes == dx + dw + dy
    assert backward.bytes == (dy + dw + dx) + (dy + dx + dw)


def test_products_count_two_operations_for_each_multiply_add():
    (work,) = recorded(torch.mm, torch.randn(4, 6), torch.randn(6, 5))
    assert (work.category, work.flops, work.bytes) == (budget.PRODUCT, 2 * 4 * 6 * 5, 4 * (24 + 30 + 20))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + 1, 2),
        (lambda x: x.add_(1), 2),
        (lambda x: x.zero_(), 1),
        (lambda x: torch.zeros_like(x), 1),
        (lambda x: torch.empty_like(x).copy_(x), 2),
        (lambda x: x.t()[1:].detach(), 0),
        (lambda x: x[:1].expand(10, 10).clone(), 1.1),
    ],
)
def test_every_tensor_counts_once_for_each_time_it_is_read_or_written(function, expected):
    assert sum(work.bytes for work in recorded(function, torch.zeros(10, 10))) == pytest.approx(400 * expected)


@pytest.mark.parametrize(
    ("sizes", "lists", "launches"),
    [
        ([10] * 36, 4, 1),  # 36 tensors of four lists fit into the arguments of a kernel
        ([10] * 37, 4, 2),
        ([65536 * 320], 1, 1),  # 320 chunks of 65,536 elements are a launch
        ([65536 * 320 + 1], 1, 2),
        ([65536 * 400, 10], 2, 2),
    ],
)
def test_multi_tensor_operations_count_their_launches(sizes, lists, launches):
    tensors = [torch.empty(size, device="meta") for size in sizes]
    assert budget._multi_tensor_launches([tensors] * lists) == launches


def test_lists_of_different_shapes_take_a_kernel_for_each_tensor():
    parameters, numbers = [torch.ones(4)] * 5, list(torch.ones(5).unbind())
    (work,) = recorded(torch._foreach_div, parameters, numbers)
    assert (work.category, work.launches) == (budget.MULTI_TENSOR, 5)


@contextmanager
def counted_by_the_budget():
    """In place of `traffic._counted_backend`: launches by operation."""

    @contextmanager
    def recorded(records, name):
        with record:
            yield
        records[name] = [work.launches for work in record.take() if work.category == budget.FUSED]

    with budget._counted_kernels() as record:
        yield recorded


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "noise_bias_act: noise", "noise_bias_act: all", "noise_bias_act_to_rgb", "filtered_noise_bias_act",
        "adain: on chip", "style_epilogue: large", "batch_norm_act", "minibatch_stddev", "squared_norm",
    ],
)  # fmt: skip
def test_fused_operations_launch_as_many_kernels_as_counted(name, monkeypatch):
    if reason := emulation.why_unavailable():
        pytest.skip(reason)
    executed = traffic.CASES[name].count("NHWC", torch.bfloat16)
    monkeypatch.setattr(traffic, "_counted_backend", counted_by_the_budget)
    counted = traffic.CASES[name].count("NHWC", torch.bfloat16)
    launches = lambda directions: {way: sum(each.launches) for way, each in directions.items()}
    assert launches(counted) == {way: len(each.launches) for way, each in executed.items()}
