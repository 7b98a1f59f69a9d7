"""`fastgan.patch_ops`: functions in modules of the official code, in files and in pickles."""

import math
import sys
import types
from functools import partial

import pytest
import torch

import fastgan
from tests.patching.test_patching import assert_same
from tests.support import backends, foreign

pytestmark = pytest.mark.skipif(
    backends.why_not("cpp") is not None, reason="nothing is gained, and so replaced, without kernels"
)


def test_bias_act_of_the_official_code():
    module = foreign.official_bias_act()
    x, b = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    ours = [{}, {"act": "lrelu"}, {"act": "swish", "gain": 2}, {"act": "tanh", "clamp": 0.5, "gain": math.sqrt(0.5)}]
    theirs = [{"act": "elu"}, {"act": "lrelu", "impl": "ref"}, {"clamp": 0}]
    expected = [module.bias_act(x, b, **options) for options in (*ours, *theirs)]
    original = module.bias_act
    with fastgan.patch_ops(module) as patched:
        assert patched.replaced == {"torch_utils.ops.bias_act.bias_act": ("bias_act", "fastgan.ops.noise_bias_act", 0)}
        assert fastgan.patch_ops(module).left == {"torch_utils.ops.bias_act.bias_act": "is replaced already"}
        module.calls = 0
        got = [module.bias_act(x, b, **options) for options in ours]
        assert module.calls == 0
        got += [module.bias_act(x, b, **options) for options in theirs]
        rows = module.bias_act(x, torch.ones(5, dtype=torch.float64), dim=2)
        assert module.calls == len(theirs) + 1
        torch.testing.assert_close(rows, x + 1)
        assert_same(got, expected, 1e-12)
    assert module.bias_act is original


def test_upfirdn2d_of_the_official_code():
    module = foreign.official_upfirdn2d()
    x, f = torch.randn(2, 3, 6, 5), torch.tensor([1.0, 2.0, 4.0]) / 7
    calls = [
        lambda: module.upsample2d(x, f),
        lambda: module.upfirdn2d(x=x, f=torch.outer(f, f), padding=[1, 0, -1, 2], flip_filter=True),
        lambda: module.upfirdn2d(x, f, up=[2, 1], down=[1, 2], padding=1),
    ]
    expected = [call() for call in calls]
    with fastgan.patch_ops(module):
        module.calls = 0
        assert_same([call() for call in calls], expected, 1e-5)
        assert module.calls == 0
        torch.testing.assert_close(module.upfirdn2d(x, None), x)
        assert module.calls == 1


def test_filtered_lrelu_of_the_official_code():
    module = foreign.official_filtered_lrelu()
    x, f, b = torch.randn(2, 3, 6, 5), torch.tensor([1.0, 2.0, 4.0, 3.0]) / 10, torch.randn(3)
    ours = [
        lambda: module.filtered_lrelu(x, b=b, gain=1, slope=1, clamp=256),
        lambda: module.filtered_lrelu(x=x, fu=f, fd=f, b=b, up=2, down=2, padding=[3, 2, 4, 3], clamp=0.7),
        lambda: module.filtered_lrelu(x, f, torch.outer(f, f), up=4, down=2, padding=4, flip_filter=True),
    ]
    theirs = lambda: module.filtered_lrelu(x, f, f, b, up=2, down=2, padding=3, impl="ref")
    expected = [call() for call in (*ours, theirs)]
    with fastgan.patch_ops(module) as patched:
        assert [replaced.by for replaced in patched.replaced.values()] == ["fastgan.ops.filtered_lrelu"]
        module.calls = 0
        got = [call() for call in ours]
        assert module.calls == 0
        assert_same([*got, theirs()], expected, 1e-5)
        assert module.calls == 1


def test_modulated_conv2d_of_the_official_code():
    module = foreign.official_networks()
    x, styles, noise = torch.randn(2, 4, 5, 6), torch.randn(2, 4), torch.randn(10, 12)
    weight, f = torch.randn(3, 4, 3, 3), foreign.resampling_kernel()
    options = {"up": 2, "padding": 1, "resample_filter": f, "flip_weight": False}
    expected = module.modulated_conv2d(x=x, weight=weight, styles=styles, noise=noise, **options)
    with fastgan.patch_ops(module) as patched:
        assert [replaced.kind for replaced in patched.replaced.values()] == ["modulated_conv2d"]
        got = module.modulated_conv2d(x=x, weight=weight, styles=styles, noise=noise, **options)
    assert_same([got], [expected], 1e-5)


def test_a_function_of_the_same_name_but_another_result_is_left():
    module = foreign.official_bias_act()
    right = module.bias_act

    def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
        return right(x, b, dim, act, alpha, gain, clamp) * (1.001 if act == "lrelu" else 1)

    module.bias_act = bias_act
    assert "its result differs" in fastgan.patch_ops(module).left["torch_utils.ops.bias_act.bias_act"]
    module.bias_act = lambda x, bias: x
    assert "other parameters" in fastgan.patch_ops(module).left["torch_utils.ops.bias_act.bias_act"]
    assert module.bias_act.__name__ == "<lambda>"


def test_modulated_conv2d_of_stylegan3():
    module = foreign.stylegan3_networks()
    x, w, s = torch.randn(2, 4, 5, 6), torch.randn(3, 4, 3, 3), torch.randn(2, 4)
    calls = [{"padding": 2, "input_gain": torch.tensor(0.7)}, {}, {"demodulate": False, "input_gain": torch.rand(4)}]
    expected = [module.modulated_conv2d(x=x, w=w, s=s, **options) for options in calls]
    with fastgan.patch_ops(module) as patched:
        assert len(patched.replaced) == 1
        assert_same([module.modulated_conv2d(x=x, w=w, s=s, **options) for options in calls], expected, 1e-5)


def test_training_with_path_length_makes_the_same_steps():
    """Adam takes no step for a bias without a gradient, and one for a bias whose gradient is zero."""

    def trained(patched):
        torch.manual_seed(0)
        bias_act, networks = foreign.official_bias_act(), foreign.official_networks()
        model = foreign.OfficialSynthesis(bias_act, networks).double()
        if patched:
            fastgan.patch_ops(bias_act, networks)
            assert "mapping" in fastgan.patch(model).replaced
        bias_act.calls = 0
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        adam = torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.0, 0.99))
        for step in range(8):
            w = model.mapping(draw(3, 5))
            image = model(w)
            loss = image.square().mean()
            if step % 2:  # path length alone
                (gradient,) = torch.autograd.grad((image * draw(*image.shape)).sum(), w, create_graph=True)
                loss = (gradient.square().sum(1).sqrt() - 1).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert (bias_act.calls == 0) == patched
        return [int(adam.state[p]["step"]) for p in model.parameters()], [p.detach() for p in model.parameters()]

    (steps, expected), (patched_steps, got) = trained(False), trained(True)
    assert steps == patched_steps and set(steps) == {4, 8}  # the biases of colours move in every second step only
    assert_same(got, expected, 1e-9)


OF_A_PICKLE = """
import torch
def modulated_conv2d(*args, **kwargs): return plain(*args, **kwargs)
class Layer(torch.nn.Module):
    def forward(self, x): return bias_act.bias_act(modulated_conv2d(x, self.weight, self.style, padding=1), act="lrelu")
"""


def test_modules_of_pickles_are_patched(monkeypatch):
    """The official loader makes a nameless module of the source text in a file, with functions of its own."""
    bias_act, networks = foreign.official_bias_act(), foreign.official_networks()
    nameless = types.ModuleType("_imported_module_0123")
    vars(nameless).update(plain=networks.modulated_conv2d, bias_act=bias_act)
    exec(OF_A_PICKLE, vars(nameless))
    importer = types.ModuleType("importer")
    importer.bias_act = bias_act.bias_act
    monkeypatch.setitem(sys.modules, nameless.__name__, nameless)
    monkeypatch.setitem(sys.modules, importer.__name__, importer)
    before = nameless.modulated_conv2d

    note = str(fastgan.patch(nameless.Layer()))
    assert "layers that call functions which fastgan.patch_ops can replace: Layer (1)" in note
    assert "fastgan.patch_ops(torch_utils.ops.bias_act, sys.modules['_imported_module_0123'])" in note
    with fastgan.patch_ops(bias_act, networks) as patched:
        assert "_imported_module_0123.modulated_conv2d" in patched.replaced
        assert "pass this module as well" in patched.left["importer.bias_act"]
        assert "pickles loaded from now on" in str(patched)
        assert nameless.modulated_conv2d is not before
        assert "these call" not in str(fastgan.patch(nameless.Layer()))
    assert nameless.modulated_conv2d is before
