"""Modulations of all layers at once, as on a GPU, against those of each layer, as on a CPU."""

import pytest
import torch

from fastgan import models
from fastgan.models import modulation
from tests.support.accuracy import assert_as_good_as_plain


@pytest.fixture
def generator(request):
    """A small generator whose layers have several widths, and parameters that differ from their initial values."""
    torch.manual_seed(0)
    config = models.ModelConfig(
        resolution=32, channels=3, z_dim=24, channel_base=512, channel_max=32, mapping_layers=2,
        generator_architecture=getattr(request, "param", "skip"),
    )  # fmt: skip
    network = models.build(config)[0].to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def computed(network, monkeypatch, together: bool, dtype=torch.float64, amp: bool = False):
    """Images, path gradients and parameter gradients of a path length penalty: all derivatives of a training."""
    calls = []
    monkeypatch.setattr(modulation, "computed_together", lambda tensors: calls.append(together) or together)
    network = network.to(dtype)
    ws = torch.randn(4, network.num_ws, 24, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        images = network.synthesis(ws, "const")
    seed = torch.linspace(-1, 1, images.numel(), dtype=images.dtype).view_as(images)
    (gradient,) = torch.autograd.grad((images * seed).sum(), ws, create_graph=True)
    network.zero_grad()
    loss = (gradient.square().sum(2).mean(1).sqrt() - 1).square().mean() + images.square().mean()
    loss.backward()
    assert calls
    grads = {name: parameter.grad for name, parameter in network.synthesis.named_parameters()}
    return {"images": images, "path gradient": gradient, "gradient of ws": ws.grad} | grads


@pytest.mark.parametrize("generator", ["skip", "resnet", "orig"], indirect=True)
def test_images_and_all_derivatives_are_the_same_in_fp64(generator, monkeypatch):
    each = computed(generator, monkeypatch, together=False)
    together = computed(generator, monkeypatch, together=True)
    assert each.keys() == together.keys()
    for name, expected in each.items():
        error = (together[name] - expected).abs().max() / expected.abs().max()
        assert error < 1e-13, name


def test_gradients_have_the_strides_of_the_parameters(generator, monkeypatch):
    found = computed(generator, monkeypatch, together=True, dtype=torch.float32, amp=True)
    for name, parameter in generator.synthesis.named_parameters():
        assert found[name].stride() == parameter.stride() and found[name].dtype == parameter.dtype, name


@pytest.mark.parametrize("amp", [False, True])
def test_rounding_errors_are_no_larger(generator, monkeypatch, amp):
    lower = {"dtype": torch.float32, "amp": amp}
    plain = computed(generator, monkeypatch, together=False, **lower)
    together = computed(generator, monkeypatch, together=True, **lower)
    reference = computed(generator, monkeypatch, together=False)
    dtype = torch.bfloat16 if amp else torch.float32
    for name in ("images", "path gradient", *(name for name in reference if name.startswith(("first", "up.1")))):
        assert_as_good_as_plain(together[name], plain[name], reference[name], dtype, name)


def test_without_graph_images_are_the_same(generator, monkeypatch):
    network, z = generator.double(), torch.randn(2, 24, dtype=torch.float64)
    images = []
    for together in (False, True):
        monkeypatch.setattr(modulation, "computed_together", lambda tensors, together=together: together)
        with torch.inference_mode():
            images.append(network(z, noise="const"))
    torch.testing.assert_close(*images, rtol=1e-12, atol=1e-12)


def test_changed_parameters_are_seen_by_the_next_call(generator, monkeypatch):
    monkeypatch.setattr(modulation, "computed_together", lambda tensors: True)
    z = torch.randn(2, 24)
    before = generator(z, noise="const")
    with torch.no_grad():
        generator.synthesis.same[0].conv.weight.normal_()
        generator.synthesis.same[1].affine.weight.normal_()
    after = generator(z, noise="const")
    monkeypatch.setattr(modulation, "computed_together", lambda tensors: False)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, generator(z, noise="const"), rtol=1e-4, atol=1e-4)


def test_a_hook_of_an_affine_layer_runs(generator, monkeypatch):
    monkeypatch.setattr(modulation, "computed_together", lambda tensors: True)
    calls = []
    generator.synthesis.to_rgb[1].affine.register_forward_hook(lambda *arguments: calls.append(arguments))
    generator(torch.randn(2, 24))
    assert len(calls) == 1


def test_checkpointed_blocks_have_the_same_gradients(generator, monkeypatch):
    expected = computed(generator, monkeypatch, together=True)
    generator.synthesis.gradient_checkpointing = True
    found = computed(generator, monkeypatch, together=True)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
