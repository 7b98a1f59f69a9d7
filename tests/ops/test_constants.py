"""Cached constants do not depend on the mode of the call that created them."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgan import models
from fastgan.losses import PathLength
from fastgan.ops import constants
from fastgan.ops.constants import constant
from fastgan.penalties import logits_and_squared_grad
from tests.ops import test_every_operation as every
from tests.ops import test_inplace as results
from tests.support.processes import Process

CPU = torch.device("cpu")
NETWORKS = [
    {"arch": arch, "variant": variant}
    for arch, family in models.ARCHITECTURES.items()
    for variant in getattr(family, "VARIANTS", ("",))
]


def draw_everything_then_train() -> None:
    """Runs in a process that has computed nothing before."""
    calls = list(itertools.product(results.CASES.values(), (False, True)))
    network, inputs = every.EveryLayer(), every.batch()
    pairs = [models.build(models.ModelConfig(resolution=8, channel_base=64, num_classes=3, **n)) for n in NETWORKS]
    z, label = torch.randn(4, 128), torch.tensor([0, 1, 2, 0])

    with torch.inference_mode():
        for call, channels_last in calls:
            x = torch.randn(2, 3, 4, 4).to(
                memory_format=torch.channels_last if channels_last else torch.preserve_format
            )
            call(x, results.Draw(x))
        network(*inputs)
        for generator, discriminator in pairs:
            discriminator(generator(z, label), label)

    for call, channels_last in calls:
        t = results.Draw(results.activations((2, 3, 4, 4), channels_last, "cpu"))
        results.derivatives(call(t.x, t), t.leaves)
    every.loss_of(network, *inputs).backward()
    for generator, discriminator in pairs:
        images = generator(z, label)
        logits_and_squared_grad(discriminator, images.detach(), label)[1].sum().backward()
        discriminator(images, label).sum().backward()
        if hasattr(generator, "styles"):
            ws = generator.styles(z, label)
            PathLength()(generator.synthesize(ws), ws).backward()


@pytest.mark.slow
def test_training_works_after_generation_in_inference_mode():
    process = Process(draw_everything_then_train)
    output, _ = process.communicate()
    assert process.returncode == 0, output


def test_constants_are_ordinary_tensors_after_a_first_call_in_any_mode():
    def use(ones, x):
        return (ones(3, CPU) * x).sum()

    def first_call(mode):
        ones = constant(lambda count, device: torch.ones(count, device=device))
        mode(ones)
        found = ones(3, CPU)
        assert type(found) is torch.Tensor and not found.is_inference() and found is ones(3, CPU)
        x = torch.ones(3, requires_grad=True)
        use(ones, x).backward()
        assert torch.equal(x.grad, torch.ones(3)) and found.data_ptr()

    def in_inference_mode(ones):
        with torch.inference_mode():
            ones(3, CPU)

    def with_fake_tensors(ones):
        with FakeTensorMode() as mode:
            assert use(ones, mode.from_tensor(torch.ones(3))).device == CPU

    first_call(in_inference_mode)
    first_call(with_fake_tensors)
    first_call(lambda ones: torch.func.grad(lambda x: use(ones, x))(torch.ones(3)))
    first_call(lambda ones: torch.vmap(lambda x: use(ones, x))(torch.ones(2, 3)))
    torch.compiler.reset()
    first_call(lambda ones: torch.compile(lambda x: use(ones, x), fullgraph=True, backend="eager")(torch.ones(3)))


def test_a_captured_graph_reads_what_was_cached_before(monkeypatch):
    made = []
    ones = constant(lambda count, device: made.append(count) or torch.ones(count, device=device))
    before = ones(3, CPU)
    monkeypatch.setattr(constants, "is_capturing", lambda device: True)
    assert ones(3, CPU) is before
    assert ones(4, CPU) is not ones(4, CPU)  # no content until the graph is replayed
    monkeypatch.setattr(constants, "is_capturing", lambda device: False)
    assert ones(4, CPU) is ones(4, CPU)
    assert made == [3, 4, 4, 4]
