"""The model families: one interface, and what each promises."""

import pytest
import torch

from fastgan import models


def build(arch, **options):
    torch.manual_seed(0)
    options = {"resolution": 16, "channel_base": 128, "channel_max": 16, "z_dim": 8, **options}
    config = models.ModelConfig(arch=arch, **options)
    return config, *models.build(config)


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_of_latents_and_logits_of_images(arch, num_classes, channels):
    config, generator, critic = build(arch, num_classes=num_classes, channels=channels)
    label = torch.arange(4) % 5 if num_classes else None
    image = generator(torch.randn(4, config.z_dim), label)
    assert image.shape == (4, channels, 16, 16) and image.dtype == torch.float32
    logits = critic(image, label)
    assert logits.shape == (4,) and logits.dtype == torch.float32
    logits.sum().backward()
    without = [n for network in (generator, critic) for n, p in network.named_parameters() if p.grad is None]
    # A network that grows has its ways to and from RGB for every level, and uses the last.
    assert all("growth" in generator.supports and "_rgb." in name for name in without)


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_the_label_matters(arch):
    config, generator, critic = build(arch, num_classes=5)
    z = torch.randn(4, config.z_dim)
    one, other = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    options = {"noise": "none"} if "noise" in generator.supports else {}
    image = generator(z, one, **options)
    assert not torch.allclose(image, generator(z, other, **options))
    assert not torch.allclose(critic(image, one), critic(image, other))


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_bf16_autocast_gives_about_the_same(arch):
    config, generator, critic = build(arch)
    z = torch.randn(4, config.z_dim)
    options = {"noise": "const"} if "noise" in generator.supports else {}
    generator.eval()
    critic.eval()
    expected = generator(z, **options)
    with torch.autocast("cpu", torch.bfloat16):
        image = generator(z, **options)
        logits = critic(expected)
    # All in all: pixel norm magnifies what is small at single places.
    assert (image - expected).norm() < 0.05 * expected.norm()
    torch.testing.assert_close(logits, critic(expected), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": "biggan"}, "arch is 'biggan'"),
        ({"resolution": 24}, "resolution is 24"),
        ({"resolution": 4}, "resolution is 4"),
        ({"channel_base": 8, "resolution": 16}, "channel_base is 8"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        models.build(models.ModelConfig(**options))


class TestStyleGAN2:
    def test_a_conditional_network_asks_for_its_label(self):
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

    def test_mixing_changes_later_layers_only(self):
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

    def test_the_mean_of_w_is_learned_in_training_only(self):
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

    def test_noise_is_random_fixed_or_none(self):
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
    config, generator, critic = build(arch, channels=channels)
    generator.to(memory_format=torch.channels_last)
    critic.to(memory_format=torch.channels_last)
    strayed = []

    def look(module, inputs, output):
        image = isinstance(output, torch.Tensor) and output.dim() == 4
        if image and not output.is_contiguous(memory_format=torch.channels_last):
            strayed.append(module)

    for network in (generator, critic):
        for module in network.modules():
            module.register_forward_hook(look)
    critic(generator(torch.randn(4, config.z_dim)))
    assert not strayed
