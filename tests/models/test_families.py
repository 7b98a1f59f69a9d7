"""mlp, dcgan, cgan, r3gan and fastgan in all variants: architecture, published sizes, a few training steps."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgan import models
from fastgan.layers import BatchNormAct
from fastgan.losses import nonsaturating_real
from fastgan.models import cgan, mlp
from fastgan.models.blocks import Block
from fastgan.penalties import logits_and_squared_grad, why_not_one_pass, zero_centered_penalty
from tests.support.networks import activation_modules, trained_by

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 5
FAMILIES = {  # name: what makes it
    "mlp": {"arch": "mlp"},
    "dcgan transposed": {"arch": "dcgan"},
    "dcgan upsample": {"arch": "dcgan", "variant": "upsample"},
    "cgan conv": {"arch": "cgan"},
    "cgan mlp": {"arch": "cgan", "variant": "mlp"},
    "r3gan": {"arch": "r3gan"},
    "fastgan": {"arch": "fastgan"},
}
WITH_DISCRIMINATOR_NORM = ("dcgan transposed", "dcgan upsample", "cgan conv", "fastgan")
CASES = [(name, n) for name in FAMILIES for n in (0, CLASSES) if n or not name.startswith("cgan")]


def configured(name, num_classes=CLASSES, **options):
    small = {"resolution": 16, "channels": 3, "channel_base": 128, "channel_max": 16, "z_dim": 8}
    return models.ModelConfig(**{**small, "num_classes": num_classes, **FAMILIES[name], **options})


def build(name, num_classes=CLASSES, **options):
    torch.manual_seed(0)
    config = configured(name, num_classes, **options)
    return config, *models.build(config)


def labels(config, n=4):
    return torch.arange(n) % config.num_classes if config.num_classes else None


def stirred(network):
    """The same without weights of zero: a residual branch that is switched off would hide errors."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3 if parameter.dim() < 2 else 1 / math.sqrt(parameter[0].numel()))
    return network


@pytest.mark.parametrize("name", WITH_DISCRIMINATOR_NORM)
def test_the_label_does_not_dominate_the_latent(name):
    """Batch norm asks that images differ. If labels alone make them differ, training ignores the latent."""
    classes = 10
    _, generator, _ = build(name, classes, z_dim=100)
    with torch.no_grad():
        images = generator(torch.randn(40 * classes, 100), torch.arange(classes).repeat(40)).unflatten(0, (40, classes))
    within = images.var(0).mean()
    between = images.mean(0).var(0).mean() - within / 40
    assert between < 0.1 * within


# Images and logits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [8, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "num_classes"), CASES)
def test_generator_returns_images_and_discriminator_logits(name, num_classes, channels, resolution):
    config, generator, discriminator = build(
        name, num_classes, channels=channels, resolution=resolution, channel_base=8 * resolution
    )
    label = labels(config)
    image, logits, loss = trained_by(generator, discriminator, torch.randn(4, config.z_dim), label)
    assert image.shape == (4, channels, resolution, resolution)
    assert image.dtype == torch.float32
    assert image.std() > 1e-3
    if config.arch != "r3gan":  # which is not limited
        assert image.abs().max() <= 1
    assert logits.shape[:1] == (4,) and logits.dim() == (2 if name == "fastgan" else 1)
    assert logits.dtype == torch.float32
    loss.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in (*generator.parameters(), *discriminator.parameters())
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_an_effect(name):
    """A bias before batch norm, for example, would have none."""
    config, generator, discriminator = build(name)
    stirred(generator), stirred(discriminator)
    label = torch.arange(16) % CLASSES
    trained_by(generator, discriminator, torch.randn(16, config.z_dim), label)[2].backward()
    for network in (generator, discriminator):
        assert not [key for key, p in network.named_parameters() if p.grad.abs().max() < 1e-12]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_label_changes_images_and_logits(name):
    config, generator, discriminator = build(name)
    z, one = torch.randn(4, config.z_dim), labels(config)
    other = one.roll(1)  # not one label for all: batch norm right behind it would take it away again
    image = generator(z, one)
    assert (image - generator(z, other)).abs().max() > 1e-3 * image.std()
    logits = discriminator(image, one)
    assert (logits - discriminator(image, other)).abs().max() > 1e-3 * logits.std()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conditional_network_requires_a_label(name):
    config, generator, discriminator = build(name)
    with pytest.raises(ValueError, match="5 classes: it needs a label"):
        generator(torch.randn(2, config.z_dim))
    with pytest.raises(ValueError, match="5 classes: it needs a label"):
        discriminator(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("network", ["Generator", "Discriminator"])
@pytest.mark.parametrize("variant", cgan.VARIANTS)
def test_cgan_requires_classes(variant, network):
    config = models.ModelConfig(arch="cgan", variant=variant)
    with pytest.raises(ValueError, match="a conditional GAN needs labels"):
        getattr(cgan, network)(config)


@pytest.mark.parametrize("arch", ["dcgan", "cgan"])
def test_the_first_variant_is_the_default(arch):
    first, second = models.ARCHITECTURES[arch].VARIANTS
    config = lambda variant: models.ModelConfig(arch=arch, num_classes=3, variant=variant)
    for default, same, other in zip(*(models.build(config(v)) for v in ("", first, second)), strict=True):
        assert repr(default) == repr(same) != repr(other)


@pytest.mark.parametrize("name", ["mlp", "cgan mlp", "cgan conv"])
def test_networks_with_a_fixed_number_of_layers_support_28x28(name):
    family, config = models.ARCHITECTURES[FAMILIES[name]["arch"]], configured(name, resolution=28, channels=1)
    label = labels(config)
    image = family.Generator(config)(torch.randn(4, config.z_dim), label)
    assert image.shape == (4, 1, 28, 28)
    assert family.Discriminator(config)(image, label).shape == (4,)


# Precision and layout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "num_classes"), CASES)
def test_bf16_autocast_agrees_with_fp32_in_channels_last(name, num_classes):
    config, generator, discriminator = build(name, num_classes)
    stirred(generator).to(memory_format=torch.channels_last)
    stirred(discriminator).to(memory_format=torch.channels_last)
    z, label = torch.randn(16, config.z_dim), labels(config, 16)
    torch.manual_seed(1)  # some have noise
    expected = generator(z, label)
    expected_logits = discriminator(expected, label)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        image, logits = generator(z, label), discriminator(expected, label)
        loss = trained_by(generator, discriminator, z, label)[2]
    assert image.dtype == logits.dtype == torch.float32
    for got, wanted in ((image, expected), (logits, expected_logits)):
        assert (got - wanted).norm() < 0.15 * wanted.norm()
        assert not torch.equal(got, wanted)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in (*generator.parameters(), *discriminator.parameters()))


@pytest.mark.parametrize("name", [name for name in FAMILIES if "mlp" not in name])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_feature_maps_are_channels_last_for_any_image_format(name, channels, memory_format):
    config, generator, discriminator = build(name, channels=channels)
    strayed = []

    def look(module, inputs, output):
        for each in output if isinstance(output, tuple) else (output,):
            if each.dim() == 4 and not each.is_contiguous(memory_format=torch.channels_last):
                strayed.append(module)

    for network in (generator, discriminator):
        network.to(memory_format=torch.channels_last)
        for module in activation_modules(network):
            module.register_forward_hook(look)
    label = labels(config)
    discriminator(generator(torch.randn(4, config.z_dim), label).contiguous(memory_format=memory_format), label)
    trained_by(generator, discriminator, torch.randn(4, config.z_dim), label)
    assert not strayed


# Gradient penalties -----------------------------------------------------------------------------------------------


def penalised(form, discriminator, images, label):
    """Gradients of a loss with R1 with respect to images and parameters."""
    logits, squares = logits_and_squared_grad(form, images, label)
    assert logits.isfinite().all()
    assert squares.isfinite().all()
    assert squares.min() > 0
    loss = nonsaturating_real(logits) + 3 * zero_centered_penalty(squares)
    judging = [p for name, p in discriminator.named_parameters() if "decoder" not in name]
    return torch.autograd.grad(loss, [images, *judging])


@pytest.mark.parametrize("discriminator_norm", [True, False])
@pytest.mark.parametrize(("name", "num_classes"), CASES)
def test_penalty_gradients_equal_double_backward(name, num_classes, discriminator_norm):
    config, _, discriminator = build(name, num_classes, discriminator_norm=discriminator_norm)
    stirred(discriminator).double()
    images, label = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True), labels(config)
    reason = why_not_one_pass(discriminator, images, label)
    if name == "fastgan":
        assert "SkipExcitation" in reason
    elif discriminator_norm and name in WITH_DISCRIMINATOR_NORM:
        assert "BatchNorm" in reason
    else:
        assert reason is None
    got = penalised(discriminator, discriminator, images, label)
    expected = penalised(lambda *arguments: discriminator(*arguments), discriminator, images, label)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm()
        assert a.isfinite().all()


@pytest.mark.parametrize("name", WITH_DISCRIMINATOR_NORM)
def test_discriminator_norm_adds_only_batch_norm(name):
    """Without it, images are independent, and each batch norm is a bias."""
    config, generator, discriminator = build(name, discriminator_norm=True)
    _, same_generator, bare = build(name, discriminator_norm=False)
    norms = lambda network: [m for m in network.modules() if isinstance(m, BatchNormAct)]
    assert norms(discriminator)
    assert not norms(bare)
    assert generator.state_dict().keys() == same_generator.state_dict().keys()
    weights = lambda network: sum(p.numel() for p in network.parameters() if p.dim() > 1)
    assert weights(discriminator) == weights(bare)
    images, label = torch.randn(4, 3, 16, 16), labels(config)
    torch.testing.assert_close(bare(images[:2], label[:2]), bare(images, label)[:2])
    with torch.no_grad():
        assert (discriminator(images[:2], label[:2]) - discriminator(images, label)[:2]).abs().max() > 1e-3


# What the papers say ----------------------------------------------------------------------------------------------


def sizes(**options):
    with torch.device("meta"):
        return [sum(p.numel() for p in network.parameters()) for network in models.build(models.ModelConfig(**options))]


@pytest.mark.parametrize(
    ("options", "generator", "discriminator"),
    [
        # Table 2 of the paper: 23.058 M and 23.010 M.
        ({"resolution": 256}, 23_057_952, 23_009_568),
        # Section 4.5: 40 M in both, which are conditional.
        ({"resolution": 32, "num_classes": 10}, 20_781_952, 20_732_800),
    ],
)
def test_r3gan_has_the_published_number_of_parameters(options, generator, discriminator):
    paper = {"arch": "r3gan", "channels": 3, "z_dim": 64, "channel_base": 24576, "channel_max": 768}
    assert sizes(**paper, **options) == [generator, discriminator]


def test_dcgan_has_the_published_number_of_parameters():
    """The networks for 64x64 that most implementations have, which leave out the last bias of the generator and the
    first and last of the discriminator; and the paper's, with kernels of 4x4, which are twice as wide."""
    common = {"arch": "dcgan", "resolution": 64, "channels": 3, "z_dim": 100, "channel_max": 1024}
    assert sizes(**common, channel_base=2048) == [3_576_704 + 3, 2_765_568 + 64 + 1]
    maps, kernel = (1024, 512, 256, 128), 16
    weights = 100 * maps[0] * kernel + kernel * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3)
    assert sizes(**common, channel_base=4096)[0] == weights + 2 * sum(maps) + 3


def test_dcgan_upsample_has_the_published_widths():
    _, generator, discriminator = build("dcgan upsample", 0, resolution=32, channel_max=128)
    shapes = lambda network: [tuple(p.shape) for p in network.parameters() if p.dim() == 4]
    assert shapes(generator) == [(128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)]
    assert shapes(discriminator) == [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3)]
    assert generator.layers[0].layer.linear.weight.shape == (128 * 8 * 8, 8)
    assert discriminator.out.weight.shape == (1, 128 * 2 * 2)


def test_dcgan_upsample_equals_plain_pytorch():
    """Layer by layer, in plain PyTorch."""
    config, generator, _ = build("dcgan upsample", 0)
    z = torch.randn(4, config.z_dim)
    first, *middle, last = generator.layers
    x = F.linear(z, first.layer.linear.weight).view(4, 4, 4, 16).permute(0, 3, 1, 2)
    x = F.batch_norm(x, None, None, first.norm.weight, first.norm.bias, training=True)
    for block in middle:
        x = F.conv2d(F.interpolate(x, scale_factor=2), block.layer.weight, padding=1)
        x = F.leaky_relu(F.batch_norm(x, None, None, block.norm.weight, block.norm.bias, training=True), 0.2)
    expected = torch.tanh(F.conv2d(x, last.layer.weight, last.bias, padding=1))
    torch.testing.assert_close(generator(z), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dcgan transposed", "dcgan upsample", "cgan conv"])
def test_batch_norm_is_in_all_layers_but_those_at_image_and_logit(name):
    config, generator, discriminator = build(name)
    blocks = lambda network: [m for m in network.modules() if isinstance(m, Block)]
    assert [block.norm is not None for block in blocks(generator)] == [True] * (len(blocks(generator)) - 1) + [False]
    assert [block.norm is not None for block in blocks(discriminator)] == [False] + [True] * (
        len(blocks(discriminator)) - 1
    )
    weights = torch.cat(
        [p.detach().flatten() for p in (*generator.parameters(), *discriminator.parameters()) if p.dim() > 1]
    )
    assert weights.mean().abs() < 1e-3
    assert 0.019 < weights.std() < 0.021


def test_cgan_conv_has_the_published_widths():
    _, generator, discriminator = build("cgan conv", 10, resolution=32, channels=1, channel_max=128, z_dim=100)
    shapes = lambda network: [tuple(p.shape) for p in network.parameters() if p.dim() > 1]
    assert shapes(generator) == [(1024, 110), (128 * 8 * 8, 1024), (128, 64, 4, 4), (64, 1, 4, 4)]
    assert shapes(discriminator) == [(64, 11, 4, 4), (128, 64, 4, 4), (1024, 128 * 8 * 8), (1, 1024)]


def test_cgan_mlp_has_the_published_widths():
    _, generator, discriminator = build("cgan mlp", 10, resolution=32, channels=1, channel_max=150, z_dim=100)
    shapes = lambda network: [tuple(p.shape) for p in network.parameters() if p.dim() > 1]
    assert shapes(generator) == [(200, 100), (1000, 10), (1200, 1200), (1024, 1200)]
    assert shapes(discriminator) == [(600, 1024), (150, 10), (600, 750), (1, 600)]


def test_initial_weights_of_mlp_keep_the_variance():
    torch.manual_seed(0)
    config = models.ModelConfig(arch="mlp", z_dim=100, channel_max=64)
    generator = mlp.Generator(config)
    x = torch.randn(256, config.z_dim)
    for layer in generator.layers[:2]:
        x = layer(x)
        assert 0.8 < x.square().mean() < 1.25


class TestR3GAN:
    def test_widths_are_those_of_the_paper(self):
        config = models.ModelConfig(arch="r3gan", resolution=256, channel_base=24576, channel_max=768)
        assert [config.features(r) for r in config.resolutions] == [768, 768, 768, 768, 384, 192, 96]
        with torch.device("meta"):
            generator, discriminator = models.build(config)
        groups = lambda network: [m.groups for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        expected = [g for g in (96, 96, 96, 96, 48, 24, 12) for _ in range(2)]
        assert groups(generator) == expected
        assert groups(discriminator) == [*reversed(expected), 768]

    def test_blocks_start_as_the_identity(self):
        config, generator, discriminator = build("r3gan")
        x = torch.randn(2, 16, 4, 4)
        assert torch.equal(generator.trunk[0](x), x)
        inner, blocks = 32, 6
        for conv, fan_in in ((generator.trunk[0].expand, 16), (generator.trunk[0].group, 16 * 9)):
            expected = math.sqrt(2 / 1.04 / fan_in) * blocks**-0.25
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert conv.weight.shape[0] == inner

    def test_a_block_has_1x1_3x3_and_1x1_convolutions(self):
        _, generator, _ = build("r3gan", channel_max=32, channel_base=512)
        block = stirred(generator).trunk[0]
        x = torch.randn(2, 32, 5, 7)
        y = F.leaky_relu(F.conv2d(x, block.expand.weight, block.expand_bias), 0.2)
        y = F.leaky_relu(F.conv2d(y, block.group.weight, block.group_bias, padding=1, groups=4), 0.2)
        torch.testing.assert_close(block(x), x + F.conv2d(y, block.contract.weight), rtol=1e-4, atol=1e-5)

    def test_interpolation_is_bilinear(self):
        """Upsampled by 2, every second pixel is an old one and those between are means; and back."""
        _, generator, discriminator = build("r3gan")
        up = next(m for m in generator.trunk if type(m).__name__ == "Upsample2d")
        down = next(m for m in discriminator.trunk if type(m).__name__ == "Downsample2d")
        x = torch.randn(1, 2, 4, 4)
        large = up(x)
        torch.testing.assert_close(large[..., 1::2, 1::2], x)
        torch.testing.assert_close(large[..., 1::2, 2::2], (x[..., :-1] + x[..., 1:]) / 2)
        ramp = torch.arange(8.0).expand(1, 1, 8, 8)
        torch.testing.assert_close(down(ramp)[..., 1:, 1:], ramp[..., 2::2, 2::2])

    def test_the_logit_is_an_inner_product_with_the_embedding(self):
        config, _, discriminator = build("r3gan")
        stirred(discriminator)
        image = torch.randn(3, 3, 16, 16)
        with torch.no_grad():
            discriminator.embed.weight[1] = discriminator.embed.weight[2] + discriminator.embed.weight[3]
        logits = [discriminator(image, torch.full((3,), label)) for label in (1, 2, 3)]
        torch.testing.assert_close(logits[0], logits[1] + logits[2], rtol=1e-4, atol=1e-5)


# Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "num_classes"), CASES)
def test_a_few_steps_reduce_the_losses(name, num_classes):
    """Discriminator and generator, each with the other one fixed."""
    config, generator, discriminator = build(name, num_classes)
    real, z, label = torch.rand(16, 3, 16, 16), torch.randn(16, config.z_dim), labels(config, 16)
    fake = generator(z, label).detach()

    def descend(network, loss):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.003, betas=(0.5, 0.99))
        seen = []
        for _ in range(15):
            optimizer.zero_grad()
            seen.append(loss())
            seen[-1].backward()
            optimizer.step()
        return seen

    told_apart = descend(
        discriminator, lambda: F.softplus(discriminator(fake, label) - discriminator(real, label)).mean()
    )
    assert told_apart[-1] < 0.9 * told_apart[0]
    deceived = descend(generator, lambda: nonsaturating_real(discriminator(generator(z, label), label)))
    assert deceived[-1] < 0.99 * deceived[0]
