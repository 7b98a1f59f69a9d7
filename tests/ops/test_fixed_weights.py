"""fixed_weights: what is computed of a weight alone is kept, as long as the weight stays as it is."""

import threading

import pytest
import torch
from torch.autograd import forward_ad

from fastgan.ops.fixed_weights import FixedWeights, fixed_weights, is_kept, of_weight

calls = []


@of_weight
def doubled(weight, factor=2):
    calls.append(factor)
    return weight * factor


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


@pytest.fixture
def weight():
    return torch.nn.Parameter(torch.arange(4.0), requires_grad=False)


def test_results_are_kept_for_the_calls_and_blocks_of_one_network(weight):
    kept = FixedWeights(lambda: [weight])
    with fixed_weights(kept):
        first = doubled(weight)
        assert doubled(weight) is first
    with fixed_weights(kept):
        assert doubled(weight) is first
        assert torch.equal(doubled(weight, 3), weight * 3)
        assert torch.equal(doubled(weight[1:]), first[1:])
    assert calls == [2, 3, 2]
    with fixed_weights(FixedWeights(lambda: [weight])):
        assert doubled(weight) is not first
    assert doubled(weight) is not first


def test_results_of_kept_results_are_kept(weight):
    with fixed_weights(FixedWeights(lambda: [weight])):
        assert doubled(doubled(weight)) is doubled(doubled(weight))
    assert len(calls) == 2


def test_a_changed_weight_is_computed_anew(weight):
    other = torch.ones(3)
    kept = FixedWeights(lambda: [weight, other])
    with fixed_weights(kept):
        doubled(other), doubled(doubled(weight))
        weight.mul_(10)
        assert torch.equal(doubled(weight), weight * 2)
        assert torch.equal(doubled(doubled(weight)), weight * 4)
        assert len(kept._entries) == 2, "results of the weight as it was are dropped"
        weight.data = torch.full((4,), 7.0)  # as when a network moves
        assert torch.equal(doubled(weight), torch.full((4,), 14.0))


def test_memory_of_a_weight_is_not_taken_for_that_of_a_later_tensor():
    """A freed weight's address would be given to the next tensor of its size, with the same version."""
    weights = [torch.ones(1000)]
    with fixed_weights(FixedWeights(lambda: weights)):
        doubled(weights[0])
        for value in (5.0, 6.0, 7.0):
            weights[0] = None
            weights[0] = torch.full((1000,), value)
            assert doubled(weights[0])[0] == 2 * value


def test_nothing_is_kept_of_other_tensors(weight):
    kept = FixedWeights(lambda: [weight])
    with fixed_weights(kept):
        for _ in range(3):
            doubled(torch.ones(4))
            assert not is_kept(torch.ones(4))
    assert len(calls) == 3 and not kept._entries


def test_gradients_flow_to_weights_that_need_them(weight):
    weight.requires_grad_()
    with fixed_weights(FixedWeights(lambda: [weight])):
        with torch.no_grad():
            assert doubled(weight) is not doubled(weight)
        doubled(weight).sum().backward()
    assert torch.equal(weight.grad, torch.full((4,), 2.0))


def test_a_result_made_in_inference_mode_serves_autograd(weight):
    x = torch.ones(4, requires_grad=True)
    with fixed_weights(FixedWeights(lambda: [weight])):
        with torch.inference_mode():
            doubled(weight)
        (x * doubled(weight)).sum().backward()
    assert calls == [2] and torch.equal(x.grad, weight * 2)


def test_transforms_and_other_threads_compute_their_own(weight):
    with fixed_weights(FixedWeights(lambda: [weight])):
        doubled(weight)
        assert torch.equal(torch.func.vmap(lambda row: doubled(row))(weight[None])[0], weight * 2)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(is_kept(weight)))
        thread.start()
        thread.join()
        assert is_kept(weight) and seen == [False]


def test_a_fused_optimizer_step_is_noticed(weight):
    kept = FixedWeights(lambda: [weight])
    with fixed_weights(kept):
        doubled(weight)
    weight.requires_grad_().grad = torch.ones(4)
    torch.optim.Adam([weight], 0.5, fused=True).step()  # raises no version in some releases
    with fixed_weights(kept):
        assert torch.equal(doubled(weight.requires_grad_(False)), weight * 2)


def test_entries_of_weights_that_have_moved_are_dropped(weight):
    kept = FixedWeights(lambda: [weight])
    for _ in range(3):
        weight.data = weight.data.clone()
        with fixed_weights(kept):
            doubled(weight)
        assert len(kept._entries) == 1


def test_tangents_of_forward_mode_are_kept(weight):
    with fixed_weights(FixedWeights(lambda: [weight])), forward_ad.dual_level():
        doubled(weight)
        dual = forward_ad.make_dual(weight, torch.ones(4))
        assert torch.equal(forward_ad.unpack_dual(doubled(dual)).tangent, torch.full((4,), 2.0))
