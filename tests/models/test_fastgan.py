"""FastGAN: published sizes, its blocks in plain PyTorch, both outputs of the generator, and self-supervision."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from fastgan import models
from fastgan.models import fastgan
from fastgan.models.spectral_norm import normalized_layers
from tests.support.tiny_training import TinyTraining

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = {"arch": "fastgan", "channels": 3, "z_dim": 256, "channel_base": 8192, "channel_max": 1024}
NGF = {4: 1024, 8: 512, 16: 256, 32: 128, 64: 128, 128: 64, 256: 32, 512: 16, 1024: 8}  # the authors' table
NDF = {4: 1024, 8: 1024, 16: 512, 32: 256, 64: 128, 128: 64, 256: 32, 512: 16, 1024: 8}


def build(**options):
    torch.manual_seed(0)
    config = models.ModelConfig(
        **{"arch": "fastgan", "resolution": 64, "channels": 3, "z_dim": 8, "channel_base": 256, "channel_max": 16}
        | options
    )
    return config, *models.build(config)


# What the authors' code has ---------------------------------------------------------------------------------------


def gated(inputs, outputs, noise=False):
    """Parameters of a 3x3 convolution to twice the outputs, its batch norm and noise."""
    return inputs * 2 * outputs * 9 + 2 * 2 * outputs + noise


def published_generator(side):
    count = 256 * 2 * NGF[4] * 16 + 2 * 2 * NGF[4]
    for number, r in enumerate(2**i for i in range(3, int(math.log2(side)) + 1)):
        twice = number % 2 == 0
        count += gated(NGF[r // 2], NGF[r], twice) + (gated(NGF[r], NGF[r], True) if twice else 0)
    for r in (64, 128, 256, 512):
        if r <= side:
            count += NGF[r // 16] * NGF[r] * 16 + NGF[r] ** 2
    return count + NGF[128] * 3 + NGF[side] * 3 * 9


def published_discriminator(side):
    norm = lambda width: 2 * width
    down = lambda i, o: i * o * 16 + norm(o)
    stem = {
        256: 3 * NDF[512] * 9,
        512: 3 * NDF[512] * 16,
        1024: 3 * NDF[1024] * 16 + down(NDF[1024], NDF[512]),
    }[side]
    widths = [NDF[r] for r in (512, 256, 128, 64, 32, 16)]
    blocks = sum(down(i, o) + o * o * 9 + norm(o) + i * o + norm(o) for i, o in itertools.pairwise(widths))
    skips = sum(NDF[low] * NDF[high] * 16 + NDF[high] ** 2 for low, high in ((512, 64), (256, 32), (128, 16)))
    head = NDF[16] * NDF[8] + norm(NDF[8]) + NDF[8] * 16
    small = 3 * NDF[256] * 16 + sum(down(NDF[r], NDF[r // 2]) for r in (256, 128, 64)) + NDF[32] * 16
    decoder = lambda i: gated(i, 128) + gated(128, 64) + gated(64, 64) + gated(64, 32) + 32 * 3 * 9
    return stem + blocks + skips + head + small + decoder(NDF[16]) + 2 * decoder(NDF[32])


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_sizes_are_those_of_the_authors_code(side):
    with torch.device("meta"):
        networks = models.build(models.ModelConfig(**PAPER, resolution=side))
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert sizes == [published_generator(side), published_discriminator(side)]


@pytest.mark.parametrize("side", [256, 1024])
def test_there_are_25_logits_of_the_image_and_25_of_its_small_version(side):
    _, generator, discriminator = build(resolution=side, channel_base=2 * side, channel_max=8)
    image, small = generator(torch.randn(2, 8), small=True)
    assert image.shape == (2, 3, side, side) and small.shape == (2, 3, 128, 128)
    logits, loss = discriminator((image, small), reconstruct=True)
    assert logits.shape == (2, 50) and loss.shape == ()


# Parts in plain PyTorch -------------------------------------------------------------------------------------------


def test_a_gated_block_adds_noise_normalizes_and_multiplies_halves():
    _, generator, _ = build()
    block = generator.blocks["8"][0].eval()
    with torch.no_grad():
        block.strength.fill_(0.7)
    x = torch.randn(2, 16, 4, 4)
    y = F.conv2d(F.interpolate(x, scale_factor=2), block.layer.weight, padding=1) + 0.7 * block.noise_const
    norm = block.norm
    y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(block(x), F.glu(y, 1), rtol=1e-4, atol=1e-5)


def test_an_excitation_scales_the_channels_of_the_high_resolution():
    _, generator, _ = build()
    excitation = generator.excitations["64"]
    low, high = torch.randn(2, 16, 4, 4), torch.randn(2, 4, 64, 64)
    scale = torch.sigmoid(F.conv2d(F.silu(F.conv2d(low, excitation.squeeze.weight)), excitation.excite.weight))
    torch.testing.assert_close(excitation(low, high), high * scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "generator_skips", "discriminator_skips"),
    [(16, ["16"], ["8"]), (32, ["32"], ["8"]), (64, ["64"], ["8"]), (128, ["64", "128"], ["16", "8"])],
)
def test_small_images_have_an_excitation_too(side, generator_skips, discriminator_skips):
    _, generator, discriminator = build(resolution=side)
    assert [*generator.excitations] == generator_skips and [*discriminator.excitations] == discriminator_skips


def test_noise_is_drawn_in_training_and_constant_in_evaluation():
    _, generator, _ = build()
    with torch.no_grad():
        for block in generator.modules():
            if getattr(block, "strength", None) is not None:
                block.strength.fill_(1.0)
        z = torch.randn(4, 8)
        assert not torch.equal(generator(z), generator(z))
        generator.eval()
        assert torch.equal(generator(z), generator(z))


def test_the_small_image_of_a_batch_is_its_mean_over_pixels():
    _, _, discriminator = build()
    discriminator.eval()
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(discriminator(image), discriminator((image, F.avg_pool2d(image, 2))))


# Self-supervision -------------------------------------------------------------------------------------------------


def test_the_decoders_learn_to_reconstruct_and_the_features_with_them():
    _, _, discriminator = build(resolution=32, channel_base=512, channel_max=32)
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(16, 3, 4, 4, generator=generator) * 2 - 1, 32, mode="bilinear")
    optimizer = torch.optim.Adam(discriminator.parameters(), 0.002, betas=(0.5, 0.99))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = discriminator(images, reconstruct=True)[1]
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < 0.5 * losses[0]
    assert discriminator.stem[0].layer.parametrizations.weight.original.grad.any()


def test_the_part_is_the_quadrant_whose_features_are_decoded(monkeypatch):
    _, _, discriminator = build()
    seen = []
    monkeypatch.setattr(fastgan, "_error", lambda decoded, image: seen.append(image) or decoded.sum())
    image = torch.randn(16, 3, 64, 64)
    features = {}
    discriminator.blocks["16"].register_forward_hook(lambda *a: features.update(all=a[2]))
    discriminator.part_decoder.register_forward_hook(lambda *a: features.update(part=a[1][0]))
    discriminator(image, reconstruct=True)
    part, chosen = seen[2], set()
    for n in range(16):
        corners = itertools.product((0, 32), repeat=2)
        ((i, j),) = [(i, j) for i, j in corners if torch.equal(part[n], image[n, :, i : i + 32, j : j + 32])]
        chosen.add((i, j))
        i, j = i // 4, j // 4
        assert torch.equal(features["part"][n], features["all"][n, :, i : i + 8, j : j + 8])
    assert len(chosen) == 4


def test_a_step_trains_decoders_on_real_images_and_shows_small_fakes():
    training = TinyTraining("fastgan", {"augment": "none"})
    before = copy.deepcopy(training.state.discriminator.state_dict())
    given = []
    training.state.discriminator.register_forward_pre_hook(
        lambda _, args, options: given.append((type(args[0]), options)), with_kwargs=True
    )
    training.run(1)
    assert given == [(tuple, {}), (torch.Tensor, {"reconstruct": True}), (tuple, {})]
    changed = {key for key, value in training.state.discriminator.state_dict().items() if not value.equal(before[key])}
    assert {"decoder.1.parametrizations.weight.original", "head.layer.parametrizations.weight.0.u"} <= changed
    assert 0 < training.averages.read()["reconstruction"] < 10


def test_initial_weights_are_those_of_the_authors_code():
    """Their scale, which normalization takes out of the effective weights, is what Adam's steps are relative to."""
    _, *networks = build(num_classes=3)
    for network in networks:
        for _, weight in normalized_layers(network):
            if weight.numel() > 200:
                assert weight.std().item() == pytest.approx(0.02, rel=0.25)


def test_all_weights_but_biases_and_scales_are_normalized():
    _, *networks = build(num_classes=3)
    for network in networks:
        normalized = {id(weight) for _, weight in normalized_layers(network)}
        assert all((id(p) in normalized) == (p.dim() > 1) for p in network.parameters())
