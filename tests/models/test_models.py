"""All model families: their common interface."""

import pytest
import torch

from fastgan import models
from fastgan.models.stylegan3 import OUTPUT_GAIN
from tests.support.networks import activation_modules, trained_by

CONDITIONAL = ("cgan",)  # require labels
ARCHITECTURES_AND_CLASSES = [(arch, n) for arch in models.ARCHITECTURES for n in (0, 5) if n or arch not in CONDITIONAL]


def labels(config, n=4):
    return torch.arange(n) % config.num_classes if config.num_classes else None


def build(arch, **options):
    torch.manual_seed(0)
    options = {"resolution": 16, "channel_base": 128, "channel_max": 16, "z_dim": 8, **options}
    options.setdefault("num_classes", 5 if arch in CONDITIONAL else 0)
    config = models.ModelConfig(arch=arch, **options)
    return config, *models.build(config)


@pytest.mark.parametrize(("arch", "num_classes"), ARCHITECTURES_AND_CLASSES)
@pytest.mark.parametrize("channels", [1, 3])
def test_generator_returns_images_and_discriminator_logits(arch, num_classes, channels):
    config, generator, discriminator = build(arch, num_classes=num_classes, channels=channels)
    label = labels(config)
    image, logits, loss = trained_by(generator, discriminator, torch.randn(4, config.z_dim), label)
    assert image.shape == (4, channels, 16, 16) and image.dtype == torch.float32
    assert logits.shape == ((4, 26) if arch == "fastgan" else (4,)) and logits.dtype == torch.float32
    loss.backward()
    without = [n for network in (generator, discriminator) for n, p in network.named_parameters() if p.grad is None]
    # A network that grows has its ways to and from RGB for every level, and uses the last.
    assert all("growth" in generator.supports and "_rgb." in name for name in without)


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_tanh_keeps_pixels_in_range(arch):
    config, plain, _ = build(arch)
    bounded = build(arch, tanh=True)[1]
    bounded.load_state_dict(plain.state_dict())
    plain.eval(), bounded.eval()
    options = {"noise": "const"} if "noise" in plain.supports else {}
    z, label = 9 * torch.randn(4, config.z_dim), labels(config)
    image, expected = bounded(z, label, **options), plain(z, label, **options)
    if arch == "stylegan3":  # with tanh, nothing makes its image smaller before
        expected = expected / OUTPUT_GAIN
    always = arch in ("mlp", "dcgan", "cgan", "fastgan")
    torch.testing.assert_close(image, expected if always else expected.tanh(), atol=0, rtol=0)


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_the_label_changes_images_and_logits(arch):
    config, generator, discriminator = build(arch, num_classes=5)
    z, one = torch.randn(4, config.z_dim), labels(config)
    other = one.roll(1)  # not one label for all: batch norm right behind it would take it away again
    options = {"noise": "none"} if "noise" in generator.supports else {}
    image = generator(z, one, **options)
    assert not torch.allclose(image, generator(z, other, **options))
    assert not torch.allclose(discriminator(image, one), discriminator(image, other))


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_bf16_autocast_agrees_with_fp32(arch):
    config, generator, discriminator = build(arch)
    z, label = torch.randn(4, config.z_dim), labels(config)
    options = {"noise": "const"} if "noise" in generator.supports else {}
    generator.eval()
    discriminator.eval()
    expected = generator(z, label, **options)
    with torch.autocast("cpu", torch.bfloat16):
        image = generator(z, label, **options)
        logits = discriminator(expected, label)
    # All in all: pixel norm magnifies what is small at single places.
    assert (image - expected).norm() < 0.05 * expected.norm()
    torch.testing.assert_close(logits, discriminator(expected, label), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": "biggan"}, "arch is 'biggan'"),
        ({"resolution": 24}, "resolution is 24"),
        ({"resolution": 4}, "resolution is 4"),
        ({"channel_base": 8, "resolution": 16}, "channel_base is 8"),
        ({"channels": 0}, "channels is 0, must be at least 1"),
        ({"num_classes": -1}, "num_classes is -1, must be at least 0"),
        ({"channel_max": 0}, "channel_max is 0, must be at least 1"),
        ({"variant": "transposed"}, "variant is 'transposed', must be empty for stylegan2"),
        ({"arch": "dcgan", "variant": "conv"}, "variant is 'conv', must be transposed or upsample for dcgan"),
        ({"arch": "cgan", "variant": "big", "num_classes": 3}, "variant is 'big', must be conv or mlp for cgan"),
        ({"arch": "dcgan", "discriminator_norm": "no"}, "discriminator_norm is 'no', must be True or False"),
        ({"tanh": 1}, "tanh is 1, must be True or False"),
        ({"noise": 0}, "noise is 0, must be True or False"),
        ({"arch": "dcgan", "pixel_shuffle": True}, "pixel_shuffle is True, must be False for dcgan"),
        ({"resolution": 8, "pixel_shuffle": True}, "must be False for stylegan2 at resolution 8: .* from 16 on"),
        ({"arch": "cgan"}, "num_classes is 0, .* a conditional GAN needs labels"),
        ({"arch": "fastgan", "channel_base": 40}, "channel_base is 40, must be at least 64 for fastgan: twice"),
        ({"arch": "r3gan", "channel_max": 20}, "channel_max 20 make 20 feature maps at resolution 4, .* multiple of 8"),
        ({"arch": "r3gan", "channel_base": 128}, "4 feature maps at resolution 32, .* channel_base .* multiple of 256"),
    ],
)
def test_an_invalid_configuration_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        models.build(models.ModelConfig(**options))


class TestStyleGAN2:
    def test_a_conditional_network_requires_a_label(self):
        config, generator, _ = build("stylegan2", num_classes=5)
        with pytest.raises(ValueError, match="5 classes"):
            generator(torch.randn(2, config.z_dim))

    def test_psi_zero_gives_the_mean_image_for_every_latent(self):
        config, generator, _ = build("stylegan2")
        generator.mapping.w_avg.normal_()
        images = generator(torch.randn(3, config.z_dim), truncation=0.0, noise="none")
        torch.testing.assert_close(images[1:], images[:1].expand(2, -1, -1, -1))
        mean = generator.synthesis(generator.mapping.w_avg.expand(1, generator.num_ws, -1), "none")
        torch.testing.assert_close(images[:1], mean)

    def test_truncation_works_under_autocast(self):
        config, generator, _ = build("stylegan2")
        with torch.autocast("cpu", torch.bfloat16):
            assert generator(torch.randn(2, config.z_dim), truncation=0.7).isfinite().all()

    def test_style_mixing_changes_only_later_layers(self):
        config, generator, _ = build("stylegan2")
        z = torch.randn(64, config.z_dim)
        seen = []
        generator.synthesis.forward = lambda ws, noise: seen.append(ws)
        generator(z, style_mixing=1.0)
        own = generator.mapping(z)
        same = (seen[0] == own[:, None]).all(2)  # [N, num_ws]
        assert same[:, 0].all() and not same[:, -1].any()
        assert (same.int().diff(dim=1) <= 0).all()  # once another latent begins, it stays
        assert len(same.sum(1).unique()) > 1  # from a layer that differs between samples
        generator(z, style_mixing=0.0)
        assert (seen[1] == own[:, None]).all()

    def test_the_mean_of_w_is_updated_only_in_training(self):
        config, generator, _ = build("stylegan2")
        z = torch.randn(4, config.z_dim)
        with torch.no_grad():
            generator(z)
        generator.eval()
        generator(z)
        assert generator.mapping.w_avg.eq(0).all()
        generator.train()
        generator(z)
        assert generator.mapping.w_avg.ne(0).any()
        before = generator.mapping.w_avg.clone()
        generator(torch.full_like(z, torch.inf))
        assert torch.equal(generator.mapping.w_avg, before), "what is not finite would stay in it"

    def test_noise_is_random_const_or_none(self):
        config, generator, _ = build("stylegan2")
        for module in generator.modules():
            if hasattr(module, "strength"):
                torch.nn.init.ones_(module.strength)
        z = torch.randn(2, config.z_dim)
        images = {kind: [generator(z, noise=kind) for _ in range(2)] for kind in ("random", "const", "none")}
        assert not torch.equal(*images["random"])
        assert torch.equal(*images["const"]) and torch.equal(*images["none"])
        assert not torch.allclose(images["const"][0], images["none"][0])


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_activations_stay_channels_last_throughout(arch, channels):
    config, generator, discriminator = build(arch, channels=channels)
    generator.to(memory_format=torch.channels_last)
    discriminator.to(memory_format=torch.channels_last)
    strayed = []

    def look(module, inputs, output):
        image = isinstance(output, torch.Tensor) and output.dim() == 4
        if image and not output.is_contiguous(memory_format=torch.channels_last):
            strayed.append(module)

    for network in (generator, discriminator):
        for module in activation_modules(network):
            module.register_forward_hook(look)
    label = labels(config)
    discriminator(generator(torch.randn(4, config.z_dim), label), label)
    assert not strayed
