"""Operations on the weights of many layers, against the same for each."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastgan.ops import modulated_conv2d, weights
from fastgan.ops.modulated_conv2d import demodulation, demodulations


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)), requires_grad=True)


def kernels(dtype=torch.float64):
    """Weights in channels_last, one of them read transposed, and one whose strides of size 1 are those of NCHW."""
    made = [normal(3, 4, 3, 3), normal(2, 3, 3, 3).transpose(0, 1), normal(4, 2, 1, 1)]
    made = [x.detach().to(dtype).to(memory_format=torch.channels_last) for x in made]
    return [x.requires_grad_() for x in (made[0], made[1].transpose(0, 1), made[2].contiguous())]


def differentiable(function, *tensors):
    return gradcheck(function, tensors, fast_mode=True) and gradgradcheck(function, tensors, fast_mode=True)


def test_converted_weights_are_products_of_the_same_strides():
    made = weights.converted(kernels(torch.float32), [1.0, 0.3, 2.0], torch.bfloat16)
    for weight, factor, result in zip(kernels(torch.float32), [1.0, 0.3, 2.0], made, strict=True):
        assert torch.equal(result, (weight * factor).bfloat16())  # rounded once
        assert result.stride() == weight.stride()


def test_gradients_of_converted_weights_are_in_the_dtype_and_strides_of_the_weights():
    given = kernels(torch.float32)
    made = weights.converted(given, [1.0, 0.3, 2.0], torch.bfloat16)
    seeds = [torch.randn_like(result) for result in made]
    torch.autograd.backward(made, seeds)
    for weight, factor, seed in zip(given, [1.0, 0.3, 2.0], seeds, strict=True):
        assert torch.equal(weight.grad, seed.float() * factor)
        assert weight.grad.stride() == weight.stride()


def test_a_gradient_of_other_strides_is_copied():
    given = kernels(torch.float32)
    made = weights.converted(given, [1.0, 1.0, 1.0], torch.bfloat16)
    seed = torch.randn_like(made[0]).contiguous()
    made[0].backward(seed)
    assert torch.equal(given[0].grad, seed.float()) and given[1].grad is None


def test_frozen_weights_stay_frozen():
    given = kernels()
    given[1].requires_grad_(False)
    made = weights.converted(given, [2.0, 2.0, 2.0], torch.float32)
    assert [result.requires_grad for result in made] == [True, False, True]
    made, energies = weights.with_energies(given, torch.float32)
    assert [result.requires_grad for result in made] == [True, False, True]
    energies.sum().backward()
    assert given[1].grad is None


@pytest.mark.parametrize("factors", [[1.0, 1.0, 1.0], [1.0, 0.3, 2.0]])
def test_conversion_is_differentiable(factors):
    assert differentiable(lambda *x: tuple(weights.converted(x, factors, torch.float64)), *kernels())


def test_stacks_are_padded_with_zeros():
    rows = [normal(2, 3, dtype=torch.float32), normal(4, 3, dtype=torch.float32), normal(1, 3, dtype=torch.float32)]
    stack = weights.stacked(rows, torch.bfloat16)
    assert stack.shape == (3, 4, 3) and stack.dtype == torch.bfloat16
    for part, tensor in zip(stack, rows, strict=True):
        assert torch.equal(part[: len(tensor)], tensor.bfloat16()) and not part[len(tensor) :].any()
    stack.float().square().sum().backward()
    assert all(torch.equal(x.grad, 2 * x.bfloat16().float()) for x in rows)


def test_stacks_are_differentiable():
    assert differentiable(lambda *x: weights.stacked(x, torch.float64), normal(2, 3), normal(4, 3), normal(1, 3))
    assert differentiable(lambda *x: weights.stacked(x, torch.float64), normal(2), normal(3))


@pytest.mark.parametrize("widths", [[4, 4, 4], [4, 2, 3]])
def test_unpadded_parts_are_contiguous(widths):
    x = normal(3, 2, 4)
    parts = weights.unpadded(x, widths)
    for part, padded, width in zip(parts, x, widths, strict=True):
        assert torch.equal(part, padded[:, :width]) and part.is_contiguous()
    assert differentiable(lambda x: tuple(weights.unpadded(x, widths)), x)
    assert differentiable(lambda x: weights.unpadded(x, widths)[1].square(), x)  # the others have no gradient


def test_energies_are_sums_of_squares():
    given = kernels(torch.float32)
    made, energies = weights.with_energies(given, torch.bfloat16)
    assert energies.shape == (3, 4, 4) and energies.dtype == torch.float32
    for weight, result, energy in zip(given, made, energies, strict=True):
        o, i = weight.shape[:2]
        assert torch.equal(result, weight.bfloat16()) and result.stride() == weight.stride()
        torch.testing.assert_close(energy[:o, :i], weight.square().sum((2, 3)))
        assert not energy[o:].any() and not energy[:, i:].any()


def test_weights_and_energies_are_differentiable():
    def both(*given):
        made, energies = weights.with_energies(given, torch.float64)
        return *made, energies

    assert differentiable(both, *kernels())
    assert differentiable(lambda *given: both(*given)[-1], *kernels())
    assert differentiable(lambda *given: both(*given)[0], *kernels())


def test_one_gradient_serves_a_converted_weight_and_its_energy():
    given = kernels(torch.float32)
    made, energies = weights.with_energies(given, torch.bfloat16)
    seeds, seed = [torch.randn_like(result) for result in made], torch.randn_like(energies)
    torch.autograd.backward([*made, energies], [*seeds, seed])
    for weight, of_weight, of_energy in zip(given, seeds, seed, strict=True):
        o, i = weight.shape[:2]
        torch.testing.assert_close(weight.grad, of_weight.float() + 2 * weight * of_energy[:o, :i, None, None])
        assert weight.grad.stride() == weight.stride()


def test_demodulations_of_many_layers_equal_those_of_each():
    given, gains = kernels(), [0.5, 0.2, 2.0]
    _, energies = weights.with_energies(given, torch.float64)
    styles = [normal(5, weight.shape[1]) for weight in given]
    padded = torch.stack([torch.nn.functional.pad(style, (0, 4 - style.shape[1])) for style in styles])
    factors = weights.unpadded(demodulations(energies, padded, gains), list(map(len, given)))
    for weight, style, gain, factor in zip(given, styles, gains, factors, strict=True):
        torch.testing.assert_close(factor, demodulation(weight, style, gain) * gain, rtol=1e-12, atol=1e-12)


def test_a_factor_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"factor has shape \[2, 4\], must be \[2, 3\]"):
        modulated_conv2d(normal(2, 4, 5, 5), normal(3, 4, 3, 3), normal(2, 4), factor=normal(2, 4))


@pytest.mark.parametrize("up", [1, 2])
def test_a_factor_computed_before_replaces_the_demodulation(up):
    x, weight, style = normal(2, 4, 5, 5), normal(3, 4, 3, 3), normal(2, 4)
    options = {"weight_gain": 0.3, "up": up, "act": "lrelu"}
    factor = demodulation(weight, style, 0.3) * 0.3
    torch.testing.assert_close(
        modulated_conv2d(x, weight, style, factor=factor, **options), modulated_conv2d(x, weight, style, **options)
    )


def test_weights_are_computed_together_on_gpus_only(monkeypatch):
    weight = torch.ones(2)
    assert not weights.computed_together([weight])
    monkeypatch.setattr(weights.backends, "choose", lambda operation, device: "cuda")
    assert weights.computed_together([weight])
    assert torch.func.grad(lambda x: x.sum() * weights.computed_together([x]))(weight).sum() == 0


def test_weights_share_kernels_in_groups_where_processes_send_gradients(monkeypatch):
    given = [torch.empty(1 << 18, device="meta")] * 60  # a MiB each
    assert weights.finished_together(given) == [slice(None)]
    monkeypatch.setattr(weights.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(weights.dist, "get_world_size", lambda: 2)
    groups = weights.finished_together(given)
    assert [len(given[group]) for group in groups] == [24, 25, 11]
    assert [len(given[group]) for group in weights.finished_together(given[:3])] == [3]
