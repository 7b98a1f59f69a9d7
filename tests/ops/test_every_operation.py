"""Every operation with PyTorch's machinery, as in a network of a user's own.

Autocast, `torch.compile`, activation checkpointing, several processes, CUDA graphs, and torch's checks of the
registered library operators. A new operation is a line in `OPERATIONS`. Tests here name the other tables of cases that
lack it.
"""

import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fastgan_kernels
from fastgan import layers, ops
from fastgan.ops import fused
from tests.ops import test_inplace, test_large, test_small_operations, test_tables_elsewhere
from tests.support import backends
from tests.support.processes import Process

N, C, SIZE, W = 4, 6, 8, 5
CHANNELS, SAMPLES = (C,), (N, C)


class Use(NamedTuple):
    """A call of an operation as in a network, on x [N, C, SIZE, SIZE] and on named tensors of these shapes."""

    function: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]
    fixed: tuple[str, ...] = ()  # tensors without a gradient

    def tensors(self, dtype=torch.float32, device="cpu") -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(shape, generator=generator).to(device)
        x = draw(N, C, SIZE, SIZE).to(dtype, memory_format=torch.channels_last)
        small = {name: draw(*shape) for name, shape in self.shapes.items()}
        return {name: t.requires_grad_(name not in self.fixed) for name, t in {"x": x, **small}.items()}


def feature_maps_and_image(y: Tensor, rgb: Tensor) -> Tensor:
    return torch.cat([y, rgb.to(y.dtype)], 1)


OPERATIONS = {
    "residual": Use(
        lambda x, bias, residual: ops.noise_bias_act(x, bias=bias, residual=residual.to(x.dtype)),
        {"bias": CHANNELS, "residual": (N, C, SIZE, SIZE)},
    ),
    "noise_bias_act": Use(
        partial(ops.noise_bias_act, gain=1.4),
        {"noise": (N, 1, SIZE, SIZE), "strength": (), "bias": CHANNELS, "scale": SAMPLES, "post": SAMPLES},
        fixed=("noise",),
    ),
    "noise_bias_act_to_rgb": Use(
        lambda x, **others: feature_maps_and_image(*ops.noise_bias_act_to_rgb(x, **others)),
        {"to_rgb": (N, 3, C), "noise": (N, 1, SIZE, SIZE), "strength": (), "bias": CHANNELS}
        | {"scale": SAMPLES, "post": SAMPLES},
        fixed=("noise",),
    ),
    "noise_bias_act_to_rgb of the last layer": Use(
        lambda x, **others: ops.noise_bias_act_to_rgb(x, **others)[1].to(x.dtype),
        {"to_rgb": (N, 3, C), "bias": CHANNELS},
    ),
    "batch_norm_act": Use(ops.batch_norm_act, {"weight": CHANNELS, "bias": CHANNELS}),
    "adain": Use(ops.adain, {"scale": SAMPLES, "bias": SAMPLES}),
    "style_epilogue": Use(
        ops.style_epilogue,
        {"noise": (N, 1, SIZE, SIZE), "strength": CHANNELS, "bias": CHANNELS}
        | {"style_scale": SAMPLES, "style_bias": SAMPLES},
        fixed=("noise",),
    ),
    "modulated_conv2d": Use(
        partial(ops.modulated_conv2d, act="lrelu"), {"weight": (C, C, 3, 3), "style": SAMPLES, "bias": CHANNELS}
    ),
    "modulated_conv2d_up": Use(partial(ops.modulated_conv2d, up=2), {"weight": (C, C, 3, 3), "style": SAMPLES}),
    "upfirdn2d": Use(partial(ops.upfirdn2d, up=2, padding=(2, 1, 2, 1), gain=4.0), {"taps": (4,)}, fixed=("taps",)),
    "upsample_conv2d": Use(ops.upsample_conv2d, {"weight": (C, C, 3, 3), "bias": CHANNELS}),
    "pixel_norm": Use(ops.pixel_norm, {}),
    "squared_norm": Use(lambda x: x * ops.squared_norm(x).to(x.dtype).reshape(-1, 1, 1, 1), {}),
    "lerp_samples": Use(
        lambda x, b, t: ops.lerp_samples(x, b.to(x.dtype), t), {"b": (N, C, SIZE, SIZE), "t": (N,)}, fixed=("t",)
    ),
    "minibatch_stddev": Use(ops.minibatch_stddev, {}),
    "image_batch": Use(
        lambda x, bytes, order: x * ops.image_batch(bytes.mul(50).to(torch.uint8), order.argsort(), order > 0, x.dtype),
        {"bytes": (N, SIZE, SIZE, C), "order": (N,)},
        fixed=("bytes", "order"),
    ),
    "filtered_noise_bias_act": Use(
        partial(ops.filtered_noise_bias_act, padding=(2, 1, 2, 1), fir_gain=4.0),
        {"taps": (4,), "noise": (N, 1, SIZE, SIZE), "bias": CHANNELS, "scale": SAMPLES, "post": SAMPLES},
        fixed=("taps", "noise"),
    ),
    "bias_act_blur": Use(
        partial(ops.bias_act_blur, padding=(2, 2, 2, 2), gain=1.4), {"taps": (4,), "bias": CHANNELS}, fixed=("taps",)
    ),
    "conv_downsample2d": Use(ops.conv_downsample2d, {"weight": (C, C, 3, 3), "bias": CHANNELS}),
    "filtered_lrelu": Use(
        partial(ops.filtered_lrelu, up=2, down=2, padding=3, clamp=2.0),
        {"up_taps": (4,), "down_taps": (4,), "bias": CHANNELS},
        fixed=("up_taps", "down_taps"),
    ),
}
every_operation = pytest.mark.parametrize("use", OPERATIONS.values(), ids=OPERATIONS)


def gradients(use: Use, tensors: dict[str, Tensor], function=None) -> list[Tensor]:
    """The result and its gradients."""
    y = (function or use.function)(**tensors)
    wanted = [t for name, t in tensors.items() if name not in use.fixed]
    return [y, *torch.autograd.grad(y.float().square().mean(), wanted)]


def assert_equal(got: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@every_operation
@backends.one_instruction_set
def test_under_autocast_activations_are_16_bit_and_gradients_as_parameters(use, backend):
    device = backends.device(backend)
    tensors = use.tensors(torch.bfloat16, device)
    with torch.autocast(device, torch.bfloat16):
        y, *grads = gradients(use, tensors)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    wanted = [t for name, t in tensors.items() if name not in use.fixed]
    for g, t in zip(grads, wanted, strict=True):
        assert g.dtype == t.dtype and g.shape == t.shape and g.isfinite().all()


# Gradients that are None, zero or not --------------------------------------------------------------------------------

SMALL = {"noise": (N, 1, SIZE, SIZE), "strength": CHANNELS, "bias": CHANNELS, "scale": SAMPLES, "post": SAMPLES}


def epilogues() -> dict[str, Use]:
    """The end of a layer, with and without its optional parts, which decide which gradients exist."""
    linear = ("batch_norm_act", "style_epilogue", "modulated_conv2d", "filtered_noise_bias_act")
    others = {f"{name} linear": (partial(OPERATIONS[name].function, act="linear"), OPERATIONS[name]) for name in linear}
    return {name: use._replace(function=function) for name, (function, use) in others.items()} | {
        f"{act}, clamp {clamp}, {' '.join(names)}": Use(
            partial(ops.noise_bias_act, act=act, clamp=clamp), {name: SMALL[name] for name in names}, fixed=("noise",)
        )
        for act in ("linear", "lrelu", "tanh", "silu")
        for clamp in (None, 0.5)
        for names in ((), ("bias",), ("noise", "strength"), ("bias", "scale"), ("bias", "post"), tuple(SMALL))
    }


def modulated_as_defined(x, weight, style, bias=None, demodulate=True, act="linear", clamp=None):
    """Convolves each sample by its own weight."""
    images = []
    for image, scale in zip(x.split(1), style, strict=True):
        w = weight * scale[:, None, None]
        w = w * torch.rsqrt(w.square().sum((1, 2, 3), keepdim=True) + 1e-8) if demodulate else w
        images.append(F.conv2d(image, w, padding=weight.shape[-1] // 2))
    y = torch.cat(images)
    y = y if bias is None else y + bias[:, None, None]
    y = F.leaky_relu(y, 0.2) if act == "lrelu" else y
    return y if clamp is None else y.clamp(-clamp, clamp)


def convolved_and_averaged(x, weight, bias):
    """Pools by a mean: `F.avg_pool2d` has zeros for second derivatives that do not exist."""
    return F.conv2d(x, weight, bias, padding=1).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))


WEIGHT, TO_RGB = (C, C, 3, 3), (3, C, 1, 1)
# Definitions in PyTorch's own operations, independent of the reference of an operation.
AS_DEFINED = {
    "conv2d": (Use(ops.conv2d, {"weight": WEIGHT, "bias": CHANNELS}), F.conv2d),
    "conv_transpose2d": (Use(ops.conv_transpose2d, {"weight": WEIGHT, "bias": CHANNELS}), F.conv_transpose2d),
    "upsample_conv2d": (
        OPERATIONS["upsample_conv2d"], lambda x, weight, bias: F.conv2d(F.interpolate(x, scale_factor=2), weight, bias)
    ),
    "conv_downsample2d": (OPERATIONS["conv_downsample2d"], convolved_and_averaged),
    **{
        f"modulated_conv2d {options}": (
            Use(partial(ops.modulated_conv2d, **options), shapes | {"style": SAMPLES}),
            partial(modulated_as_defined, **options),
        )
        for shapes, options in (
            ({"weight": WEIGHT}, {}),
            ({"weight": WEIGHT, "bias": CHANNELS}, {"act": "lrelu"}),
            ({"weight": TO_RGB, "bias": (3,)}, {"demodulate": False}),
            ({"weight": TO_RGB, "bias": (3,)}, {"demodulate": False, "clamp": 0.5}),
        )
    },
}  # fmt: skip
DERIVED = {
    **{name: (use, use.function) for name, use in (OPERATIONS | epilogues()).items()},
    **AS_DEFINED,
}


PUBLIC = {name for name in ops.__all__ if getattr(ops, name).__module__ != "fastgan.ops.backends"}


def test_every_public_operation_has_a_use():
    missing = PUBLIC - {name.split()[0] for name in OPERATIONS | AS_DEFINED}
    assert not missing, f"{missing}: add a use to OPERATIONS in this file"


def operations_of_files(tables: dict[str, str]) -> set[str]:
    """Operations whose cases are in these test files."""
    names = {file.removeprefix("test_").removesuffix(".py") for file in tables}
    return names | (set(test_small_operations.OPERATIONS) if "small_operations" in names else set())


TRITON = Path(fastgan_kernels.__file__).parent / "triton"
WITHOUT_TRITON = {name for name in fused.OPERATIONS if not (TRITON / f"{name}.py").exists()}
TABLES = {
    "CASES in test_large.py": {name.split(",")[0] for name in test_large.CASES},
    "SANITIZED in test_tables_elsewhere.py": operations_of_files(test_tables_elsewhere.SANITIZED),
    "INTERPRETED in test_tables_elsewhere.py": operations_of_files(test_tables_elsewhere.INTERPRETED) | WITHOUT_TRITON,
}


@pytest.mark.parametrize("table", TABLES)
def test_every_operation_of_fastgan_is_in_the_tables_of_cases(table):
    missing = set(fused.OPERATIONS) - TABLES[table]
    assert not missing, f"{missing}: add a case to {table}"


def test_every_public_operation_with_a_gradient_is_in_the_table_of_results_modified_in_place():
    missing = PUBLIC - {name.split()[0] for name in test_inplace.CASES} - {"image_batch"}
    assert not missing, f"{missing}: add a case to CASES in test_inplace.py"


def kind(gradient: Tensor | None) -> str:
    return "none" if gradient is None else "numbers" if gradient.any() else "zeros"


def kinds_of_derivatives(use: Use, function: Callable[..., Tensor]) -> list[list[str]]:
    """None, zeros or numbers: first derivatives, second ones of each first one, second ones of their sum."""
    tensors = {name: t.detach().double() for name, t in use.tensors().items()}
    tensors = {name: t.requires_grad_(name not in use.fixed) for name, t in tensors.items()}
    variables = [t for t in tensors.values() if t.requires_grad]
    y = function(**{name: t * 1 if t.requires_grad else t for name, t in tensors.items()})  # so that none is a leaf
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).requires_grad_()
    first = torch.autograd.grad(y, variables, dy, create_graph=True, allow_unused=True)
    kinds = [list(map(kind, first))]
    curved = [g for g in first if g is not None and g.requires_grad]
    for some in (*([g] for g in curved), curved):
        seeds = [torch.linspace(1, 2, g.numel(), dtype=g.dtype).view(g.shape) for g in some]
        second = torch.autograd.grad(some, [dy, *variables], seeds, retain_graph=True, allow_unused=True)
        kinds.append(list(map(kind, second)))
    return kinds


@pytest.mark.parametrize("name", DERIVED)
@backends.one_instruction_set
def test_missing_and_zero_gradients_are_those_of_plain_pytorch(name, backend):
    """Adam updates a parameter for a gradient of zeros, and skips it for None."""
    use, plain = DERIVED[name]
    with ops.use_backend("torch"):
        expected = kinds_of_derivatives(use, plain)
    got = kinds_of_derivatives(use, use.function)
    # The bias before an instance norm has a gradient of zeros, but for rounding.
    assert got == expected or (name.startswith("style_epilogue") and nones(got) == nones(expected))


def nones(kinds: list[list[str]]) -> list[list[bool]]:
    return [[kind == "none" for kind in row] for row in kinds]


@pytest.mark.parametrize("watch", [torch.autograd.graph.save_on_cpu, torch.autograd.detect_anomaly])
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@every_operation
def test_second_derivatives_under_saved_tensor_hooks_and_anomaly_detection(use, watch):
    fused._has_second_gradients.cache_clear()
    with watch():
        got = kinds_of_derivatives(use, use.function)
        assert torch.is_anomaly_enabled() == (watch is torch.autograd.detect_anomaly)
    assert got == kinds_of_derivatives(use, use.function)


@every_operation
def test_a_mode_sees_the_same_calls_at_every_second_derivative(use):
    """Whatever is found out at the first and kept."""
    fused._has_second_gradients.cache_clear()
    calls = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            kinds_of_derivatives(use, use.function)
        calls.append(counter.get_flop_counts())
    assert calls[0] == calls[1]


class Zeros(TorchDispatchMode):
    """Counts the tensors of zeros that are written within the block."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += "zeros" in str(function)
        return result


@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
def test_zeros_are_written_only_where_there_is_no_other_gradient(backend):
    x, bias = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    for with_loss in (True, False):
        y = ops.noise_bias_act(x * 2, bias=bias)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        penalty = dx.square().sum()
        with Zeros() as zeros:
            (y.square().sum() + penalty if with_loss else penalty).backward()
        assert zeros.count == (0 if with_loss else 1)
    with Zeros() as zeros:  # an earlier pass leaves nothing behind
        y = ops.noise_bias_act(x * 2, bias=bias)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        dx.square().sum().backward(retain_graph=True)
        count = zeros.count
        y.sum().backward()
    assert zeros.count == count


@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
def test_gradients_of_images_compute_none_of_parameters(backend, monkeypatch):
    """PyTorch tells a Function that all gradients are needed."""
    needs, launch = [], fused._launch_backward
    monkeypatch.setattr(fused, "_launch_backward", lambda *args: needs.append(tuple(args[3])) or launch(*args))
    x, strength, bias = (torch.randn(size, requires_grad=True) for size in ((2, 3, 4, 4), (3,), (3,)))
    y = ops.noise_bias_act(x * 1, noise=torch.randn(2, 1, 4, 4), strength=strength * 1, bias=bias * 1)
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert needs == [(True, False, False, False, False, False)] * 2
    (y.sum() + dx.square().sum()).backward()
    assert needs[2] == (True, False, True, True, False, False)


def by_backward(loss, variables, allow_unused):
    for variable in variables:
        variable.grad = None
    loss.backward()
    return [variable.grad for variable in variables]


@pytest.mark.parametrize("differentiate", [torch.autograd.grad, by_backward])
@backends.one_instruction_set
def test_missing_and_zero_gradients_of_layers_are_those_of_plain_pytorch(differentiate, backend):
    """After backward of a loss, and of a penalty alone, which does not depend on the last bias."""
    torch.manual_seed(0)
    network, inputs = EveryLayer().double(), [t.double() for t in batch()]
    last = layers.EqualizedConv2d(3, 2, 1, clamp=0.3).double()

    def kinds():
        found = []
        for penalized in (False, True):
            w = inputs[1].clone().requires_grad_()
            y = last(network(inputs[0], w, inputs[2]))
            if penalized:
                y = torch.autograd.grad(y.sum(), w, create_graph=True)[0]
            variables = [*network.named_parameters(), *last.named_parameters("last")]
            grads = differentiate(y.square().sum(), [p for _, p in variables], allow_unused=True)
            found.append({name: kind(g) for (name, _), g in zip(variables, grads, strict=True)})
        return found

    with ops.use_backend("torch"):
        expected = kinds()
    assert kinds() == expected
    assert expected[0]["last.bias"] == "numbers" and expected[1]["last.bias"] == "none"


@pytest.mark.parametrize("backend", backends.COMPILED, indirect=True)
@every_operation
def test_torch_compile_makes_one_graph_of_it(use, backend):
    tensors = use.tensors(device=backends.device(backend))
    torch.compiler.reset()  # the compiler takes all partial functions for one, and gives up after the eighth
    compiled = torch.compile(use.function, fullgraph=True, backend="aot_eager")
    assert_equal(gradients(use, tensors, compiled), gradients(use, tensors))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="inductor needs a C++ compiler on a CPU")
def test_inductor_compiles_operations_with_the_code_around_them():
    """Inductor's code reads and writes an operation's tensors, by the strides that its fake declares.

    The fakes of all operations are among torch's checks below. Inductor takes seconds a graph.
    """
    uses = {name: OPERATIONS[name] for name in ("noise_bias_act", "noise_bias_act_to_rgb", "upfirdn2d")}
    given = {name: use.tensors() for name, use in uses.items()}
    wanted = [t for name, use in uses.items() for key, t in given[name].items() if key not in use.fixed]

    def network(given):
        return {
            name: torch.tanh(uses[name].function(**{**tensors, "x": 0.5 * tensors["x"] + 0.1}))
            for name, tensors in given.items()
        }

    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, dynamic=False)
    results = [function(given) for function in (compiled, network)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(sum(y.square().mean() for y in ys.values()), wanted) for ys in results]
    assert_equal(*gradients)


@every_operation
@backends.one_instruction_set
def test_activation_checkpointing_gives_the_same_gradients(use, backend):
    tensors = use.tensors(device=backends.device(backend))

    def again(**tensors):
        return checkpoint(lambda: use.function(**tensors), use_reentrant=False)

    assert_equal(gradients(use, tensors, again), gradients(use, tensors))


@every_operation
def test_the_operators_pass_torchs_checks(use, monkeypatch):
    reason = backends.why_not("cpp")
    if reason:
        pytest.skip(reason)
    calls = []

    def noting(name):
        launch = getattr(fused, name)

        def note(*args):
            calls.append((name, args))
            return launch(*args)

        monkeypatch.setattr(fused, name, note)

    noting("_launch_forward"), noting("_launch_backward")
    with ops.use_backend("cpp,torch"):
        gradients(use, use.tensors())
    monkeypatch.undo()  # the checks call the operators, and must not check again
    checks = ("test_schema", "test_faketensor")  # autograd belongs to the Function around the operator
    for name, (operation, backend, options, *rest) in calls:
        with torch.no_grad():
            if name == "_launch_forward":
                operator = getattr(torch.ops.fastgan, operation.name)
                inputs = [None if t is None else t.detach() for t in rest[0]]
                torch.library.opcheck(operator, (*inputs, *options, backend), test_utils=checks)
            else:
                operator = getattr(torch.ops.fastgan, f"{operation.name}_backward")
                needs, grad, kept = rest
                kept = [None if t is None else t.detach() for t in kept]
                grad = [g if g is None else g.detach() for g in grad] if isinstance(grad, tuple) else grad.detach()
                arguments = (grad, kept, list(needs), *options, backend)
                torch.library.opcheck(operator, arguments, test_utils=checks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@every_operation
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_cuda_graph_replays_forward_and_backward(use, name):
    with backends.forced(name):
        tensors = use.tensors(torch.bfloat16, "cuda")
        step = lambda: gradients(use, tensors)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
        with torch.no_grad():
            tensors["x"].mul_(0.5)
        graph.replay()
        torch.cuda.synchronize()
        for a, b in zip(results, step(), strict=True):
            assert torch.equal(a, b)


# Several processes -----------------------------------------------------------------------------------------------


class EveryLayer(nn.Module):
    """A network of all layers. Batch norm is in eval mode, so samples depend on each other in minibatch_stddev only."""

    def __init__(self):
        super().__init__()
        self.down = layers.ConvDownsample2d(3, C, act="lrelu")
        self.conv = layers.EqualizedConv2d(C, C, 3, act="lrelu", down=2)
        self.stddev = layers.MinibatchStddev(group_size=2)
        self.smaller, self.larger, self.blur = layers.Downsample2d(), layers.Upsample2d(), layers.Blur2d()
        self.alias_free = layers.FilteredLReLU(C + 1)
        self.norm, self.batch_norm = layers.PixelNorm(), layers.BatchNormAct(C).eval()
        self.style = layers.EqualizedLinear(W, C + 1, bias_init=1.0)
        self.modulated = layers.ModulatedConv2d(C + 1, C, 3, up=2)
        self.end = layers.NoiseBiasLeakyReLU(C)
        self.styled = layers.StyleEpilogue(C, W)
        self.adain = layers.AdaIN(C, W)
        self.up = layers.UpsampleConv2d(C, 3)
        self.plain, self.transposed = layers.Conv2d(3, 3, 3, padding=1), layers.ConvTranspose2d(3, 3, 4, 2, 1)
        for noisy in (self.end, self.styled):
            nn.init.constant_(noisy.strength, 0.5)  # else nothing would depend on the noise

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        x = self.stddev(self.batch_norm(self.conv(self.down(x))))  # [N, C + 1, 4, 4]
        x = x + self.norm(self.blur(self.larger(self.smaller(self.alias_free(x)))))
        w = self.norm(w)
        x = self.modulated(x, self.style(w), **self.end.arguments((len(x), C, 8, 8), x.device, noise))
        return self.transposed(self.plain(self.up(self.adain(self.styled(x, w, noise), w))))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images, styles, and the noise of an 8x8 layer."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    return draw(4, 3, 16, 16), draw(4, W), draw(4, 1, 8, 8)


def loss_of(network: nn.Module, *inputs: Tensor) -> Tensor:
    return network(*inputs).square().mean()


def in_one_of_two_processes(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = DistributedDataParallel(EveryLayer())
    loss_of(network, *(t[rank::2] for t in batch())).backward()  # samples 0 and 2 are a pair, 1 and 3 the other
    torch.save([p.grad for p in network.parameters()], os.path.join(folder, f"gradients{rank}.pt"))
    # If it outlived the group, its reducer would end the group's threads holding the lock that they wait for.
    del network
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_to_the_gradients_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [Process(in_one_of_two_processes, rank, port, str(tmp_path)) for rank in range(2)]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    torch.manual_seed(0)
    network = EveryLayer()
    loss_of(network, *batch()).backward()
    expected = [p.grad for p in network.parameters()]
    assert all(g.count_nonzero() for g in expected)
    for rank in range(2):
        assert_equal(torch.load(tmp_path / f"gradients{rank}.pt"), expected)


def test_the_network_of_all_layers_has_every_layer():
    public = {
        value for name, value in vars(layers).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == layers.__name__
        and not name.startswith("_")
    }  # fmt: skip
    assert public == {type(m) for m in EveryLayer().modules()} - {EveryLayer}
