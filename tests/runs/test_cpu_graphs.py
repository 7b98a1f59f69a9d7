"""Graphs on a CPU: replays compute what the work computes, and work that cannot be captured still runs."""

import weakref

import pytest
import torch

import fastgan_kernels
from fastgan.ops import noise_bias_act, upfirdn2d
from fastgan.ops.constants import constant
from fastgan.runs.cpu_graphs import CpuRecorder, repeated
from fastgan.runs.graphs import WARM_UPS, Graphs
from fastgan_kernels.launches import observed_by


def captured(work):
    found = CpuRecorder().capture(work)
    assert found.why_not is None
    return found.replay


def assert_replays(work, result, *inputs):
    """Replays compute `result` as the work does, for other numbers in `inputs` than those that were captured."""
    replay = captured(work)
    for _ in range(3):
        for each in inputs:
            each.detach().normal_()
        given = [each.detach().clone() for each in inputs]
        work()
        expected = result.clone()
        result.zero_()
        for each, value in zip(inputs, given, strict=True):
            each.detach().copy_(value)
        replay()
        assert torch.equal(result, expected) and expected.abs().sum() > 0


def test_a_replay_repeats_a_training_step_bit_by_bit():
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.LeakyReLU(0.2), torch.nn.Flatten())
    optimizer = torch.optim.Adam(layer.parameters(), lr=torch.tensor(0.1), betas=(0.0, 0.9), fused=True)
    x = torch.empty(2, 1, 6, 6)

    def work():
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()

    def after(replays, replay):
        for number in range(replays):
            x.fill_(number + 1.0)
            replay()
        return [p.detach().clone() for p in layer.parameters()]

    after(1, work)  # makes the moments
    start = {name: [t.clone() for t in each] for name, each in _state(layer, optimizer).items()}
    expected = after(4, work)
    _restore(layer, optimizer, start)
    x.fill_(1.0)
    replay = captured(work)
    for number in (2.0, 3.0, 4.0):
        x.fill_(number)
        replay()
    assert all(map(torch.equal, layer.parameters(), expected))


def _state(layer, optimizer):
    moments = [t for p in layer.parameters() for t in optimizer.state[p].values()]
    return {"parameters": [p.detach() for p in layer.parameters()], "moments": moments}


def _restore(layer, optimizer, start):
    for name, tensors in _state(layer, optimizer).items():
        for tensor, value in zip(tensors, start[name], strict=True):
            tensor.copy_(value)


def test_views_outputs_in_lists_and_bits_of_numbers():
    x, y = torch.randn(4, 6), torch.zeros(6, 4)

    def work():
        left, right = x.split(3, dim=1)
        top, *others = torch.unbind(left * 2)
        parts = torch._foreach_mul([top, others[0]], [2.0, 3.0])
        y.copy_(torch.cat([left.t(), right.t()]))
        y[0, :3] += parts[0]
        y[1].view(torch.int32).mul_(torch.zeros((), dtype=torch.int32))
        y[:, 3] = y[:, 2].flip(0)
        y[2:4, 1:3] += (y.to(torch.bfloat16).transpose(0, 1)[1:3, 2:4] * 2).float()

    assert_replays(work, y, x)


def test_kernels_and_gradients_of_kernels_are_replayed():
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    taps, bias = torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.randn(16, requires_grad=True)
    found = torch.empty(2, 16, 8, 8).to(memory_format=torch.channels_last)

    def work():
        y = noise_bias_act(upfirdn2d(x, taps, padding=(2, 1, 2, 1)), bias=bias)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (ddx,) = torch.autograd.grad(dx.square().sum(), x)
        found.copy_(ddx)

    assert_replays(work, found, x, bias)


def test_launches_are_observed_within_the_block_only():
    if why_not := fastgan_kernels.BACKENDS["cpp"].why_not("noise_bias_act", torch.device("cpu")):
        pytest.skip(f"no kernels: {why_not}")
    calls, x = [], torch.randn(2, 4, 8, 8)
    with observed_by(lambda launch, call: calls.append(call)):
        noise_bias_act(x)
    noise_bias_act(x)
    assert len(calls) == 1 and any(each is x for each in calls[0])


def test_random_numbers_follow_the_generator_and_seeds_within_the_work():
    seed, x = [1], torch.zeros(3)

    def work():
        x.copy_(torch.randn(3))
        repeated(lambda: torch.manual_seed(seed[0]))
        x.add_(torch.rand(3) * torch.bernoulli(torch.full((3,), 0.5)))

    replay = captured(work)
    for number in (1, 2):
        seed[0] = number
        torch.manual_seed(7)
        work()
        expected, state = x.clone(), torch.get_rng_state()
        torch.manual_seed(7)
        replay()
        assert torch.equal(x, expected) and torch.equal(torch.get_rng_state(), state)


def test_repeated_outside_of_a_capture_is_a_call():
    calls = []
    repeated(lambda: calls.append(1))
    assert calls == [1]


def test_parameters_have_a_new_version_after_a_replay():
    """Kept copies of weights (`fastgan.ops.fixed_weights`) are recognised as stale by it."""
    weight = torch.nn.Parameter(torch.ones(3))

    def work():
        with torch.no_grad():
            weight.mul_(2)

    replay, before = captured(work), weight._version
    replay()
    assert weight._version > before and weight.tolist() == [4.0] * 3
    (weight * 2).sum().backward()  # it is no inference tensor


def test_constants_are_made_once_and_not_replayed():
    made = []

    @constant
    def ones(count, device):
        made.append(count)
        return torch.ones(count, device=device)

    y = torch.zeros(3)

    def work():
        y.add_(ones(3, torch.device("cpu")))

    replay = captured(work)
    assert made == [3]
    with torch.utils._python_dispatch._disable_current_modes():
        ones(3, torch.device("cpu")).fill_(5.0)
    replay()
    assert y.tolist() == [6.0] * 3 and made == [3]


def test_memory_is_freed_while_capturing_and_while_replaying():
    """Intermediate results do not outlive their last use."""
    x, alive = torch.zeros(1000), []

    def work():
        for _ in range(4):
            y = x + 1
            alive.append(weakref.ref(y.untyped_storage()))
            repeated(lambda: counts.append(sum(each() is not None for each in alive)))
            x.copy_(y)

    counts = []
    replay = captured(work)
    assert max(counts) <= 2
    graph = replay.__closure__[0].cell_contents.__self__
    lines = graph.code.splitlines()
    assert sum("= None" in line for line in lines) >= 8


def test_results_that_nobody_reads_are_not_computed():
    x = torch.zeros(3)

    def work():
        torch.full((1000,), 2.0).exp()
        x.add_(1)

    replay = captured(work)
    assert "exp" not in replay.__closure__[0].cell_contents.__self__.code
    replay()
    assert x.tolist() == [2.0] * 3


_library = torch.library.Library("fastgan_test", "DEF")
_library.define("pair(Tensor x) -> (Tensor, Tensor[])")
_library.impl("pair", lambda x: (x * 2, [x * 3]), "CompositeExplicitAutograd")


@pytest.mark.parametrize(
    "read, named",
    [
        (lambda x: x.sum().item(), "aten._local_scalar_dense.default makes Python wait for a tensor"),
        (lambda x: x[x > 0], "aten.index.Tensor makes Python wait for a tensor"),
        (lambda x: x.to_sparse(), "tensor that is not plain memory"),
        (lambda x: torch.fft.fft(x).conj() * 2, "tensor that is not plain memory"),
        (lambda x: torch.ops.fastgan_test.pair(x), "returns tensors in lists of lists"),
    ],
)
def test_work_that_cannot_be_captured_runs_once_to_its_end(read, named):
    x, ends = torch.ones(3), []

    def work():
        x.add_(1)
        read(x)
        x.add_(1)
        ends.append(1)
        return "result"

    found = CpuRecorder().capture(work)
    assert found.replay is None and found.result == "result"
    assert x.tolist() == [3.0] * 3 and ends == [1]
    assert named in found.why_not


def test_work_that_was_captured_while_it_ran_does_not_run_again():
    x = torch.zeros(3)
    run = Graphs(lambda kind: x.add_(1), CpuRecorder())
    for count in range(1, WARM_UPS + 4):
        run("a")
        assert x.tolist() == [count] * 3
    assert len(run._captured) == 1


def test_an_error_of_the_work_is_raised_and_ends_no_capturing(capsys):
    calls = []

    def work(kind):
        calls.append(kind)
        if len(calls) == WARM_UPS + 1:
            raise torch.OutOfMemoryError("its own")

    run = Graphs(work, CpuRecorder())
    for _ in range(WARM_UPS):
        run("a")
    with pytest.raises(torch.OutOfMemoryError, match="its own"):
        run("a")
    assert torch._C._len_torch_dispatch_stack() == 0 and run.failure is None
    run("a")
    assert len(run._captured) == 1 and capsys.readouterr().out == ""
