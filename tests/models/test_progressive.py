"""Progressive growing: fading, stages, schedules; pggan and stylegan."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastgan import models
from fastgan.models.progressive import ProgressiveGrowing, fade_reals
from fastgan.penalties import (
    logits_and_squared_grad,
    one_centered_penalty,
    wgan_gp,
    why_not_one_pass,
    zero_centered_penalty,
)
from fastgan.training.growth import Schedule, Stage, stage_at

GROWING = ["pggan", "stylegan"]
RESOLUTIONS = [4, 8, 16]


def build(arch, **options):
    """Networks with random noise strengths and biases, since initial zeros would hide errors."""
    torch.manual_seed(0)
    options = {"resolution": 16, "channel_base": 64, "channel_max": 12, "z_dim": 8, "channels": 3, **options}
    generator, discriminator = models.build(models.ModelConfig(arch=arch, **options))
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            if name.endswith(("bias", "strength")):
                torch.nn.init.normal_(parameter, std=0.1)
    return generator, discriminator


def draw(generator, z, label=None, **options):
    return generator(z, label, **({"noise": "const"} if "noise" in generator.supports else {}), **options)


def reals(resolution, n=4):
    return torch.randn(n, 3, resolution, resolution)


def nearest(images):
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("arch", GROWING)
class TestGrowth:
    def test_both_networks_grow_and_start_at_full_resolution(self, arch):
        generator, discriminator = build(arch)
        assert "growth" in generator.supports
        for network in (generator, discriminator):
            assert isinstance(network, ProgressiveGrowing)
            assert list(network.resolutions) == RESOLUTIONS
            assert network.stage_resolution == 16 and network.alpha == 1
            assert network.alpha.shape == () and network.alpha.dtype == torch.float32
            assert not any("alpha" in name for name in network.state_dict())

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    def test_images_have_the_resolution_of_the_stage(self, arch, resolution):
        generator, discriminator = build(arch)
        for network in (generator, discriminator):
            network.grow_to(resolution)
        image = draw(generator, torch.randn(4, 8))
        assert image.shape == (4, 3, resolution, resolution) and image.dtype == torch.float32
        assert discriminator(image).shape == (4,)

    @pytest.mark.parametrize("resolution", RESOLUTIONS[1:])
    def test_at_alpha_0_the_generator_upsamples_the_previous_stage(self, arch, resolution):
        generator, _ = build(arch)
        z = torch.randn(4, 8)
        generator.grow_to(resolution // 2)
        before = draw(generator, z)
        generator.grow_to(resolution, 0.0)
        torch.testing.assert_close(draw(generator, z), nearest(before), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("resolution", RESOLUTIONS[1:])
    def test_at_alpha_0_the_discriminator_is_the_previous_stage_on_pooled_images(self, arch, resolution):
        _, discriminator = build(arch)
        image = reals(resolution)
        discriminator.grow_to(resolution // 2)
        before = discriminator(F.avg_pool2d(image, 2))
        discriminator.grow_to(resolution, 0.0)
        torch.testing.assert_close(discriminator(image), before, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("resolution", RESOLUTIONS[1:])
    def test_fading_is_linear_in_the_generator(self, arch, resolution):
        generator, _ = build(arch)
        z = torch.randn(4, 8)
        images = []
        for alpha in (0.0, 0.25, 1.0):
            generator.grow_to(resolution, alpha)
            images.append(draw(generator, z))
        assert not torch.allclose(images[0], images[2], atol=0.1)
        torch.testing.assert_close(images[1], 0.75 * images[0] + 0.25 * images[2], rtol=1e-5, atol=1e-5)

    def test_fading_is_linear_in_the_discriminators_new_level(self, arch):
        _, discriminator = build(arch)
        image = reals(16)
        seen = []
        discriminator.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        for alpha in (0.0, 0.25, 1.0):
            discriminator.grow_to(16, alpha)
            discriminator(image)
        assert not torch.allclose(seen[0], seen[2], atol=0.1)
        torch.testing.assert_close(seen[1], 0.75 * seen[0] + 0.25 * seen[2], rtol=1e-5, atol=1e-5)

    def test_alpha_near_1_is_near_the_unfaded_network(self, arch):
        generator, discriminator = build(arch)
        z, image = torch.randn(4, 8), reals(16)
        expected = draw(generator, z), discriminator(image)
        for network in (generator, discriminator):
            network.grow_to(16, 0.5)
            network.alpha.fill_(1.0)  # as a captured graph would see it
            assert network.fading
        for got, whole in zip((draw(generator, z), discriminator(image)), expected, strict=True):
            torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-5)
        for network in (generator, discriminator):
            network.grow_to(16, 1.0)
            assert not network.fading
        assert torch.equal(draw(generator, z), expected[0]) and torch.equal(discriminator(image), expected[1])

    def test_growing_changes_no_weight(self, arch):
        for network in build(arch):
            before = copy.deepcopy(network.state_dict())
            for resolution, alpha in ((4, 1.0), (8, 0.0), (8, 0.5), (8, 1.0), (16, 0.3), (16, 1.0)):
                network.grow_to(resolution, alpha)
            after = network.state_dict()
            assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)

    @pytest.mark.parametrize("alpha", [1.0, 0.5])
    def test_only_levels_in_use_get_a_gradient(self, arch, alpha):
        generator, discriminator = build(arch)
        for network in (generator, discriminator):
            network.grow_to(8, alpha)
        discriminator(draw(generator, torch.randn(4, 8))).square().sum().backward()
        rgb = {"to_rgb.1", "from_rgb.1"} | ({"to_rgb.0", "from_rgb.0"} if alpha < 1 else set())
        for network in (generator, discriminator):
            for name, parameter in network.named_parameters():
                first, number = (*name.split("."), "")[:2]
                if "rgb" in name:
                    used = f"{first}.{number}" in rgb
                elif first == "blocks":  # 0 between 4 and 8 pixels, 1 between 8 and 16
                    used = number == "0"
                elif first == "layers":  # two of 4 pixels, two of 8
                    used = int(number) < 4
                else:
                    used = True
                assert (parameter.grad is not None) == used, name
                assert not used or parameter.grad.ne(0).any(), name

    def test_a_discriminator_refuses_images_of_another_stage(self, arch):
        _, discriminator = build(arch)
        discriminator.grow_to(8, 0.5)
        with pytest.raises(ValueError, match=r"image has shape \[4, 3, 16, 16\], must be of the stage's resolution 8"):
            discriminator(reals(16))

    @pytest.mark.parametrize(
        ("stage", "words"),
        [
            ((32,), "resolution is 32, must be one of 4, 8, 16"),
            ((8, 1.5), "alpha is 1.5, must be from 0 to 1"),
            ((8, -0.5), "alpha is -0.5"),
            ((8, float("nan")), "alpha is nan"),
            ((4, 0.5), "alpha is 0.5, must be 1 at 4, the first level"),
        ],
    )
    def test_an_invalid_stage_is_refused_and_changes_nothing(self, arch, stage, words):
        for network in build(arch):
            network.grow_to(8, 0.25)
            with pytest.raises(ValueError, match=words):
                network.grow_to(*stage)
            assert (network.stage_resolution, network.alpha.item(), network.fading) == (8, 0.25, True)

    @pytest.mark.parametrize("alpha", [1.0, 0.5])
    def test_penalty_gradients_agree_with_finite_differences(self, arch, alpha):
        _, discriminator = build(arch, channels=1, num_classes=3)
        discriminator.double().grow_to(8, alpha)
        images, label = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.arange(4) % 3
        assert why_not_one_pass(discriminator, images, label)  # samples depend on each other: it is double backward

        def loss():
            logits, squares = logits_and_squared_grad(discriminator, images, label)
            return logits.square().mean() + zero_centered_penalty(squares) + one_centered_penalty(squares)

        parameters = [
            discriminator.from_rgb[1].weight,
            discriminator.blocks[0].down.weight,
            discriminator.dense.weight,
            discriminator.embed.weight,
        ]
        gradients = torch.autograd.grad(loss(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            direction = torch.randn_like(parameter)
            at, values = parameter.detach().clone(), []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter.copy_(at + step * direction)
                values.append(loss().item())
            with torch.no_grad():
                parameter.copy_(at)
            slope = (values[0] - values[1]) / 2e-6
            assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-7)

    def test_wgan_gp_has_gradients_for_every_weight_in_use(self, arch):
        generator, discriminator = build(arch)
        for network in (generator, discriminator):
            network.grow_to(8, 0.5)
        fake = draw(generator, torch.randn(4, 8)).detach()
        wgan_gp(discriminator, fade_reals(reals(16), 8, discriminator.alpha), fake).backward()
        for name in ("from_rgb.0", "from_rgb.1", "blocks.0.conv", "blocks.0.down", "conv", "dense", "out"):
            gradient = discriminator.get_submodule(name).weight.grad
            assert gradient.isfinite().all() and gradient.ne(0).any(), name

    @pytest.mark.parametrize("num_classes", [0, 3])
    def test_trains_under_bf16_autocast_in_channels_last_while_fading(self, arch, num_classes):
        generator, discriminator = build(arch, num_classes=num_classes)
        label = torch.arange(4) % 3 if num_classes else None
        z = torch.randn(4, 8)
        for network in (generator, discriminator):
            network.to(memory_format=torch.channels_last).grow_to(16, 0.5)
        strayed = []

        def look(module, inputs, output):
            if output.dim() == 4 and not output.is_contiguous(memory_format=torch.channels_last):
                strayed.append(module)

        expected = draw(generator, z, label)
        for network in (generator, discriminator):
            for module in network.modules():
                module.register_forward_hook(look)
        with torch.autocast("cpu", torch.bfloat16):
            image = draw(generator, z, label)
            logits = discriminator(image, label)
        assert not strayed
        assert image.dtype == logits.dtype == torch.float32
        assert (image - expected).norm() < 0.05 * expected.norm()
        logits.sum().backward()
        for network in (generator, discriminator):
            assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())

    @pytest.mark.slow
    def test_compiles_as_one_graph_while_fading(self, arch):
        generator, discriminator = build(arch)
        for network in (generator, discriminator):
            network.grow_to(8, 0.5)
        z = torch.randn(4, 8)
        whole = lambda z: discriminator(draw(generator, z))
        compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(z), whole(z), rtol=1e-4, atol=1e-4)
        for network in (generator, discriminator):
            network.grow_to(8, 0.75)
        torch.testing.assert_close(compiled(z), whole(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "millions", "counts"),
    [("pggan", (23.1, 23.1), (23_079_115, 23_087_249)), ("stylegan", (26.2, 23.1), (26_219_627, 23_087_249))],
)
def test_published_networks_have_the_published_number_of_parameters(arch, millions, counts):
    """Karras et al. 2018, table 2; Karras et al. 2019, section 2."""
    wide = {"resolution": 1024, "channels": 3, "z_dim": 512, "channel_base": 2 * 8192, "channel_max": 512}
    with torch.device("meta"):
        networks = models.build(models.ModelConfig(arch=arch, mapping_layers=8, **wide))
    found = tuple(sum(p.numel() for p in network.parameters()) for network in networks)
    assert tuple(round(count / 1e6, 1) for count in found) == millions
    assert found == counts


class TestStyleGAN:
    def test_psi_1_changes_nothing(self):
        generator, _ = build("stylegan")
        generator.mapping.w_avg.normal_()
        z = torch.randn(3, 8)
        ws = generator.styles(z, truncation=1.0)
        assert torch.equal(ws, generator.mapping(z)[:, None].expand(-1, 6, -1))
        assert generator.num_ws == 6

    @pytest.mark.parametrize(("layers", "truncated"), [(None, 8), (0, 0), (3, 3), (10, 10), (99, 10)])
    def test_truncation_moves_the_first_layers_towards_the_mean(self, layers, truncated):
        generator, _ = build("stylegan", resolution=64)
        assert generator.num_ws == 10
        generator.eval().mapping.w_avg.normal_()
        z = torch.randn(3, 8)
        own, mean = generator.mapping(z)[:, None], generator.mapping.w_avg
        for psi in (0.0, 0.7):
            ws = generator.styles(z, truncation=psi, truncation_layers=layers)
            torch.testing.assert_close(ws[:, :truncated], (mean + psi * (own - mean)).expand(-1, truncated, -1))
            assert torch.equal(ws[:, truncated:], own.expand(-1, 10 - truncated, -1))

    def test_psi_0_in_all_layers_gives_the_mean_image_for_every_latent(self):
        generator, _ = build("stylegan")
        generator.mapping.w_avg.normal_()
        images = draw(generator, torch.randn(3, 8), truncation=0.0)
        mean = generator.synthesize(generator.mapping.w_avg.expand(1, 6, -1), noise="const")
        torch.testing.assert_close(images, mean.expand(3, -1, -1, -1))

    def test_a_negative_number_of_layers_is_refused(self):
        generator, _ = build("stylegan")
        with pytest.raises(ValueError, match="truncation_layers is -1, must be 0 at least"):
            generator.styles(torch.randn(2, 8), truncation=0.5, truncation_layers=-1)

    def test_without_style_mixing_styles_depend_only_on_latents(self):
        generator, _ = build("stylegan")
        z = torch.randn(3, 8)
        assert torch.equal(generator.styles(z, style_mixing=0.0), generator.styles(z))

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    def test_style_mixing_switches_once_within_the_layers_in_use(self, resolution):
        generator, _ = build("stylegan")
        generator.grow_to(resolution)
        z = torch.randn(64, 8)
        in_use = generator.ws_in_use
        assert in_use == {4: 2, 8: 4, 16: 6}[resolution]
        ws = generator.styles(z, style_mixing=1.0)
        own = (ws == generator.mapping(z)[:, None]).all(2)  # [N, num_ws]
        crossing = own.sum(1)
        assert (own.int().diff(dim=1) <= 0).all()  # once another latent begins, it stays
        assert set(crossing.tolist()) == set(range(1, in_use))
        other = ws[:, -1]
        for sample in range(64):  # one other latent, not one a layer
            assert (ws[sample, crossing[sample] :] == other[sample]).all()

    def test_each_layer_reads_its_own_style(self):
        generator, _ = build("stylegan")
        ws = generator.styles(torch.randn(2, 8)).detach().requires_grad_()
        generator.grow_to(8)
        generator.synthesize(ws, noise="const").square().sum().backward()
        read = ws.grad.abs().sum((0, 2)) > 0
        assert read.tolist() == [True] * 4 + [False] * 2

    def test_noise_is_random_const_or_none(self):
        generator, _ = build("stylegan")
        z = torch.randn(2, 8)
        images = {kind: [generator(z, noise=kind) for _ in range(2)] for kind in ("random", "const", "none")}
        assert not torch.allclose(*images["random"])
        assert torch.equal(*images["const"]) and torch.equal(*images["none"])
        assert not torch.allclose(images["const"][0], images["none"][0])
        with pytest.raises(ValueError, match="noise is 'off'"):
            generator(z, noise="off")

    def test_a_new_network_starts_without_noise_and_with_a_constant_of_ones(self):
        torch.manual_seed(0)
        generator, _ = models.build(models.ModelConfig(arch="stylegan", resolution=8, channel_max=8, z_dim=8))
        assert generator.const.eq(1).all()
        z = torch.randn(2, 8)
        assert torch.equal(generator(z, noise="random"), generator(z, noise="none"))

    def test_a_layer_equals_plain_pytorch(self):
        generator, _ = build("stylegan")
        x, w = torch.randn(2, 12, 4, 4), torch.randn(2, 8)
        layer = generator.layers[2]
        conv, blur = layer.conv
        weight = conv.weight * 2**0.5 / (12 * 9) ** 0.5
        y = F.conv2d(nearest(x), weight, padding=1)
        kernel = torch.outer(*[torch.tensor([1.0, 2.0, 1.0])] * 2) / 16
        y = F.conv2d(y, kernel.expand(y.shape[1], 1, 3, 3), padding=1, groups=y.shape[1])
        y = y + layer.epilogue.strength[:, None, None] * layer.noise_const + layer.epilogue.bias[:, None, None]
        y = F.instance_norm(F.leaky_relu(y, 0.2), eps=1e-8)
        scale, bias = layer.epilogue.affine(w)[:, :, None, None].chunk(2, 1)
        torch.testing.assert_close(layer(x, w, "const"), y * (scale + 1) + bias, rtol=1e-4, atol=1e-4)


class TestPGGAN:
    def test_latents_are_normalized(self):
        generator, _ = build("pggan")
        z = torch.randn(4, 8)
        torch.testing.assert_close(generator(3 * z), generator(z), rtol=1e-4, atol=1e-4)

    def test_the_first_layer_is_linear_with_a_gain_of_a_quarter(self):
        generator, _ = build("pggan", z_dim=64)
        with torch.no_grad():
            x = generator.dense(torch.randn(2000, 64))
        assert x.std().item() == pytest.approx(2**0.5 / 4, rel=0.05)

    def test_a_downsampling_block_equals_plain_pytorch(self):
        for arch, blurred in (("pggan", False), ("stylegan", True)):
            _, discriminator = build(arch)
            block = discriminator.blocks[0]
            x = torch.randn(2, block.conv.weight.shape[1], 8, 8)
            y = block.conv(x)
            if blurred:
                kernel = torch.outer(*[torch.tensor([1.0, 2.0, 1.0])] * 2) / 16
                y = F.conv2d(y, kernel.expand(y.shape[1], 1, 3, 3), padding=1, groups=y.shape[1])
            weight = block.down.weight / (y.shape[1] * 9) ** 0.5
            y = F.avg_pool2d(F.conv2d(y, weight, padding=1), 2) + block.down.bias[:, None, None]
            torch.testing.assert_close(block(x), F.leaky_relu(y, 0.2) * 2**0.5, rtol=1e-4, atol=1e-4)


class TestFadingReals:
    def test_images_of_full_resolution_are_returned(self):
        images = reals(16)
        assert fade_reals(images, 16) is images

    def test_lower_stages_get_average_pooled_images(self):
        images = reals(16)
        torch.testing.assert_close(fade_reals(images, 4), F.avg_pool2d(F.avg_pool2d(images, 2), 2))

    @pytest.mark.parametrize("as_tensor", [False, True])
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_a_new_level_is_blended_with_the_previous_one(self, alpha, as_tensor):
        images = reals(16)
        old, new = nearest(F.avg_pool2d(images, 4)), F.avg_pool2d(images, 2)
        faded = fade_reals(images, 8, torch.tensor(alpha) if as_tensor else alpha)
        torch.testing.assert_close(faded, (1 - alpha) * old + alpha * new)

    def test_grey_images_are_supported(self):
        images = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(fade_reals(images, 8, 0.0), nearest(F.avg_pool2d(images, 2)))

    @pytest.mark.parametrize("resolution", [0, 12, 32])
    def test_a_resolution_that_does_not_divide_is_refused(self, resolution):
        with pytest.raises(ValueError, match=f"resolution is {resolution}, must divide that of the images, 16"):
            fade_reals(reals(16), resolution)

    def test_at_alpha_0_the_discriminator_judges_faded_reals_as_in_the_previous_stage(self):
        _, discriminator = build("pggan")
        images = reals(16)
        discriminator.grow_to(8)
        before = discriminator(fade_reals(images, 8))
        discriminator.grow_to(16, 0.0)
        torch.testing.assert_close(
            discriminator(fade_reals(images, 16, discriminator.alpha)), before, rtol=1e-5, atol=1e-5
        )


class TestSchedule:
    BATCHES, FACTORS = {4: 64, 8: 32, 16: 16}, {4: 1.0, 8: 1.0, 16: 2.0}

    def schedule(self, **changed):
        options = {"start": 4, "resolution": 16, "train_images": 100, "fade_images": 50}
        return Schedule(**{**options, "batches": self.BATCHES, "lr_factors": self.FACTORS, **changed})

    @pytest.mark.parametrize(
        ("images", "stage"),
        [
            (0, Stage(4, 1.0, 64, 1.0)),
            (99, Stage(4, 1.0, 64, 1.0)),
            (100, Stage(8, 0.0, 32, 1.0)),
            (125, Stage(8, 0.5, 32, 1.0)),
            (149, Stage(8, 0.98, 32, 1.0)),
            (150, Stage(8, 1.0, 32, 1.0)),
            (249, Stage(8, 1.0, 32, 1.0)),
            (250, Stage(16, 0.0, 16, 2.0)),
            (260, Stage(16, 0.2, 16, 2.0)),
            (300, Stage(16, 1.0, 16, 2.0)),
            (399, Stage(16, 1.0, 16, 2.0)),
            (400, Stage(16, 1.0, 16, 2.0)),
            (425, Stage(16, 1.0, 16, 2.0)),
            (10**12, Stage(16, 1.0, 16, 2.0)),
        ],
    )
    def test_a_level_is_faded_in_and_then_trained(self, images, stage):
        assert stage_at(images, self.schedule()) == stage

    def test_a_stage_depends_only_on_the_images_seen(self):
        schedule = self.schedule()
        forwards = [stage_at(images, schedule) for images in range(500)]
        backwards = [stage_at(images, schedule) for images in reversed(range(500))]
        assert forwards == backwards[::-1]
        grown = [stage.resolution + stage.alpha for stage in forwards]
        assert grown == sorted(grown)  # never back

    @pytest.mark.parametrize(
        ("changed", "images", "expected"),
        [
            ({"start": 16}, 0, (16, 1.0)),
            ({"start": 16}, 120, (16, 1.0)),
            ({"start": 8}, 125, (16, 0.5)),
            ({"fade_images": 0}, 99, (4, 1.0)),
            ({"fade_images": 0}, 100, (8, 1.0)),
            ({"train_images": 0}, 0, (8, 0.0)),
            ({"train_images": 0}, 50, (16, 0.0)),
            ({"train_images": 0}, 100, (16, 1.0)),
            ({"train_images": 0, "fade_images": 0}, 0, (16, 1.0)),
        ],
    )
    def test_phases_may_be_empty(self, changed, images, expected):
        assert stage_at(images, self.schedule(**changed))[:2] == expected

    def test_networks_can_grow_to_every_stage(self):
        generator, discriminator = build("pggan")
        for images in range(0, 450, 10):
            stage = stage_at(images, self.schedule())
            for network in (generator, discriminator):
                network.grow_to(stage.resolution, stage.alpha)

    def test_the_published_schedule(self):
        schedule = Schedule.published(4, 1024, 32)
        assert schedule.batches == {4: 512, 8: 256, 16: 128, 32: 64, 64: 32, 128: 32, 256: 32, 512: 32, 1024: 32}
        factors = {4: 1.0, 8: 1.0, 16: 1.0, 32: 1.0, 64: 1.0, 128: 1.5, 256: 2.0, 512: 3.0, 1024: 3.0}
        assert schedule.lr_factors == factors
        assert stage_at(600_000, schedule) == Stage(8, 0.0, 256, 1.0)
        assert stage_at(8 * 1_200_000, schedule) == Stage(1024, 1.0, 32, 3.0)
        assert Schedule.published(8, 32, 16).batches == {4: 128, 8: 64, 16: 32, 32: 16}

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"start": 6}, "start is 6, must be a power of two from 4"),
            ({"start": 2}, "start is 2"),
            ({"resolution": 24}, "resolution is 24"),
            ({"start": 32}, "start is 32, must be at most the resolution 16"),
            ({"train_images": -1}, "train_images is -1"),
            ({"fade_images": -1}, "fade_images is -1"),
            ({"batches": {4: 64, 16: 16}}, "batches at resolution 8 is missing"),
            ({"batches": {4: 64, 8: 0, 16: 16}}, "batches at resolution 8 is 0"),
            ({"lr_factors": {4: 1.0, 8: 1.0, 16: -1.0}}, "lr_factors at resolution 16 is -1.0"),
        ],
    )
    def test_invalid_schedules_are_refused(self, changed, words):
        with pytest.raises(ValueError, match=words):
            self.schedule(**changed)

    def test_a_negative_number_of_images_is_refused(self):
        with pytest.raises(ValueError, match="images_seen is -1"):
            stage_at(-1, self.schedule())
