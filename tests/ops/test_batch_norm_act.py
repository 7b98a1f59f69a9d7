"""batch_norm_act: one table of cases for every backend, and comparisons with PyTorch's batch norm."""

import copy
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgan.layers import BatchNormAct
from fastgan.ops import batch_norm_act
from tests.support import backends, table
from tests.support.table import DTYPES, arrange, away_from_kinks, per_channel

PARTS = ("weight", "bias")
ACTIVATIONS = {"linear": lambda v: v, "relu": torch.relu, "lrelu": lambda v: F.leaky_relu(v, 0.2)}


class Case(NamedTuple):
    shape: tuple[int, ...] = (3, 16, 5, 7)
    layout: str = "nhwc"  # nchw, nhwc, sliced, expanded
    parts: tuple[str, ...] = PARTS
    act: str = "lrelu"
    gain: float = 1.0
    eps: float = 1e-5
    mean: float = 0.0  # of x

    def __str__(self):
        flags = [self.layout, self.act, "+".join(self.parts) or "bare", *["far"] * bool(self.mean)]
        return "-".join(["x".join(map(str, self.shape)), *flags])


# Too much for one unit of work of any kernel, and on a GPU for one thread that merges its pieces.
IN_PIECES = {"nhwc": (2, 64, 32, 33), "nchw": (70, 3, 26, 27)}


def _forms():
    for layout in ("nhwc", "nchw"):
        for act in ACTIVATIONS:
            yield Case(layout=layout, act=act, gain=-0.7 if act == "relu" else 1.4)
    yield Case(layout="sliced", parts=("weight",))
    yield Case(layout="expanded", parts=("bias",))


def _sizes():
    for layout in ("nhwc", "nchw"):
        for shape in ((2, 5, 1, 1), (2, 3, 33, 17), (1, 1, 9, 31), (0, 4, 3, 3), (2, 37, 4, 4), IN_PIECES[layout]):
            yield Case(shape, layout, eps=1e-2 if shape[2:] == (1, 1) else 1e-5)
    yield Case((2, 300, 4, 4), "nhwc")  # more channels than one tile has
    yield Case((70, 3, 2, 3), "nchw")  # more samples than threads that merge them
    for shape in ((5, 8), (2, 3, 11), (2, 3, 2, 3, 5)):
        yield Case(shape, "nchw", eps=1e-2, parts=())


def _far():
    """A case with a mean far from zero, whose rounding to fp32 leaves an error of 5e-4 in x - mean."""
    for layout in ("nhwc", "nchw"):
        for shape in ((3, 16, 5, 7), (2, 37, 3, 5), IN_PIECES[layout]):
            yield Case(shape, layout, mean=1e4)


CASES = [(case, dtype) for case in _forms() for dtype in DTYPES]
CASES += [(case, dtype) for case in _sizes() for dtype in ("fp32", "bf16")]
CASES += [(case, "fp32") for case in _far()]


def textbook(x, weight=None, bias=None, *, act, gain=1.0, eps=1e-5):
    """The operation in plain PyTorch, in the dtype of its inputs. Independent of the reference in fastgan."""
    over = [0, *range(2, x.dim())]
    centred = x - x.mean(over, keepdim=True)
    v = centred / (centred.square().mean(over, keepdim=True) + eps).sqrt()
    v = v if weight is None else v * per_channel(weight, x)
    return ACTIVATIONS[act](v if bias is None else v + per_channel(bias, x)) * gain


def make(case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """x and the small tensors, exact in `dtype`, with no value near the kink of the activation."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(dtype).double()
    small = {"weight": draw(case.shape[1]), "bias": draw(case.shape[1])}
    small = {name: t for name, t in small.items() if name in case.parts}
    x = draw(*case.shape) + case.mean
    if case.layout == "expanded":
        x = x[:1].expand(case.shape)
    if case.act != "linear":
        near_kink = lambda x: textbook(x, **small, act="linear", eps=case.eps).abs() < 0.02
        x = away_from_kinks(x, near_kink, dtype)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    x = arrange(x.to(device, dtype), case.layout)
    return {"x": x, **{name: t.to(device, kind) for name, t in small.items()}}


@table.over(CASES)
def test_values_and_derivatives_are_as_good_as_plain_pytorch(backend, case, dtype, unwritten_is_nan):
    options = {"act": case.act, "gain": case.gain, "eps": case.eps}
    table.assert_derivatives_as_good_as_plain(
        lambda x, **small: batch_norm_act(x, **small, **options),
        lambda x, **small: textbook(x, **small, **options),
        make(case, DTYPES[dtype], backends.device(backend)),
        layout=case.layout,
        case=case,
        terms=4.0,  # over the standard deviation of a few elements
        orders=table.orders_of(backend, case.mean),
    )


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@backends.one_instruction_set
def test_gradcheck_and_gradgradcheck(backend, layout, training):
    device = backends.device(backend)
    tensors = make(Case((2, 3, 2, 3), layout, eps=0.1), torch.float64, device, seed=3)
    running = {} if training else {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    running = {name: t.to(device, torch.float64) for name, t in running.items()}
    function = lambda *inputs: batch_norm_act(*inputs, **running, training=training, eps=0.1)
    inputs = [t.requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@backends.one_instruction_set
def test_third_derivatives(backend):
    x, weight, bias = make(Case((2, 2, 1, 2), eps=0.1), torch.float64, backends.device(backend)).values()
    function = lambda x: batch_norm_act(x, weight, bias, eps=0.1).pow(3).sum()
    first = lambda x: torch.autograd.grad(function(x), x, create_graph=True)[0]
    assert torch.autograd.gradgradcheck(first, [x.requires_grad_()], fast_mode=True)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("parts", [PARTS, ("bias",), ()], ids=str)
@backends.one_instruction_set
def test_several_batches_are_normalised_separately(backend, layout, parts):
    """Result, first and second derivatives and running averages equal those of separate calls."""
    tensors = make(Case((6, 16, 5, 4), layout, parts=parts), torch.float64, backends.device(backend))
    found = []
    for together in (True, False):
        x, *small = [t.detach().requires_grad_() for t in tensors.values()]
        averages = [x.new_zeros(16), x.new_ones(16)]
        running = dict(zip(("running_mean", "running_var"), averages, strict=True))
        call = lambda x, small=small, running=running, **more: batch_norm_act(
            x, **dict(zip(list(tensors)[1:], small, strict=True)), **running, **more
        )
        y = call(x, batches=3) if together else torch.cat([call(part) for part in x.split(2)])
        grads = torch.autograd.grad(y.pow(3).sum(), (x, *small), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), (x, *small))
        found.append([y, *grads, *second, *averages])
    for together, apart in zip(*found, strict=True):
        torch.testing.assert_close(together, apart)


@backends.one_instruction_set
def test_unneeded_gradients_of_several_batches_are_none(backend):
    x, weight, bias = make(Case(), torch.float32, backends.device(backend)).values()
    y = batch_norm_act(x, weight.requires_grad_(), bias, batches=3)
    (dweight,) = torch.autograd.grad(y.pow(2).sum(), weight)
    expected = [batch_norm_act(part, weight, bias).pow(2).sum() for part in x.split(1)]
    torch.testing.assert_close(dweight, torch.autograd.grad(sum(expected), weight)[0], rtol=1e-4, atol=1e-4)


def test_the_layer_counts_batches():
    layer, apart = BatchNormAct(4), BatchNormAct(4)
    x = torch.randn(6, 4, 3, 3)
    layer.batches = 2
    torch.testing.assert_close(layer(x), torch.cat([apart(part) for part in x.chunk(2)]))
    assert all(torch.equal(*pair) for pair in zip(layer.buffers(), apart.buffers(), strict=True))
    assert int(layer.num_batches_tracked) == 2
    layer.eval(), apart.eval()
    assert torch.equal(layer(x), apart(x))


@pytest.mark.parametrize("batches", [0, 4])
def test_a_number_of_batches_that_does_not_divide_the_samples_is_refused(batches):
    with pytest.raises(ValueError, match=f"batches is {batches}, must divide the 6 samples of x"):
        batch_norm_act(torch.zeros(6, 4, 3, 3), batches=batches)


# What it shares with PyTorch's ------------------------------------------------------------------------------------


def pair(channels, device, act="lrelu", momentum=0.1, dims=2):
    """The layer, and PyTorch's batch norm and activation with the same parameters."""
    norm = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(channels, momentum=momentum).to(device)
    nn.init.normal_(norm.weight, 1.0, 0.5), nn.init.normal_(norm.bias)
    fused = BatchNormAct(channels, act=act, momentum=momentum).to(device)
    fused.load_state_dict(norm.state_dict())
    return fused, nn.Sequential(norm, {"linear": nn.Identity(), "relu": nn.ReLU(), "lrelu": nn.LeakyReLU(0.2)}[act])


def assert_close(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dims", [2, 0], ids=["images", "vectors"])
@pytest.mark.parametrize(("act", "momentum"), [("linear", 0.1), ("relu", 0.3), ("lrelu", 1.0)])
@backends.one_instruction_set
def test_training_and_evaluation_are_those_of_batch_norm_and_activation(backend, act, momentum, dims):
    """Results, gradients and running statistics: several batches in training, then one in evaluation."""
    device = backends.device(backend)
    torch.manual_seed(0)
    fused, plain = pair(6, device, act, momentum, dims)
    for training in (True, True, True, False):
        fused.train(training), plain.train(training)
        x = (3 + 2 * torch.randn(8, 6, *[5] * dims)).to(device).requires_grad_()
        y, expected = fused(x), plain(x)
        g = torch.randn_like(y)
        assert_close([y], [expected])
        assert_close(
            torch.autograd.grad(y, [x, *fused.parameters()], g),
            torch.autograd.grad(expected, [x, *plain.parameters()], g),
        )
        state = plain[0].state_dict()
        assert fused.state_dict().keys() == state.keys()
        assert_close(fused.state_dict().values(), state.values())
    assert fused.num_batches_tracked == 3


@backends.one_instruction_set
def test_statistics_of_16_bit_activations_are_in_single_precision(backend):
    device = backends.device(backend)
    torch.manual_seed(0)
    fused, plain = pair(6, device)
    x = (3 + torch.randn(8, 6, 5, 5)).to(device, torch.bfloat16)
    y = fused(x)
    assert y.dtype == torch.bfloat16 and all(b.dtype == torch.float32 for b in (fused.running_mean, fused.running_var))
    plain(x.float())
    assert_close([fused.running_mean, fused.running_var], [plain[0].running_mean, plain[0].running_var])
    fused.eval(), plain.eval()
    torch.testing.assert_close(fused(x), plain(x.float()).bfloat16())


@backends.one_instruction_set
def test_a_single_value_per_channel_is_refused_in_training_only(backend):
    device = backends.device(backend)
    fused, plain = pair(6, device)
    x = torch.randn(1, 6, 1, 1, device=device)
    with pytest.raises(ValueError, match="xpected more than 1 value per channel"):
        plain(x)
    with pytest.raises(ValueError, match=r"x has shape \[1, 6, 1, 1\], must have more than one value per channel"):
        fused(x)
    assert_close([fused.eval()(x)], [plain.eval()(x)])


@backends.one_instruction_set
def test_an_empty_batch_leaves_the_running_statistics_alone(backend):
    fused, _ = pair(6, backends.device(backend))
    y = fused(torch.empty(0, 6, 3, 3, device=backends.device(backend)))
    assert y.shape == (0, 6, 3, 3)
    assert not fused.running_mean.any() and (fused.running_var == 1).all()


def test_converting_to_synchronised_batch_norm_does_not_lose_the_activation():
    network = nn.Sequential(BatchNormAct(4, act="relu"), nn.BatchNorm2d(4))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert [type(m) for m in converted] == [BatchNormAct, nn.SyncBatchNorm]


# Precision, layout, repeatability ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_variance_is_exact_at_a_mean_far_from_zero(backend, layout, dtype):
    """The variance as E[x^2] - E[x]^2 would be rounding error only. An outlier at the first position does no harm."""
    device = backends.device(backend)
    for shape in ((5, 4, 12, 13), (2, 3, 110, 111)):
        generator = torch.Generator().manual_seed(0)
        x = 1000 + 8 * torch.randn(shape, generator=generator)
        x[0, 1, 0, 0] = -3e4
        x = arrange(x.to(device, dtype), layout)
        running = {"running_mean": torch.zeros(shape[1]), "running_var": torch.zeros(shape[1])}
        running = {name: t.to(device) for name, t in running.items()}
        reference = textbook(x.double(), act="relu")
        y = batch_norm_act(x, act="relu", momentum=1.0, **running)
        # What is left is the rounding of the mean to single precision, and of sums of a few hundred numbers near it.
        error = (y.double() - reference).abs().amax((0, 2, 3))
        largest = reference.abs().amax((0, 2, 3))
        relative = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert (error < 3e-5 + relative * largest).all(), (error, largest)
        var, mean = torch.var_mean(x.double(), (0, 2, 3))
        torch.testing.assert_close(running["running_mean"], mean.float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(running["running_var"], var.float(), rtol=1e-5, atol=0)


def test_a_constant_channel_gives_the_activated_bias(backend):
    device = backends.device(backend)
    x = torch.full((2, 3, 9, 9), 0.1, device=device)
    weight, bias = torch.randn(2, 3, device=device)
    y = batch_norm_act(x, weight, bias)
    torch.testing.assert_close(y, F.leaky_relu(bias, 0.2)[:, None, None].expand_as(y), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@backends.one_instruction_set
def test_output_has_the_memory_format_of_the_input(backend, layout):
    x = make(Case(layout=layout), torch.float32, backends.device(backend))["x"].requires_grad_()
    y = batch_norm_act(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.stride() == dx.stride() == x.stride()


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(layout, shape) for layout in ("nchw", "nhwc") for shape in ((3, 24, 15, 17), IN_PIECES[layout])],
    ids=str,
)
@backends.every_kernel
def test_results_are_bitwise_repeatable(backend, layout, shape):
    tensors = make(Case(shape, layout), torch.float32, backends.device(backend))
    dy = torch.empty_like(tensors["x"]).copy_(torch.randn(shape, generator=torch.Generator().manual_seed(5)))
    inputs = [t.requires_grad_() for t in tensors.values()]

    def results():
        mean, var = torch.zeros(2, shape[1], device=dy.device)
        y = batch_norm_act(**tensors, running_mean=mean, running_var=var)
        return [y, mean, var, *torch.autograd.grad(y, inputs, dy)]

    table.assert_bitwise_repeatable(backend, results)


@backends.one_instruction_set
def test_unneeded_gradients_are_not_computed(backend, monkeypatch):
    from fastgan.ops.batch_norm_act import BatchNormAct as Operation

    made, allocate = [], Operation.allocate_grads
    noting = lambda *args: made.append(allocate(*args)) or made[-1]
    monkeypatch.setattr(Operation, "allocate_grads", staticmethod(noting))
    tensors = make(Case(), torch.float32, backends.device(backend))
    for names in (("weight", "bias"), ("bias",), ("x",)):
        leaves = {name: tensors[name].clone().requires_grad_() for name in names}
        got = torch.autograd.grad(batch_norm_act(**{**tensors, **leaves}).pow(3).sum(), list(leaves.values()))
        reference = textbook(**{**tensors, **leaves}, act="lrelu").pow(3).sum()
        for a, b in zip(got, torch.autograd.grad(reference, list(leaves.values())), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        if backend != "torch":
            named = dict(zip(Operation.inputs, made[-1], strict=True))
            assert {name for name, grad in named.items() if grad is not None} == set(names)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_nan_stays_in_its_channel(backend, layout):
    x = make(Case(layout=layout), torch.float32, backends.device(backend))["x"]
    x[1, 3, 2, 1] = math.nan
    bad = batch_norm_act(x).isnan()
    assert bad[:, 3].all() and bad.sum() == bad[:, 3].numel()


def test_overflow_does_not_enter_the_running_statistics(backend):
    """They would never be finite again, although the optimizer skips the step that overflowed."""
    fused, plain = pair(6, backends.device(backend))
    x = torch.randn(4, 6, 3, 3, device=backends.device(backend))
    plain(x)
    x[1, 3, 2, 1] = math.inf
    fused(x)
    for ours, expected, fresh in (
        (fused.running_mean, plain[0].running_mean, 0.0),
        (fused.running_var, plain[0].running_var, 1.0),
    ):
        expected[3] = fresh
        torch.testing.assert_close(ours, expected)


def test_torch_compile_includes_the_running_statistics_in_one_graph():
    fused, _ = pair(6, "cpu")
    same = copy.deepcopy(fused)
    x = torch.randn(4, 6, 5, 5)
    compiled = torch.compile(same, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        expected = torch.autograd.grad(fused(x).pow(3).sum(), list(fused.parameters()))
        got = torch.autograd.grad(compiled(x).pow(3).sum(), list(same.parameters()))
        assert_close(got, expected)
    assert_close(same.state_dict().values(), fused.state_dict().values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bias": torch.zeros(3)}, ["bias", "[3]", "[4]", "[2, 4, 5, 5]"]),
        ({"weight": torch.zeros(2, 4)}, ["weight", "[2, 4]", "[4]"]),
        ({"weight": torch.zeros(4, dtype=torch.int64)}, ["weight", "int64"]),
        ({"running_mean": torch.zeros(4)}, ["running_mean", "running_var", "both or neither"]),
        ({"running_mean": torch.zeros(4), "running_var": torch.zeros(5)}, ["running_var", "[5]", "[4]"]),
        ({"training": False}, ["running_mean", "not given"]),
        ({"momentum": 1.5}, ["momentum", "1.5", "0 to 1"]),
        ({"act": "silu"}, ["act", "'silu'", "piecewise linear", "lrelu"]),
        ({"gain": math.inf}, ["gain", "inf"]),
        ({"eps": 0.0}, ["eps", "0.0"]),
    ],
)
def test_an_argument_that_does_not_fit_is_named(arguments, words):
    call = lambda: batch_norm_act(torch.zeros(2, 4, 5, 5), **arguments)
    table.assert_message_contains(["batch_norm_act: ", *words], call)


def test_the_layer_names_an_unknown_activation():
    with pytest.raises(ValueError, match="BatchNormAct: act is 'tanh'"):
        BatchNormAct(4, act="tanh")
