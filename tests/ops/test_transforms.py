"""torch.func and forward-mode AD with every operation, against reverse mode on the kernels.

A new operation is a line in `OPERATIONS` of test_every_operation.py.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from fastgan import models
from fastgan.penalties import logits_and_squared_grad
from tests.ops import test_every_operation as every
from tests.ops.test_every_operation import every_operation


class Case:
    """An operation as a function of its differentiable tensors, in fp64, and values for them."""

    def __init__(self, use: every.Use, channels_last: bool = True):
        tensors = {name: t.detach().double() for name, t in use.tensors().items()}
        if not channels_last:
            tensors["x"] = tensors["x"].contiguous()
        self.names = [name for name in tensors if name not in use.fixed]
        self.fixed = {name: tensors[name] for name in use.fixed}
        self.function = use.function
        self.at = tuple(tensors[name] for name in self.names)
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.function(**dict(zip(self.names, inputs, strict=True)), **self.fixed)

    def loss(self, *inputs: Tensor) -> Tensor:
        return self(*inputs).sin().sum()

    def like(self, tensors: tuple[Tensor, ...], *before: int) -> tuple[Tensor, ...]:
        draw = lambda t: torch.randn((*before, *t.shape), generator=self.generator, dtype=t.dtype)
        return tuple(draw(t) for t in tensors)

    def leaves(self) -> tuple[Tensor, ...]:
        return tuple(t.clone().requires_grad_() for t in self.at)

    def gradients(self, of=None, at: tuple[Tensor, ...] | None = None, cotangent: Tensor | None = None):
        """Gradients by reverse mode on the kernels."""
        leaves = tuple(t.detach().clone().requires_grad_() for t in at or self.at)
        return torch.autograd.grad((of or self.loss)(*leaves), leaves, cotangent)

    def tangent(self, directions: tuple[Tensor, ...]) -> Tensor:
        """Tangent of the result: reverse mode twice, on the kernels."""
        leaves = self.leaves()
        y = self(*leaves)
        cotangent = torch.zeros_like(y, requires_grad=True)
        grads = torch.autograd.grad(y, leaves, cotangent, create_graph=True)
        return torch.autograd.grad(sum((g * d).sum() for g, d in zip(grads, directions, strict=True)), cotangent)[0]

    def curvature(self, directions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The Hessian of the loss in a direction: reverse mode twice, on the kernels."""
        leaves = self.leaves()
        grads = torch.autograd.grad(self.loss(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum((g * d).sum() for g, d in zip(grads, directions, strict=True)), leaves)


@pytest.fixture(params=every.OPERATIONS)
def case(request):
    return Case(every.OPERATIONS[request.param])


close = torch.testing.assert_close


def test_grad_and_vjp(case):
    everything = tuple(range(len(case.at)))
    close(grad(case.loss, everything)(*case.at), case.gradients())
    y, pull = vjp(case, *case.at)
    (cotangent,) = case.like((y,))
    close(y, case(*case.at))
    close(pull(cotangent), case.gradients(case, cotangent=cotangent))


def test_jvp(case):
    directions = case.like(case.at)
    y, tangent = jvp(case, case.at, directions)
    close(y, case(*case.at))
    close(tangent, case.tangent(directions))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_dual_tensors(case, requires_grad):
    """One tensor after another has a tangent."""
    directions = case.like(case.at)
    for i, direction in enumerate(directions):
        only = tuple(d if d is direction else torch.zeros_like(d) for d in directions)
        with forward_ad.dual_level():
            inputs = [*(case.leaves() if requires_grad else case.at)]
            inputs[i] = forward_ad.make_dual(inputs[i], direction)
            y = forward_ad.unpack_dual(case(*inputs))
        close(y.primal, case(*case.at))
        close(y.tangent, case.tangent(only))


def test_dual_tensors_in_the_backward_pass_of_kernels(case):
    y = case(*(leaves := case.leaves()))
    cotangent, direction = case.like((y, y))
    for create_graph in (False, True):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(cotangent, direction)
            grads = torch.autograd.grad(y, leaves, dual, retain_graph=True, create_graph=create_graph)
            tangents = tuple(forward_ad.unpack_dual(g).tangent for g in grads)
        close(grads, case.gradients(case, cotangent=cotangent))
        close(tangents, case.gradients(case, cotangent=direction))


def test_forward_over_reverse_and_reverse_over_reverse(case):
    everything = tuple(range(len(case.at)))
    directions = case.like(case.at)
    expected = case.curvature(directions)
    close(jvp(grad(case.loss, everything), case.at, directions)[1], expected)

    def slope(*inputs):
        grads = grad(case.loss, everything)(*inputs)
        return sum((g * d).sum() for g, d in zip(grads, directions, strict=True))

    close(grad(slope, everything)(*case.at), expected)


def test_jacobians_and_hessian(case):
    """Along three directions, to keep them small."""
    directions = case.like(case.at, 3)
    each = [tuple(d[i] for d in directions) for i in range(3)]

    def moved(t):
        return [x + torch.tensordot(t, d, 1) for x, d in zip(case.at, directions, strict=True)]

    at = torch.zeros(3, dtype=torch.float64)
    expected = torch.stack([case.tangent(d) for d in each], -1)
    close(jacrev(lambda t: case(*moved(t)).sum((1, 2)))(at), expected.sum((1, 2)))
    close(jacfwd(lambda t: case(*moved(t)))(at), expected)
    curved = [case.curvature(d) for d in each]
    expected = torch.stack(
        [torch.stack([sum((a * b).sum() for a, b in zip(c, d, strict=True)) for d in each]) for c in curved]
    )
    close(hessian(lambda t: case.loss(*moved(t)))(at), expected)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@every_operation
def test_vmap(use, channels_last):
    case = Case(use, channels_last)
    several = tuple(torch.stack([t, 0.5 * t]) for t in case.at)
    each = list(zip(*several, strict=True))
    close(vmap(case)(*several), torch.stack([case(*inputs) for inputs in each]))
    dims = tuple(min(1, t.dim()) for t in case.at)
    turned = [t.movedim(0, dim) for t, dim in zip(several, dims, strict=True)]
    close(vmap(case, in_dims=dims, out_dims=1)(*turned), vmap(case, out_dims=1)(*several))
    everything = tuple(range(len(case.at)))
    of_each = vmap(grad(case.loss, everything))(*several)
    close(of_each, tuple(map(torch.stack, zip(*(case.gradients(at=inputs) for inputs in each), strict=True))))


@pytest.mark.parametrize("create_graph", [False, True])
def test_batches_of_cotangents_in_the_backward_pass_of_kernels(case, create_graph):
    """`is_grads_batched`, which `torch.autograd.functional.jacobian(vectorize=True)` uses."""
    y = case(*(leaves := case.leaves()))
    (cotangents,) = case.like((y,), 2)
    got = torch.autograd.grad(y, leaves, cotangents, is_grads_batched=True, create_graph=create_graph)
    expected = [case.gradients(case, cotangent=cotangent) for cotangent in cotangents]
    close(got, tuple(map(torch.stack, zip(*expected, strict=True))))
    if create_graph and any(g.requires_grad for g in got):
        second = torch.autograd.grad(sum(g.square().sum() for g in got), leaves, materialize_grads=True)
        leaves = case.leaves()
        y = case(*leaves)
        total = sum(g.square().sum() for c in cotangents for g in torch.autograd.grad(y, leaves, c, create_graph=True))
        close(second, torch.autograd.grad(total, leaves, materialize_grads=True))


def test_second_derivatives_in_batches(case):
    leaves = case.leaves()
    grads = torch.autograd.grad(case.loss(*leaves), leaves, create_graph=True)
    directions = case.like(case.at, 2)
    got = torch.autograd.grad(grads, leaves, directions, is_grads_batched=True)
    expected = [case.curvature(tuple(d[i] for d in directions)) for i in range(2)]
    close(got, tuple(map(torch.stack, zip(*expected, strict=True))))


@pytest.mark.parametrize("name", ["noise_bias_act", "upfirdn2d", "conv_downsample2d"])  # one of each Function
def test_torch_func_within_torch_compile(name):
    case = Case(every.OPERATIONS[name])
    torch.compiler.reset()
    everything = tuple(range(len(case.at)))
    compiled = torch.compile(lambda *inputs: grad(case.loss, everything)(*inputs), fullgraph=True, backend="aot_eager")
    close(compiled(*case.at), case.gradients())


# Layers ------------------------------------------------------------------------------------------------------------


def network_and_inputs():
    torch.manual_seed(0)
    return every.EveryLayer().double(), tuple(t.double() for t in every.batch())


def test_functional_call_of_every_layer():
    network, inputs = network_and_inputs()
    every.loss_of(network, *inputs).backward()
    parameters = dict(network.named_parameters())
    got = grad(lambda p: functional_call(network, p, inputs).square().mean())(parameters)
    close(got, {name: p.grad for name, p in parameters.items()})


def test_an_ensemble_of_every_layer():
    networks = [network_and_inputs()[0] for _ in range(2)]
    for p in networks[1].parameters():
        p.data.mul_(1.1)
    _, inputs = network_and_inputs()
    parameters, buffers = stack_module_state(networks)
    got = vmap(lambda p, b: functional_call(networks[0], (p, b), inputs))(parameters, buffers)
    close(got, torch.stack([network(*inputs) for network in networks]))


# Models and penalties ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["pggan", "stylegan", "stylegan2", "r3gan"])
def test_gradients_of_each_sample(arch):
    """Per-sample gradients of generator and discriminator, as for differential privacy."""
    torch.manual_seed(0)
    generator, discriminator = models.build(models.ModelConfig(arch=arch, resolution=8, channel_base=64, z_dim=16))
    options = {"noise": "const"} if "noise" in generator.supports else {}
    for network, x, named in ((generator, torch.randn(2, 16), options), (discriminator, torch.randn(2, 1, 8, 8), {})):
        network.double().eval()
        x, parameters = x.double(), dict(network.named_parameters())

        def loss(p, sample, network=network, named=named):
            return functional_call(network, p, (sample[None],), named).square().sum()

        got = vmap(grad(loss), in_dims=(None, 0))({name: p.detach() for name, p in parameters.items()}, x)
        for i, sample in enumerate(x):
            expected = torch.autograd.grad(
                network(sample[None], **named).square().sum(), list(parameters.values()), materialize_grads=True
            )
            close([g[i] for g in got.values()], list(expected), rtol=1e-6, atol=1e-9)


def test_a_penalty_refuses_transforms_that_it_would_get_wrong():
    discriminator = every.EveryLayer().conv
    images = torch.randn(2, every.C, 4, 4)
    penalty = lambda x: logits_and_squared_grad(lambda x: discriminator(x).sum((1, 2, 3)), x)[1].sum()
    with pytest.raises(RuntimeError, match="does not work within"):
        grad(penalty)(images)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="does not work within"):
        penalty(forward_ad.make_dual(images, images))
