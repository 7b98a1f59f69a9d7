"""Effective weights of all layers of a network at once, against those that each layer computes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fastgan import effective, layers
from fastgan.models.gradient_checkpointing import GradientCheckpointing
from fastgan.penalties.gradient import why_not_one_pass
from tests.support.shared_kernels import compute_together


class Network(GradientCheckpointing):
    """One layer of each kind. `between` is called after the first of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(
            [
                layers.EqualizedConv2d(3, 8, 3, act="lrelu"),
                layers.EqualizedConv2d(8, 8, 1, bias=False, down=2),
                layers.UpsampleConv2d(8, 8, equalized=True, act="lrelu"),
                layers.ConvDownsample2d(8, 8, bias=False, equalized=True),
                layers.Conv2d(8, 4, 3, padding=1),
                nn.Flatten(),
                layers.EqualizedLinear(4 * 4 * 4, 8, act="lrelu", lr_multiplier=0.1),
                layers.EqualizedLinear(8, 1, lr_multiplier=0.1),
            ]
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        self.to(memory_format=torch.channels_last)
        self.between = lambda network: None

    @effective.shares_kernels
    def forward(self, x):
        for i, part in enumerate(self.parts):
            x = self.block(part, x)
            if i == 0:
                self.between(self)
        return x.squeeze(1)


@pytest.fixture
def network(monkeypatch):
    compute_together(monkeypatch)
    return Network()


def images(dtype=torch.float32):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(
        dtype, memory_format=torch.channels_last
    )


def results(network, together, monkeypatch, amp=None):
    """Logits and gradients of a loss with a gradient penalty, by double backward."""
    compute_together(monkeypatch, together)
    network = copy.deepcopy(network)
    x = images(next(network.parameters()).dtype).requires_grad_()
    with torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None):
        logits = network(x)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    (logits.square().mean() + gradient.square().mean()).backward()
    return [logits.detach(), x.grad, *(parameter.grad for parameter in network.parameters())]


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
        assert ours is None or 1 in ours.shape or ours.stride() == theirs.stride()


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_and_gradients_are_the_same_bit_by_bit(network, monkeypatch, dtype, amp):
    network = network.to(dtype)
    assert_equal(results(network, True, monkeypatch, amp), results(network, False, monkeypatch, amp))


def test_frozen_layers_get_no_gradient(network, monkeypatch):
    for part in network.parts[:2]:
        part.requires_grad_(False)
    found = results(network, True, monkeypatch)
    assert found[2:5] == [None] * 3 and all(grad is not None for grad in found[5:])
    assert_equal(found, results(network, False, monkeypatch))


def test_checkpointed_blocks_have_the_same_gradients(network, monkeypatch):
    expected = results(network, True, monkeypatch)
    network.gradient_checkpointing = True
    assert_equal(results(network, True, monkeypatch), expected)


def test_all_layers_use_them(network, monkeypatch):
    used = []
    state = effective._state
    monkeypatch.setattr(effective, "_state", lambda layer: used.append(layer) or state(layer))
    network(images())
    sharing = [part for part in network.parts if not isinstance(part, nn.Flatten)]
    assert used == [*sharing, *sharing]  # once when they are computed, once in the layer


def scale_in_place(network):
    with torch.no_grad():
        network.parts[4].weight.mul_(3)
        network.parts[6].bias.add_(1)


def replace(network):
    network.parts[6].weight = nn.Parameter(network.parts[6].weight.detach() * 2)


def freeze(network):
    network.parts[4].requires_grad_(False)


@pytest.mark.parametrize("change", [scale_in_place, replace, freeze])
def test_what_changes_within_a_call_is_not_stale(network, monkeypatch, change):
    network.between = change
    assert_equal(results(network, True, monkeypatch), results(network, False, monkeypatch))


def test_layers_outside_of_autocast_compute_their_own(network, monkeypatch):
    class WithoutAutocast(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return self.layer(x.float())

    network.parts[6] = WithoutAutocast(network.parts[6])
    amp = torch.bfloat16
    assert_equal(results(network, True, monkeypatch, amp), results(network, False, monkeypatch, amp))


def test_parameters_changed_between_calls_are_seen(network, monkeypatch):
    x = images()
    for _ in range(2):
        together = network(x)
        compute_together(monkeypatch, False)
        assert torch.equal(together, network(x))
        compute_together(monkeypatch)
        for parameter in network.parameters():
            parameter.data.mul_(1.5)  # without a new version


def test_the_last_call_leaves_nothing_behind(network):
    network(images())
    assert effective.shared_weights() is None

    def fail(network):
        raise KeyError("within the call")

    network.between = fail
    with pytest.raises(KeyError):
        network(images())
    assert effective.shared_weights() is None


@pytest.mark.parametrize(
    "parametrize", [parametrizations.spectral_norm, parametrizations.weight_norm, nn.utils.spectral_norm]
)
def test_parametrized_layers_compute_their_own(network, monkeypatch, parametrize):
    parametrize(network.parts[4])
    network = network.eval()  # spectral norm moves its vectors in training
    x = images()
    together = network(x)
    compute_together(monkeypatch, False)
    assert torch.equal(together, network(x))


def test_a_hook_that_changes_parameters_is_respected(network, monkeypatch):
    def change(module, inputs):
        module.weight.data.fill_(0.5)

    network.parts[4].register_forward_pre_hook(change)
    x = images()
    together = network(x)
    compute_together(monkeypatch, False)
    assert torch.equal(together, network(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(network, monkeypatch, mode):
    with mode():
        together = network(images())
        compute_together(monkeypatch, False)
        assert torch.equal(together, network(images()))


def test_a_network_made_in_inference_mode(monkeypatch):
    compute_together(monkeypatch)
    with torch.inference_mode():
        network = Network()
        assert network(images()).shape == (4,)


def test_the_one_pass_penalty_still_applies(network):
    assert why_not_one_pass(network, images()) is None


def test_a_cpu_computes_one_by_one(monkeypatch):
    monkeypatch.setattr(effective, "converted", None)
    Network()(images())
