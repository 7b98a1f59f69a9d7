"""StyleGAN2's networks against a plain fp64 implementation and the published sizes.

The plain implementation modulates the weights of every sample (equations 1 and 3 of Karras et al. 2020, arXiv
1912.04958) and resamples with the full 4x4 filter. fastgan scales activations, fuses passes and shares one convolution.
"""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from fastgan import models
from fastgan.models.modulation import Modulation

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
RESOLUTION, CLASSES = 32, 3

# ------------------------------------------------------------------------------------------ the sizes as published


@pytest.fixture(scope="module")
def published():
    """Config F of the paper at 1024x1024 on the meta device."""
    config = models.ModelConfig(
        resolution=1024, channels=3, z_dim=512, channel_base=32768, channel_max=512, mapping_layers=8, mapping_lr=0.01
    )
    with torch.device("meta"):
        return config, *models.build(config)


def shapes(*modules) -> Counter:
    return Counter(tuple(p.shape) for module in modules for p in module.parameters())


def layer(before: int, after: int) -> list[tuple]:
    """Tensors of a synthesis layer: weight, bias, style's affine layer, noise strength."""
    return [(after, before, 3, 3), (after,), (before, 512), (before,), ()]


def to_rgb(channels: int) -> list[tuple]:
    return [(3, channels, 1, 1), (3,), (channels, 512), (channels,)]


def test_numbers_of_parameters_equal_the_papers(published):
    _, generator, discriminator = published
    count = lambda network: sum(p.numel() for p in network.parameters())
    assert count(generator) == 30_370_060 and count(discriminator) == 29_012_513
    assert count(generator.mapping) == 8 * (512 * 512 + 512)


def test_every_tensor_of_the_generator_has_the_published_shape(published):
    config, generator, _ = published
    synthesis = generator.synthesis
    channels = [512, 512, 512, 512, 512, 256, 128, 64, 32]
    assert [config.features(r) for r in config.resolutions] == channels
    assert shapes(generator.mapping) == Counter(8 * [(512, 512), (512,)])
    assert generator.mapping.w_avg.shape == (512,)
    assert tuple(synthesis.const.shape) == (512, 4, 4)
    assert shapes(synthesis.first) == Counter(layer(512, 512))
    assert shapes(synthesis.to_rgb[0]) == Counter(to_rgb(512))
    blocks = list(zip(synthesis.up, synthesis.same, synthesis.to_rgb[1:], strict=True))
    assert len(blocks) == 8
    for r, before, after, block in zip(config.resolutions[1:], channels, channels[1:], blocks, strict=False):
        expected = layer(before, after) + layer(after, after) + to_rgb(after)
        assert shapes(*block) == Counter(expected), f"block {r}"
        assert all(each.noise_const.shape[-2:] == (r, r) for each in block[:2])
    parts = [synthesis.first, *synthesis.up, *synthesis.same, *synthesis.to_rgb]
    assert shapes(synthesis) == shapes(*parts) + Counter([(512, 4, 4)]), "there is a tensor that belongs nowhere"


@pytest.mark.parametrize("classes", [0, 10])
def test_every_tensor_of_the_discriminator_has_the_published_shape(published, classes):
    config, _, discriminator = published
    if classes:
        with torch.device("meta"):
            discriminator = models.stylegan2.Discriminator(
                models.ModelConfig(**vars(config) | {"num_classes": classes})
            )
    channels = [32, 64, 128, 256, 512, 512, 512, 512, 512]
    expected = [(32, 3, 1, 1), (32,)]
    for index, (block, c, after) in enumerate(zip(discriminator.blocks, channels, channels[1:], strict=False)):
        tensors = [(c, c, 3, 3), (c,), (after, c, 3, 3), (after,), (after, c, 1, 1)]
        assert shapes(block) == Counter(tensors), f"block {1024 >> index}"
        expected += tensors
    width = 512 if classes else 1
    expected += [(512, 513, 3, 3), (512,), (512, 16 * 512), (512,), (width, 512), (width,)]
    # Ours projects on the label's embedding itself; the official code has dense layers behind that.
    expected += [(512, classes), (512,)] if classes else []
    assert shapes(discriminator) == Counter(expected)


@pytest.mark.parametrize("resolution", [8, 64, 1024])
def test_the_number_of_ws_is_convolutions_plus_one(resolution):
    with torch.device("meta"):
        generator, _ = models.build(models.ModelConfig(resolution=resolution, channel_base=1024, channel_max=4))
    assert generator.num_ws == 2 * math.log2(resolution) - 2


# ------------------------------------------------------------------------------------------- the plain rendition


def dense(x, of, lr_multiplier=1.0):
    weight = of.weight * lr_multiplier / math.sqrt(of.weight.shape[1])
    return x @ weight.t() + of.bias * lr_multiplier


def lrelu(x, gain=1.0, clamp=True):
    """Leaky ReLU with gain sqrt(2) times `gain`; `gain` scales the clamp too."""
    y = torch.where(x < 0, 0.2 * x, x) * math.sqrt(2) * gain
    return y.clamp(-256 * gain, 256 * gain) if clamp else y


def normalised(x):
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def resampled(x, factor=1.0, pad=0, **stride):
    """[1, 3, 3, 1] along both axes, in zeros."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = (torch.outer(row, row) / 64 * factor).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (pad,) * 4), kernel, groups=x.shape[1], **stride)


def upsampled(x):
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = (4 * torch.outer(row, row) / 64).expand(x.shape[1], 1, 4, 4)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def modulated(x, weight, style, demodulate=True, up=1):
    """A convolution with separate weights for every sample."""
    n, i, height, width = x.shape
    o, _, k, _ = weight.shape
    w = weight[None] * style[:, None, :, None, None]  # [N, O, I, k, k]
    if demodulate:
        w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, n * i, height, width)
    if up == 1:
        y = F.conv2d(x, w.reshape(n * o, i, k, k), padding=k // 2, groups=n)
    else:
        w = w.transpose(1, 2).reshape(n * i, o, k, k)
        y = resampled(F.conv_transpose2d(x, w, stride=2, groups=n), factor=4, pad=1)
    return y.reshape(n, o, up * height, up * width)


def synthesis_layer(x, w, of, noise=None, up=1, equalized=True):
    weight = of.conv.weight
    if equalized:
        weight = weight / math.sqrt(weight[0].numel())
    y = modulated(x, weight, dense(w, of.affine), up=up)
    y = y + of.epilogue.strength * (of.noise_const if noise is None else noise)
    return lrelu(y + of.epilogue.bias[:, None, None])


def image_of(x, w, of):
    style = dense(w, of.affine) / math.sqrt(x.shape[1])
    return (modulated(x, of.weight, style, demodulate=False) + of.bias[:, None, None]).clamp(-256, 256)


def synthesis(ws, of):
    x = of.const.expand(len(ws), *of.const.shape)
    x = synthesis_layer(x, ws[:, 0], of.first)
    image = image_of(x, ws[:, 1], of.to_rgb[0])
    for block, (up, same, rgb) in enumerate(zip(of.up, of.same, of.to_rgb[1:], strict=True)):
        mine = ws[:, 1 + 2 * block :]  # the first of them is also that of the image before
        x = synthesis_layer(x, mine[:, 0], up, up=2)
        x = synthesis_layer(x, mine[:, 1], same)
        finest = image_of(x, mine[:, 2], rgb)
        if finest.shape[1] == 4 * image.shape[1]:
            finest, image = smoothed(in_squares(finest)), upsampled(image)
        image = upsampled(image) + finest
    return image


def in_squares(x):
    """The four channels of a place become its four pixels, row by row: [N, 4 C, H, W] to [N, C, 2 H, 2 W]."""
    image = x.new_empty(len(x), x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3])
    for i in range(4):
        image[:, :, i // 2 :: 2, i % 2 :: 2] = x[:, i::4]
    return image


def smoothed(image):
    """[1, 2, 1] / 4 along both axes; pixels outside are those at the border."""
    for axis in (2, 3):
        first, last = image.narrow(axis, 0, 1), image.narrow(axis, image.shape[axis] - 1, 1)
        wide, size = torch.cat([first, image, last], axis), image.shape[axis]
        image = (wide.narrow(axis, 0, size) + 2 * image + wide.narrow(axis, 2, size)) / 4
    return image


def mapping(z, label, of, lr_multiplier):
    x = normalised(z)
    if label is not None:
        x = torch.cat([x, normalised(dense(F.one_hot(label, CLASSES).to(z.dtype), of.embed))], 1)
    for each in of.layers:
        x = lrelu(dense(x, each, lr_multiplier), clamp=False)
    return x


def convolved(x, of, **options):
    weight = of.weight / math.sqrt(of.weight[0].numel())
    return F.conv2d(x, weight, of.bias, **options)


def residual_block(x, of):
    half = math.sqrt(0.5)
    y = lrelu(convolved(x, of.conv, padding=1))
    y = lrelu(convolved(resampled(y, pad=2), of.down, stride=2), gain=half)
    return y + convolved(resampled(x, pad=1, stride=2), of.skip) * half


def with_stddev(x, group=4, maps=1):
    n, c, height, width = x.shape
    group = min(group, n)
    y = x.reshape(group, n // group, maps, c // maps, height, width)
    y = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean((2, 3, 4))  # [N / group, maps]
    return torch.cat([x, y.repeat(group, 1)[:, :, None, None].expand(n, maps, height, width)], 1)


def discriminator_of(image, label, of):
    if of.from_rgb.weight.shape[1] == 4 * image.shape[1]:  # the reverse of `in_squares`
        image = torch.stack([image[:, :, i // 2 :: 2, i % 2 :: 2] for i in range(4)], 2).flatten(1, 2)
    x = lrelu(convolved(image, of.from_rgb))
    for block in of.blocks:
        x = residual_block(x, block)
    x = lrelu(convolved(with_stddev(x), of.conv, padding=1))
    x = lrelu(dense(x.flatten(1), of.dense), clamp=False)
    x = dense(x, of.out)
    if label is None:
        return x[:, 0]
    direction = normalised(dense(F.one_hot(label, CLASSES).to(x.dtype), of.embed))
    return (x * direction).sum(1) / math.sqrt(x.shape[1])


# ----------------------------------------------------------------------- fastgan against the plain implementation


def networks(classes: int = 0, loud: float = 1.0, **more):
    """Small networks in fp64 with random biases and noise strengths; `loud` biases reach the clamp."""
    torch.manual_seed(0)
    config = models.ModelConfig(
        resolution=RESOLUTION,
        channels=3,
        num_classes=classes,
        z_dim=12,
        channel_base=256,
        channel_max=16,
        mapping_layers=3,
        mapping_lr=0.01,
        **more,
    )
    pair = models.build(config)
    for network in pair:
        network.double()
        for name, p in network.named_parameters():
            if p.dim() <= 1:
                at = 1.0 if "affine" in name else 0.0
                size = loud if "mapping" not in name and "affine" not in name else 1.0
                torch.nn.init.normal_(p, at, 0.5 * size)
    return config, *pair


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_the_mapping_network_normalizes_latent_and_label_separately(classes):
    config, generator, _ = networks(classes)
    z = 3 * normal(4, config.z_dim)
    label = torch.arange(4) % CLASSES if classes else None
    expected = mapping(z, label, generator.mapping, config.mapping_lr)
    torch.testing.assert_close(generator.mapping(z, label), expected, **CLOSE)


@pytest.mark.parametrize("loud", [1.0, 1000.0])
def test_a_synthesis_block_equals_the_reference(loud):
    config, generator, _ = networks(loud=loud)
    up, same, rgb = generator.synthesis.up[1], generator.synthesis.same[1], generator.synthesis.to_rgb[2]
    x, w = normal(3, 16, 8, 8), normal(3, 3, config.z_dim)

    first = synthesis_layer(x, w[:, 0], up, up=2)
    second = synthesis_layer(first, w[:, 1], same)
    assert (first.abs().max() == 256) == (second.abs().max() == 256) == (loud > 1)
    of_up, of_same = Modulation(up.affine(w[:, 0])), Modulation(same.affine(w[:, 1]))
    torch.testing.assert_close(up(x, of_up, "const"), first, **CLOSE)

    ours = same(up(x, of_up, "const", post=of_same.style), of_same, "const", scaled=True)
    torch.testing.assert_close(ours, second, **CLOSE)
    torch.testing.assert_close(rgb(ours, rgb.affine(w[:, 2])), image_of(second, w[:, 2], rgb), **CLOSE)


@pytest.mark.parametrize("up", [1, 2])
def test_demodulation_cancels_the_weight_gain(up):
    """The official PyTorch code has no weight gain; only epsilon is relative to another scale."""
    config, generator, _ = networks()
    of = (generator.synthesis.same if up == 1 else generator.synthesis.up)[1]
    x, w = normal(3, 16, 8, 8), normal(3, config.z_dim)
    options = {"noise": normal(1, 1, 8 * up, 8 * up), "up": up}
    with_gain, without = (synthesis_layer(x, w, of, equalized=equalized, **options) for equalized in (True, False))
    torch.testing.assert_close(with_gain, without, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("loud", [1.0, 1000.0])
def test_the_image_is_the_sum_of_all_resolutions(loud, shuffle):
    config, generator, _ = networks(loud=loud, pixel_shuffle=shuffle)
    ws = normal(2, generator.num_ws, config.z_dim)  # of every layer its own
    expected = synthesis(ws, generator.synthesis)
    assert expected.shape == (2, 3, RESOLUTION, RESOLUTION)
    torch.testing.assert_close(generator.synthesis(ws, "const"), expected, **CLOSE)


def test_an_image_is_upsampled_by_the_filter():
    _, generator, _ = networks()
    image = normal(2, 3, 8, 8)
    torch.testing.assert_close(generator.synthesis._upsampled(image), upsampled(image), **CLOSE)


@pytest.mark.parametrize("loud", [1.0, 1000.0])
def test_a_residual_block_equals_the_reference(loud):
    _, _, discriminator = networks(loud=loud)
    block, x = discriminator.blocks[1], normal(3, 16, 16, 16)
    inner = lrelu(convolved(x, block.conv, padding=1))
    outer = convolved(resampled(inner, pad=2), block.down, stride=2).abs().max() * math.sqrt(2)
    assert (outer > 256) == (loud > 1), "the clamp of the second convolution is reached, or is not"
    torch.testing.assert_close(block(x), residual_block(x, block), **CLOSE)


@pytest.mark.parametrize("batch", [2, 3, 4, 8])
def test_minibatch_stddev_is_a_feature_map(batch):
    _, _, discriminator = networks()
    x = normal(batch, 16, 4, 4)
    torch.testing.assert_close(discriminator.stddev(x), with_stddev(x), **CLOSE)


@pytest.mark.parametrize("classes", [0, CLASSES])
@pytest.mark.parametrize("loud", [1.0, 1000.0])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_logits_equal_the_reference(classes, loud, shuffle):
    _, _, discriminator = networks(classes, loud, pixel_shuffle=shuffle)
    label = torch.arange(8) % CLASSES if classes else None
    image = normal(8, 3, RESOLUTION, RESOLUTION)
    torch.testing.assert_close(discriminator(image, label), discriminator_of(image, label, discriminator), **CLOSE)


@pytest.mark.parametrize("shuffle", [False, True])
def test_gradients_of_both_networks_equal_the_reference(shuffle):
    config, generator, discriminator = networks(pixel_shuffle=shuffle)
    z = normal(4, config.z_dim)
    ours = discriminator(generator(z, noise="const"))
    ws = mapping(z, None, generator.mapping, config.mapping_lr)[:, None].expand(-1, generator.num_ws, -1)
    plain = discriminator_of(synthesis(ws, generator.synthesis), None, discriminator)
    parameters = [*generator.parameters(), *discriminator.parameters()]
    for one, other in zip(*(torch.autograd.grad(y.sum(), parameters) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7 * other.abs().max().item())


@pytest.mark.parametrize("shape", ["skip", "resnet", "orig"])
def test_shuffled_pixels_have_half_the_resolution_inside(shape):
    config = models.ModelConfig(
        resolution=32, base_size=(5, 4), channels=3, pixel_shuffle=True, channel_base=128, channel_max=16,
        generator_architecture=shape, discriminator_architecture=shape,
    )  # fmt: skip
    generator, discriminator = models.build(config)
    assert generator.noise_resolutions == [4, 8, 8, 16, 16] and generator.num_ws == 6
    sizes = []
    discriminator.from_rgb.register_forward_hook(lambda module, args, y: sizes.append(tuple(y.shape[1:])))
    image = generator(torch.randn(4, config.z_dim))
    assert image.shape == (4, 3, 40, 32) and image.dtype == torch.float32
    assert discriminator(image).shape == (4,) and sizes == [(8, 20, 16)]


def test_the_four_pixels_of_a_place_make_no_grid():
    _, generator, _ = networks(pixel_shuffle=True)
    shuffle = generator.synthesis.to_rgb[-1].shuffle
    four = torch.tensor([0.0, 1.0, 3.0, 12.0], dtype=torch.float64).repeat(3)[None, :, None, None]
    image = shuffle(four.expand(1, 12, 8, 8))
    torch.testing.assert_close(image[:, :, 1:-1, 1:-1], torch.full((1, 3, 14, 14), 4.0, dtype=torch.float64))


def test_the_penalty_of_shuffled_pixels_is_twice_differentiable():
    _, _, discriminator = networks(pixel_shuffle=True)
    image = normal(4, 3, RESOLUTION, RESOLUTION).requires_grad_()

    def penalties(of):
        (gradient,) = torch.autograd.grad(of(image), image, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [*discriminator.parameters()], allow_unused=True)

    ours = penalties(lambda image: discriminator(image).sum())
    plain = penalties(lambda image: discriminator_of(image, None, discriminator).sum())
    assert sum(other is not None for other in plain) > 10  # the others are biases
    for one, other in zip(ours, plain, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7 * other.abs().max().item())


# ------------------------------------------------------------------------------------------------------ identities


@pytest.fixture
def trained():
    """A generator with a mean of w that is not zero, and a function that returns the ws it uses."""
    config, generator, _ = networks()
    generator.eval()
    torch.nn.init.normal_(generator.mapping.w_avg)
    seen = []
    generator.synthesis.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def ws_of(z, **options):
        generator(z, **options)
        return seen.pop()

    return config, generator, ws_of


def test_psi_one_changes_nothing_and_psi_zero_gives_the_mean(trained):
    config, generator, ws_of = trained
    z = normal(5, config.z_dim)
    w, mean = generator.mapping(z), generator.mapping.w_avg
    assert torch.equal(ws_of(z), w[:, None].expand(-1, generator.num_ws, -1))
    assert torch.equal(ws_of(z, truncation=1.0), ws_of(z))
    assert torch.equal(ws_of(z, truncation=0.0), mean.expand(5, generator.num_ws, -1))
    half = mean + (w - mean) / 2
    torch.testing.assert_close(ws_of(z, truncation=0.5), half[:, None].expand(-1, generator.num_ws, -1), **CLOSE)


def test_style_mixing_with_probability_zero_draws_no_random_numbers(trained):
    config, _, ws_of = trained
    z = normal(5, config.z_dim)
    before = torch.get_rng_state()
    one, two = ws_of(z, noise="none"), ws_of(z, noise="none", style_mixing=0.0)
    assert torch.equal(one, two) and torch.equal(torch.get_rng_state(), before)


def test_style_mixing_with_probability_one_mixes_every_sample(trained):
    config, generator, ws_of = trained
    z = normal(100, config.z_dim)
    own = (ws_of(z, style_mixing=1.0, noise="none") == generator.mapping(z)[:, None]).all(2)  # [N, num_ws]
    crossed = own.sum(1)
    assert crossed.unique().tolist() == list(range(1, generator.num_ws))
    assert torch.equal(own, torch.arange(generator.num_ws) < crossed[:, None])


def test_style_mixing_mixes_the_given_share_of_samples(trained):
    config, generator, ws_of = trained
    z = normal(300, config.z_dim)
    own = (ws_of(z, style_mixing=0.3, noise="none") == generator.mapping(z)[:, None]).all((1, 2))
    assert own.double().mean().item() == pytest.approx(0.7, abs=0.11)  # 4 standard deviations


@pytest.mark.parametrize("noise", ["const", "none"])
def test_without_random_noise_images_are_deterministic(trained, noise):
    config, generator, _ = trained
    z = normal(2, config.z_dim)
    before = torch.get_rng_state()
    assert torch.equal(generator(z, noise=noise), generator(z, noise=noise))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(generator(z, noise="random"), generator(z, noise="random"))


def test_noise_strength_zero_equals_no_noise(trained):
    config, generator, _ = trained
    for name, p in generator.named_parameters():
        if name.endswith("strength"):
            torch.nn.init.zeros_(p)
    z = normal(2, config.z_dim)
    none = generator(z, noise="none")
    assert torch.equal(generator(z, noise="random"), none) and torch.equal(generator(z, noise="const"), none)


def test_networks_start_without_noise_and_with_styles_of_one():
    generator, _ = models.build(models.ModelConfig(resolution=8))
    values = dict(generator.synthesis.named_parameters())
    assert all((values[name] == 0).all() for name in values if name.endswith("strength"))
    assert all((values[name] == 1).all() for name in values if name.endswith("affine.bias"))
    assert all((values[name] == 0).all() for name in values if name.endswith(("epilogue.bias", "rgb.0.bias")))
