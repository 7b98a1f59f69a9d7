"""`bench.convolutions.Bare` records and repeats the dense convolutions of a computation."""

import torch
import torch.nn.functional as F

from bench.convolutions import Bare, _Recorder


def test_counts_convolutions_and_their_operations():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    bare = Bare(lambda: F.conv2d(x, weight, padding=1).sum().backward())
    forward = 2 * 2 * 8 * 8 * 5 * 3 * 9
    assert (bare.count, bare.flops) == (2, 3 * forward)  # backward makes two gradients
    assert bare.bytes_behind == (2 + 3) * 4 * 2 * 5 * 8 * 8


def test_counts_operations_of_strided_and_transposed_convolutions():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 4, 4)
    strided = Bare(lambda: F.conv2d(x, weight, stride=2, padding=1))
    assert strided.flops == 2 * 2 * 4 * 4 * 5 * 3 * 16
    up = Bare(lambda: F.conv_transpose2d(x, weight.transpose(0, 1), stride=2, padding=1))
    assert up.flops == 2 * 2 * 8 * 8 * 5 * 3 * 16
    assert up.bytes_behind == 2 * 4 * 2 * 5 * 16 * 16


def test_leaves_out_depthwise_filters():
    x = torch.randn(2, 4, 8, 8)
    bare = Bare(lambda: F.conv2d(F.conv2d(x, torch.ones(4, 1, 3, 3), groups=4), torch.ones(2, 4, 1, 1)))
    assert bare.count == 1


def test_repeats_the_convolutions_in_their_layout_and_dtype():
    x = torch.randn(2, 3, 8, 8).to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(5, 3, 3, 3, dtype=torch.bfloat16, requires_grad=True)

    def work():
        for _ in range(3):
            F.conv2d(x, weight).sum().backward()

    bare = Bare(work)
    with _Recorder() as recorder:
        bare()
    with _Recorder() as original:
        work()
    assert recorder.calls == original.calls
    assert sum(recorder.calls.values()) == 6
