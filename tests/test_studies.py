"""Studies of a generator: agreement with plain images, and errors for generators that lack a part."""

import math

import pytest
import torch
from torch import nn

from fastgan import models, paths, studies
from fastgan.models.progressive import ProgressiveGrowing
from fastgan.runs import drawing

SEEDS = [3, 1, 4]


def build(arch="stylegan2", **options):
    """A small generator with random weights, noise that shows, and a mean style other than zero."""
    torch.manual_seed(0)
    options = {"resolution": 16, "channel_base": 64, "channel_max": 8, "z_dim": 8, **options}
    generator, _ = models.build(models.ModelConfig(arch=arch, **options))
    for module in generator.modules():
        if getattr(module, "strength", None) is not None:
            nn.init.constant_(module.strength, 0.1)
    if hasattr(generator, "mapping"):
        nn.init.normal_(generator.mapping.w_avg)
    return generator.eval().requires_grad_(False)


class Growing(ProgressiveGrowing):
    """A growing generator whose pixels are numbers of z, at the resolution of its stage."""

    def __init__(self, resolutions=(4, 8, 16)):
        super().__init__(resolutions)
        self.z_dim = 16 * 16
        self.unused = nn.Parameter(torch.zeros(()))
        self.eval()

    def forward(self, z, label=None):
        side = self.stage_resolution
        return (z[:, : side * side].reshape(-1, 1, side, side) / 4).clamp(-1, 1) * self.alpha


@pytest.fixture(scope="module")
def generator():
    return build()


@pytest.fixture(scope="module")
def plain(generator):
    return studies.samples(generator, SEEDS)[0]  # [3, C, H, W]


def test_samples_equal_the_images_of_draw(generator, plain):
    assert plain.shape == (3, 1, 16, 16) and plain.dtype == torch.float32
    drawn = drawing.draw(generator, drawing.latents(SEEDS, generator.z_dim), None)
    assert (studies.to_uint8(plain) == drawn).all()
    assert torch.equal(studies.samples(generator, SEEDS[1:])[0], plain[1:])


class TestClasses:
    def test_a_row_has_the_samples_of_its_class(self):
        generator = build(num_classes=5)
        table = studies.classes(generator, SEEDS, [4, 0], truncation=0.7)
        assert table.shape == (2, 3, 1, 16, 16)
        for row, label in zip(table, [4, 0], strict=True):
            assert torch.equal(row, studies.samples(generator, SEEDS, label=label, truncation=0.7)[0])
        assert not torch.equal(table[0], table[1])

    def test_no_classes(self, generator):
        with pytest.raises(ValueError, match="labels is empty"):
            studies.classes(generator, SEEDS, [])


class TestInterpolation:
    @pytest.mark.parametrize("space", ["z", "slerp", "w", "spline"])
    def test_ends_are_the_plain_images(self, generator, plain, space):
        table = studies.interpolate(generator, SEEDS, steps=4, space=space)
        assert table.shape == (2, 4, 1, 16, 16)
        assert torch.equal(table[:, 0], plain[:-1]) and torch.equal(table[:, -1], plain[1:])
        between = table[:, 1:-1].flatten(0, 1)
        assert all(not torch.equal(image, end) for image in between for end in plain)

    @pytest.mark.parametrize("space", ["z", "slerp"])
    def test_interpolation_without_styles(self, space):
        generator = build("dcgan")
        table = studies.interpolate(generator, SEEDS, steps=3, space=space)
        assert torch.equal(table[:, 0], studies.samples(generator, SEEDS)[0, :-1])

    def test_the_middle_of_each_space(self, generator):
        a, b = drawing.latents(SEEDS[:2], generator.z_dim)
        styles = generator.styles(torch.stack([a, b])).mean(0, keepdim=True)
        middles = {
            "z": generator((a + b)[None] / 2, noise="const"),
            "slerp": generator((a + b)[None] / (2 + 2 * torch.cosine_similarity(a, b, 0)).sqrt(), noise="const"),
            "w": generator.synthesize(styles, noise="const"),
        }
        for space, middle in middles.items():
            image = studies.interpolate(generator, SEEDS[:2], steps=3, space=space)[0, 1]
            torch.testing.assert_close(image, middle[0])

    @pytest.mark.parametrize("loop", [False, True])
    @pytest.mark.parametrize("space", ["slerp", "spline"])
    def test_frames_have_each_seed_once(self, generator, plain, space, loop):
        frames = torch.stack(list(studies.interpolation_frames(generator, SEEDS, steps=4, space=space, loop=loop)))
        table = studies.interpolate(generator, SEEDS, steps=4, space=space, loop=loop)
        assert len(frames) == (3 * 3 if loop else 2 * 3 + 1)
        assert torch.equal(frames[::3], plain)
        rows = torch.cat([table[0], *table[1:, 1:]])
        assert torch.equal(frames, rows[: len(frames)])
        assert not loop or torch.equal(table[-1, -1], plain[0])

    def test_a_spline_goes_through_truncated_and_through_given_styles(self, generator):
        options = {"space": "spline", "steps": 3}
        ws = generator.styles(drawing.latents(SEEDS, generator.z_dim), truncation=0.6)
        curve = paths.spline(ws, True)
        drawn = studies.interpolate(generator, SEEDS, loop=True, truncation=0.6, **options)
        torch.testing.assert_close(drawn[2, 1], generator.synthesize(curve(2, 0.5)[None], noise="const")[0])
        torch.testing.assert_close(drawn, studies.interpolate(generator, ws, loop=True, **options))
        straight = studies.interpolate(generator, ws, loop=True, steps=3)
        assert not torch.allclose(drawn[:, 1], straight[:, 1])

    def test_batches_are_the_frames(self, generator):
        options = {"steps": 6, "space": "spline", "loop": True}
        frames = torch.stack(list(studies.interpolation_frames(generator, SEEDS, **options)))
        for batch, sizes in ((4, [4, 4, 4, 3]), (None, [1, 14])):
            drawn = list(studies.interpolation_batches(generator, SEEDS, batch=batch, **options))
            assert [len(images) for images in drawn] == sizes
            torch.testing.assert_close(torch.cat(drawn), frames, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("side, count", [(32, 16), (256, 4), (1024, 1)])
    def test_large_images_are_drawn_in_small_batches(self, side, count):
        assert studies._at_once(torch.empty(1, 3, side, side)) == count

    def test_frames_are_drawn_lazily(self, generator, monkeypatch):
        drawn = []
        monkeypatch.setattr(studies, "draw_batches", lambda *_, **__: drawn.append(1) or [torch.zeros(1, 1, 16, 16)])
        frames = studies.interpolation_frames(generator, SEEDS, steps=1000)
        assert not drawn
        next(frames)
        assert len(drawn) == 1


class TestMixing:
    @pytest.mark.parametrize("truncation", [1.0, 0.6])
    def test_no_layer_from_b_gives_a_and_every_layer_gives_b(self, generator, truncation):
        options = {"truncation": truncation}
        a, b = (studies.samples(generator, seeds, **options)[0] for seeds in (SEEDS, [7, 8]))
        none = studies.mix(generator, SEEDS, [7, 8], [], **options)
        assert none.shape == (3, 2, 1, 16, 16)
        assert torch.equal(none, a[:, None].expand_as(none))
        every = studies.mix(generator, SEEDS, [7, 8], range(generator.num_ws), **options)
        assert torch.equal(every, b[None].expand_as(every))

    def test_given_layers_come_from_b(self, generator):
        z = drawing.latents([3, 7], generator.z_dim)
        a, b = generator.styles(z)
        expected = generator.synthesize(torch.cat([a[:2], b[2:4], a[4:]])[None], noise="const")
        torch.testing.assert_close(studies.mix(generator, [3], [7], [2, 3])[0, 0], expected[0])

    def test_coarse_middle_and_fine_are_all_layers(self):
        generator = build(resolution=128, channel_base=128)
        layers = [studies.style_layers(generator, name) for name in ("coarse", "middle", "fine")]
        assert layers == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
        assert torch.equal(studies.mix(generator, [3], [7], "fine"), studies.mix(generator, [3], [7], range(8, 12)))

    def test_unknown_layers(self, generator):
        with pytest.raises(studies.Unsupported, match="stylegan2 has layers 0 to 5, and 'fine' ones begin at 8"):
            studies.mix(generator, [3], [7], "fine")
        for layer in (6, -1):
            with pytest.raises(studies.Unsupported, match=f"has layers 0 to 5, not {layer}"):
                studies.mix(generator, [3], [7], [0, layer])
        with pytest.raises(ValueError, match="layers is 'rough', must be one of coarse, middle, fine"):
            studies.mix(generator, [3], [7], "rough")


class TestNoise:
    def test_noise_by_layer(self, generator, plain):
        table = studies.noise_by_layer(generator, SEEDS)
        assert table.shape == (3, 4, 1, 16, 16)
        every, none, coarse, fine = table.unbind(1)
        assert torch.equal(every, plain)
        z = drawing.latents(SEEDS, generator.z_dim)
        torch.testing.assert_close(none, generator(z, noise="none"))
        torch.testing.assert_close(coarse, generator(z, noise=["const"] * 3 + ["none"] * 2))
        torch.testing.assert_close(fine, generator(z, noise=["none"] * 3 + ["const"] * 2))
        assert not any(torch.allclose(a, b) for a, b in [(every, coarse), (every, fine), (none, coarse), (none, fine)])

    def test_where_fine_noise_begins(self, generator):
        assert studies.fine_noise_from(generator) == 16
        assert studies.fine_noise_from(build(resolution=128, channel_base=128)) == 64
        every, none, coarse, fine = studies.noise_by_layer(generator, SEEDS, fine_from=4).unbind(1)
        assert torch.equal(coarse, none) and torch.equal(fine, every)

    @pytest.mark.parametrize("number", range(5))
    def test_each_noise_setting_reaches_its_own_layer(self, number):
        generator = build()
        parts = generator.synthesis
        layers = [parts.first, parts.up[0], parts.same[0], parts.up[1], parts.same[1]]
        assert [layer.noise_const.shape[-1] for layer in layers] == generator.noise_resolutions
        for other, layer in enumerate(layers):
            if other != number:
                layer.noise_const.fill_(torch.nan)  # NaN in the image if the setting reached another layer
        z = drawing.latents([3], generator.z_dim)
        image = generator(z, noise=["const" if other == number else "none" for other in range(5)])
        assert image.isfinite().all()
        assert not torch.allclose(image, generator(z, noise="none"))

    def test_deviation_is_the_standard_deviation_of_draws(self, generator):
        deviation = studies.noise_deviation(generator, SEEDS, draws=5, noise_seed=9)
        assert deviation.shape == (3, 1, 1, 16, 16) and (deviation > 0).all()
        torch.manual_seed(9)
        ws = generator.styles(drawing.latents([4], generator.z_dim))
        drawn = torch.cat([generator.synthesize(ws, noise="random") for _ in range(5)])
        torch.testing.assert_close(deviation[2, 0], drawn.std(0))

    @pytest.mark.parametrize("noise", ["none", "const", ["const"] * 5])
    def test_deviation_without_random_noise_is_zero(self, generator, noise):
        assert studies.noise_deviation(generator, SEEDS, draws=3, noise=noise).eq(0).all()

    def test_deviation_restores_the_rng_state(self, generator):
        torch.manual_seed(5)
        expected = torch.randn(3)
        torch.manual_seed(5)
        studies.noise_deviation(generator, [1], draws=2)
        assert torch.equal(torch.randn(3), expected)

    def test_one_draw_is_refused(self, generator):
        with pytest.raises(ValueError, match="draws is 1, must be at least 2"):
            studies.noise_deviation(generator, SEEDS, draws=1)

    @pytest.mark.parametrize("noise", ["loud", ["none"] * 4, ["none"] * 4 + ["loud"]])
    def test_invalid_noise_settings(self, generator, noise):
        with pytest.raises(ValueError, match=r"noise is .*, must be 'random', 'const' or 'none', or 5 of these"):
            generator(torch.zeros(1, 8), noise=noise)


class TestTruncation:
    def test_psi_one_is_plain_and_psi_zero_is_the_mean(self, generator, plain):
        table = studies.truncation_sweep(generator, SEEDS)
        assert table.shape == (3, 9, 1, 16, 16)
        assert torch.equal(table[:, -1], plain)
        assert torch.equal(table[:, 4], table[:1, 4].expand(3, -1, -1, -1))
        mean = generator.mapping.w_avg.expand(1, generator.num_ws, -1)
        torch.testing.assert_close(table[:1, 4], generator.synthesize(mean, noise="const"))
        assert not torch.allclose(table[:, 0], table[:, -1])

    def test_negative_psi_is_the_opposite_side_of_the_mean(self, generator):
        mean = generator.mapping.w_avg
        opposite = 2 * mean - generator.styles(drawing.latents([3], generator.z_dim))
        image = studies.truncation_sweep(generator, [3], [-1.0])[0]
        torch.testing.assert_close(image, generator.synthesize(opposite, noise="const"))

    def test_no_psi(self, generator):
        with pytest.raises(ValueError, match="psis is empty"):
            studies.truncation_sweep(generator, SEEDS, [])


class TestGrowth:
    def test_each_level_is_enlarged_to_the_size_of_the_last(self):
        generator = Growing()
        table = studies.growth(generator, SEEDS)
        assert table.shape == (3, 3, 1, 16, 16)
        assert torch.equal(table[:, -1], studies.samples(generator, SEEDS)[0])
        for column, resolution in enumerate(studies.growth_levels(generator)):
            blocks = table[:, column].unflatten(-1, (resolution, -1)).unflatten(-3, (resolution, -1))
            small = blocks[:, :, :, 0, :, 0]  # one pixel of each square
            assert torch.equal(blocks, small[:, :, :, None, :, None].expand_as(blocks))
            generator.grow_to(resolution)
            assert torch.equal(small, studies.samples(generator, SEEDS)[0])
            generator.grow_to(16)

    def test_untrained_levels_are_left_out(self):
        generator = Growing()
        generator.grown_from = 8
        assert studies.growth_levels(generator) == [8, 16]
        assert studies.growth(generator, SEEDS).shape == (3, 2, 1, 16, 16)
        generator.grown_from = 16
        with pytest.raises(studies.Unsupported, match="did not grow: it was trained at 16x16 alone"):
            studies.growth(generator, SEEDS)

    def test_the_stage_of_growth_is_restored(self):
        generator = Growing()
        generator.grow_to(8, 0.25)
        table = studies.growth(generator, SEEDS)
        assert table.shape == (3, 2, 1, 8, 8)
        assert torch.equal(table[:, 1], studies.samples(generator, SEEDS)[0])
        assert (generator.stage_resolution, float(generator.alpha)) == (8, 0.25)

    def test_the_stage_of_growth_is_restored_after_an_error(self, monkeypatch):
        generator = Growing()
        generator.grow_to(16, 0.5)

        def fails(z, label=None):
            raise KeyboardInterrupt

        monkeypatch.setattr(generator, "forward", fails)
        with pytest.raises(KeyboardInterrupt):
            studies.growth(generator, SEEDS)
        assert (generator.stage_resolution, float(generator.alpha)) == (16, 0.5)


CALLS = {
    "samples": lambda g, seeds=SEEDS, **o: studies.samples(g, seeds, **o),
    "classes": lambda g, seeds=SEEDS: studies.classes(g, seeds, [0, 1]),
    "interpolate in z": lambda g, seeds=SEEDS, **o: studies.interpolate(g, seeds, space="z", **o),
    "interpolate": lambda g, seeds=SEEDS, **o: studies.interpolate(g, seeds, **o),
    "interpolate in w": lambda g, seeds=SEEDS, **o: studies.interpolate(g, seeds, space="w", **o),
    "interpolate along a spline": lambda g, seeds=SEEDS, **o: studies.interpolate(g, seeds, space="spline", **o),
    "mix": lambda g, seeds=SEEDS, **o: studies.mix(g, seeds, [7], [1], **o),
    "noise_by_layer": lambda g, seeds=SEEDS, **o: studies.noise_by_layer(g, seeds, **o),
    "noise_deviation": lambda g, seeds=SEEDS, **o: studies.noise_deviation(g, seeds, draws=2, **o),
    "truncation_sweep": lambda g, seeds=SEEDS, **o: studies.truncation_sweep(g, seeds, **o),
    "growth": lambda g, seeds=SEEDS, **o: studies.growth(g, seeds, **o),
}
OF_STYLEGAN2 = [name for name in CALLS if name != "growth"]


@pytest.mark.parametrize("name", OF_STYLEGAN2)
def test_every_study_is_deterministic(generator, name):
    torch.manual_seed(1)
    first = CALLS[name](generator)
    torch.manual_seed(2)
    assert torch.equal(CALLS[name](generator), first)


@pytest.mark.parametrize("name", [name for name in OF_STYLEGAN2 if name != "classes"])
def test_every_study_takes_a_class(name):
    generator = build(num_classes=5)
    assert not torch.equal(CALLS[name](generator, label=1), CALLS[name](generator, label=2))


@pytest.mark.parametrize("name", [name for name in OF_STYLEGAN2 if name != "interpolate along a spline"])
def test_a_row_depends_on_its_own_seed_only(generator, name):
    table = CALLS[name](generator, seeds=[3, 1])
    other = CALLS[name](generator, seeds=[3, 1, 4])
    columns = name in ("samples", "classes")
    assert torch.equal(other[:, :2] if columns else other[: len(table)], table)


@pytest.mark.parametrize("name", OF_STYLEGAN2)
def test_arguments_that_every_study_refuses(generator, name):
    with pytest.raises(ValueError, match="seeds is"):
        CALLS[name](generator, seeds=[])
    generator = build()
    generator.train()
    with pytest.raises(ValueError, match="generator is in training mode"):
        CALLS[name](generator)


def test_arguments_that_interpolation_refuses(generator):
    for interpolate in (studies.interpolate, studies.interpolation_frames):  # at the call, not at the first frame
        with pytest.raises(ValueError, match=r"seeds is of length 1, must have at least two"):
            interpolate(generator, [5])
        with pytest.raises(ValueError, match="steps is 1, must be at least 2"):
            interpolate(generator, SEEDS, steps=1)
        with pytest.raises(ValueError, match="space is 'x', must be one of z, slerp, w, spline"):
            interpolate(generator, SEEDS, space="x")


LACKS = {
    "interpolate in w": "dcgan has no styles: interpolation in w needs a style-based generator",
    "mix": "dcgan has no styles: style mixing needs a style-based generator",
    "noise_by_layer": "dcgan has no noise",
    "noise_deviation": "dcgan has no noise",
    "truncation_sweep": "dcgan has no truncation",
    "growth": "dcgan does not grow",
}


@pytest.mark.parametrize("name", LACKS)
def test_studies_that_a_generator_does_not_support(name):
    with pytest.raises(studies.Unsupported, match=LACKS[name]):
        CALLS[name](build("dcgan"))


def test_truncation_that_a_generator_does_not_support():
    with pytest.raises(studies.Unsupported, match=r"dcgan has no truncation: psi is 0\.5, must be 1"):
        studies.samples(build("dcgan"), SEEDS, truncation=0.5)


def test_images_are_on_the_cpu_without_a_graph():
    generator = build()
    generator.requires_grad_(True)
    for name in OF_STYLEGAN2:
        images = CALLS[name](generator)
        assert images.device.type == "cpu" and images.dtype == torch.float32 and not images.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(generator):
    on_gpu = build().to("cuda")
    before = torch.cuda.get_rng_state()
    for name in OF_STYLEGAN2:
        images = CALLS[name](on_gpu)
        assert images.device.type == "cpu" and torch.equal(CALLS[name](on_gpu), images)
        if name != "noise_deviation":  # its random numbers differ
            torch.testing.assert_close(images, CALLS[name](generator), atol=0.05, rtol=0.05)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(studies.interpolate(on_gpu, SEEDS, space="w")[:, 0], studies.samples(on_gpu, SEEDS)[0, :-1])
    for space in studies.CURVES:
        batches = list(studies.interpolation_batches(on_gpu, SEEDS, space=space))
        assert [len(images) for images in batches] == [1, 16] and all(images.is_cuda for images in batches)


def test_styles_and_synthesis_make_up_a_forward_pass(generator):
    z = drawing.latents(SEEDS, generator.z_dim)
    ws = generator.styles(z, truncation=0.5)
    assert ws.shape == (3, generator.num_ws, 8)
    assert torch.equal(generator.synthesize(ws, noise="const"), generator(z, truncation=0.5, noise="const"))


@pytest.mark.parametrize("arch", ["stylegan2", "stylegan3"])
def test_a_scene_that_does_not_move_gives_the_samples(arch):
    generator = build(arch)
    there, back = studies.move(generator, [0, 1], [studies.translation(0.5, 0), torch.eye(3)]).unbind(1)
    torch.testing.assert_close(back, studies.samples(generator, [0, 1])[0], rtol=1e-4, atol=1e-5)
    assert (there - back).abs().max() > 0.1 * back.std()
    torch.testing.assert_close(studies.samples(generator, [0, 1])[0], back, rtol=1e-4, atol=1e-5)  # it is as it was


def test_images_of_stylegan3_move_to_where_the_transform_says():
    """To the right and down by a quarter; turned counter-clockwise by a right angle."""
    generator = build("stylegan3", resolution=32, variant="r", synthesis_layers=6)
    quarter = studies.translation(0.25, 0.25)
    plain, moved, turned = studies.move(generator, [0], [torch.eye(3), quarter, studies.rotation(math.pi / 2)])[0]
    scale = plain.std()
    assert (moved[:, 8:, 8:] - plain[:, :-8, :-8]).abs().max() < 0.05 * scale
    assert (turned - plain.rot90(1, (1, 2))).abs().max() < 0.05 * scale


@pytest.mark.parametrize(
    "transform, message",
    [
        (torch.diag(torch.tensor([1.0, 0.0, 1.0])), "transforms: .* is singular, must have an inverse"),
        (torch.full((3, 3), math.nan), "transforms: .* is no affine map"),
        (torch.eye(3).roll(1, 0), "transforms: .* is no affine map"),
    ],
)
def test_a_transform_without_inverse_is_refused(transform, message):
    with pytest.raises(ValueError, match=message):
        studies.move(build("stylegan3"), [0], [transform])
