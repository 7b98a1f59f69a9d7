"""noise_bias_act on shapes, strides and dtypes drawn by hypothesis."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan.ops import noise_bias_act, use_backend
from fastgan.ops.activations import ACTIVATIONS


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_stride_and_dtype_matches_the_reference(data):
    shape = data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=5))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    order = data.draw(st.permutations(range(len(shape))))
    steps = data.draw(st.lists(st.integers(1, 2), min_size=len(shape), max_size=len(shape)))
    act = data.draw(st.sampled_from(ACTIVATIONS))
    inverse = [order.index(i) for i in range(len(shape))]
    x = torch.randn([shape[i] * steps[i] for i in order]).to(dtype).permute(inverse)
    x = x[tuple(slice(None, None, step) for step in steps)]
    assert list(x.shape) == shape
    bias, post = torch.randn(shape[1]), torch.randn(shape[0], shape[1])
    results = []
    for name in ("torch", "cpp,torch"):
        with use_backend(name):
            leaf = x.detach().requires_grad_()
            y = noise_bias_act(leaf, bias=bias, post=post, act=act)
            (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
            results.append((y.detach(), dx))
    (y, dx), (other, other_dx) = results
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(other, y, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(other_dx, dx, rtol=tolerance, atol=tolerance)
