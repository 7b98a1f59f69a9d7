"""Projection: images of a generator are found again, and what is found can be studied."""

import pytest
import torch

from fastgan import editing, projection, studies
from fastgan.errors import UserError
from fastgan.models import ARCHITECTURES, ModelConfig, build, noise_maps
from fastgan.projection import project


def make(arch="stylegan2", num_classes=0):
    torch.manual_seed(0)
    sizes = {"resolution": 16, "z_dim": 8, "channel_base": 256, "channel_max": 16}
    generator, _ = build(ModelConfig(arch=arch, channels=1, num_classes=num_classes, tanh=True, **sizes))
    return generator.eval().requires_grad_(False)


def drawn(generator, count=2, label=None):
    """Images of latents that are not among those it starts from."""
    z = torch.randn(count, generator.z_dim, generator=torch.Generator().manual_seed(99))
    return studies.samples(generator, z, label=label)[0]


@pytest.mark.parametrize(
    "arch, space", [("stylegan2", "w"), ("stylegan2", "w+"), ("stylegan", "w"), ("stylegan3", "w"), ("dcgan", "z")]
)
def test_a_drawn_image_is_found_again(arch, space):
    generator = make(arch)
    images = drawn(generator)
    found = project(generator, images, space=space)
    assert found.psnr.min() > 30
    size = (2, 8) if space == "z" else (2, generator.num_ws, 8)
    assert found.latents.shape == size
    if space == "w":
        assert torch.equal(found.latents, found.latents[:, :1].expand_as(found.latents))
    again = studies.samples(*projection.with_noise(generator, found))[0]
    torch.testing.assert_close(again, found.images)
    squares = (found.images.clamp(-1, 1) - images.clamp(-1, 1)).square().mean((1, 2, 3))
    torch.testing.assert_close(found.psnr, 10 * torch.log10(4 / squares))


@pytest.mark.slow
def test_perceptual_distance_too_finds_a_drawn_image():
    from fastgan.metrics.perceptual import PerceptualDistance

    generator = make()
    assert project(generator, drawn(generator, 1), perceptual=PerceptualDistance(), steps=100).psnr.min() > 30


def test_more_steps_come_nearer_and_every_step_is_watched():
    generator, steps = make(), []
    images = drawn(generator)
    watch = lambda *given: steps.append(given)
    few = project(generator, images, steps=5, candidates=4)
    many = project(generator, images, steps=60, candidates=4, watch=watch)
    assert (many.psnr > few.psnr).all() and (many.distances < few.distances).all()
    numbers, shown, distances = zip(*steps, strict=True)
    assert list(numbers) == list(range(1, 61))
    assert shown[0].shape == images.shape and torch.stack(distances).min(0).values.ge(many.distances).all()
    again = project(generator, images, steps=60, candidates=4)
    assert torch.equal(again.latents, many.latents), "the same seed finds the same"


def test_a_class_to_start_from():
    """Networks without styles need it to draw; it is found with z."""
    generator = make("dcgan", num_classes=3)
    images = drawn(generator, label=2)
    found = project(generator, images, num_classes=3, label=2)
    assert found.labels.tolist() == [2, 2] and found.psnr.min() > 25
    assert project(make(num_classes=3), drawn(make(num_classes=3), label=1), steps=2).labels is None


@pytest.mark.parametrize("space", ["w", "w+"])
def test_truncation_keeps_w_near_their_mean(space):
    """At a share of the distance that random ones have; what lies within it is found as without."""
    generator = make()
    w = editing.sampled(generator)[0].float()
    mean, typical = w.mean(0), float((w - w.mean(0)).square().sum(1).mean().sqrt())
    far = (w[:50] - mean).norm(dim=1).argmax()
    image = generator.synthesize(w[far].expand(1, generator.num_ws, -1), noise="const")
    options = {"space": space, "steps": 30, "candidates": 16, "noise": False}
    free = project(generator, image, **options).latents
    distance = lambda ws: (ws - mean).norm(dim=-1).max() / typical
    assert distance(free) > 1.1
    for truncation in (0.3, 0.8):
        found = project(generator, image, truncation=truncation, **options)
        assert distance(found.latents) == pytest.approx(truncation, rel=1e-3)  # as far as it may
    assert torch.equal(project(generator, image, truncation=100.0, **options).latents, free)
    near = generator.synthesize((mean + 0.5 * (w[far] - mean)).expand(1, generator.num_ws, -1), noise="const")
    assert project(generator, near, truncation=1.0, **options | {"steps": 100}).psnr > 30


def test_steps_are_in_standard_deviations_of_ten_thousand_ws_of_the_class(monkeypatch):
    """The first noise on w shows it."""
    generator, given, draw = make(num_classes=3), [], projection.draw
    image = drawn(generator, 1, label=1)
    monkeypatch.setattr(projection, "draw", lambda *args: given.append(args[1]) or draw(*args))
    project(generator, image, steps=1, candidates=1, label=1, seed=5)
    start, tried = (ws[:, :1] for ws in given[:2])
    z = torch.randn(10_000, 8, generator=torch.Generator().manual_seed(5))
    w = generator.mapping(z, torch.ones(10_000, dtype=torch.int64))
    deviation = (w - w.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(start, w[None, :1])
    noise = projection.NOISE * deviation * torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(tried - start, noise, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_family_can_be_projected_to(arch):
    generator = make(arch, num_classes=2)
    found = project(generator, drawn(generator, label=1), num_classes=2, steps=2, candidates=4)
    labels = [None] * 2 if found.labels is None else found.labels.tolist()
    for index, (latent, label, image) in enumerate(zip(found.latents, labels, found.images, strict=True)):
        of_image = found._replace(latents=latent[None], noise=tuple(each[index : index + 1] for each in found.noise))
        again = studies.samples(*projection.with_noise(generator, of_image), label=label)[0, 0]
        torch.testing.assert_close(again, image)


def with_loud_noise(arch="stylegan2"):
    generator = make(arch)
    for layer in generator.noisy_layers:
        torch.nn.init.constant_(layer.epilogue.strength, 0.3)
    return generator


@pytest.mark.parametrize("arch", ["stylegan2", "stylegan"])
def test_noise_is_found_too(arch):
    """Of images that were drawn with noise of their own."""
    generator = with_loud_noise(arch)
    torch.manual_seed(5)
    images = studies.samples(generator, [99, 98], noise="random")[0]
    with_own = project(generator, images, noise=False, steps=40, candidates=16)
    found = project(generator, images, steps=40, candidates=16)
    assert (found.distances < 0.9 * with_own.distances).all() and (found.psnr > with_own.psnr).all()
    assert with_own.noise == () and [len(each) for each in found.noise] == [2] * len(generator.noisy_layers)
    for each, own in zip(found.noise, noise_maps.own_maps(generator), strict=True):
        assert each.shape[1:] == own.shape[1:]
        torch.testing.assert_close(each.mean((1, 2, 3)), own.mean().expand(2), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(each.std((1, 2, 3)), own.std().expand(2), rtol=1e-3, atol=1e-5)


def test_studies_take_noise_that_was_found():
    """It goes with the styles of its layer; directions change the styles alone."""
    generator = with_loud_noise()
    found = project(generator, drawn(generator, 2), steps=3, candidates=4)
    noisy, latents = projection.with_noise(generator, found)
    images = studies.samples(noisy, latents)[0]
    torch.testing.assert_close(images, found.images)
    assert not torch.allclose(images, studies.samples(generator, found.latents)[0], atol=1e-3)
    torch.testing.assert_close(studies.truncation_sweep(noisy, latents, [1.0])[:, 0], images)
    torch.testing.assert_close(studies.mix(noisy, latents[:1], latents[1:], range(noisy.num_ws))[0, 0], images[1])
    torch.testing.assert_close(studies.interpolate(noisy, latents, steps=2)[0], images)
    assert studies.noise_by_layer(noisy, latents)[:, 0].allclose(images, atol=1e-5)
    direction = editing.principal(generator, count=1, samples=50)
    row = studies.edits(noisy, latents, direction, [0.0, 2.0])[:, 0]
    torch.testing.assert_close(row[:, 0], images)
    with editing.edited(noisy, direction, {"p0": 2.0}):
        torch.testing.assert_close(studies.samples(noisy, latents)[0], row[:, 1])
    assert torch.equal(noise_maps.own_maps(generator)[0], noise_maps.own_maps(with_loud_noise())[0])


def test_noise_of_another_network_is_refused():
    found = project(make(), drawn(make()), steps=1, candidates=4)
    for other in (make("dcgan"), make("stylegan3"), make("stylegan")):
        with pytest.raises(ValueError, match="are of another network"):
            projection.with_noise(other, found)


def test_patterns_in_noise_are_seen_at_every_scale():
    torch.manual_seed(0)
    white = torch.randn(1, 1, 64, 64)
    assert noise_maps.pattern([white]) < 0.1
    for side in (1, 2, 4, 8):  # of squares of one colour
        squares = torch.randn(1, 1, 64 // side, 64 // side).repeat_interleave(side, 2).repeat_interleave(side, 3)
        assert (noise_maps.pattern([squares]) > 0.3) == (side > 1)
    # by hand: rows 1, -1 change at every step down and never to the right
    rows = torch.tensor([1.0, -1.0]).repeat(4)[None, None, :, None].expand(1, 1, 8, 8)
    assert noise_maps.pattern([rows]) == 2.0


def test_studies_take_what_was_found():
    """Mixing, truncation and interpolation of styles."""
    generator = make()
    ws = project(generator, drawn(generator, 3), steps=3).latents
    plain = studies.samples(generator, ws)[0]
    torch.testing.assert_close(studies.truncation_sweep(generator, ws, [1.0])[:, 0], plain)
    mixed = studies.mix(generator, ws[:1], ws[1:], [])
    torch.testing.assert_close(mixed[0, 0], plain[0])
    row = studies.interpolate(generator, ws[:2], steps=3)
    torch.testing.assert_close(row[0, 2], plain[1])
    torch.testing.assert_close(row[0, 1], studies.samples(generator, ws[:2].mean(0, keepdim=True))[0, 0])
    with pytest.raises(ValueError, match=r"must be latents \[N, 8\] or styles \[N, \d+, 8\]"):
        studies.samples(generator, ws[:, 1:])


def test_wrong_arguments_are_named():
    generator = make()
    images = drawn(generator)
    with pytest.raises(ValueError, match=r"images has shape \[2, 1, 8, 16\], must be \[N, 1, 16, 16\]"):
        project(generator, images[:, :, :8])
    with pytest.raises(ValueError, match="steps is 0"):
        project(generator, images, steps=0)
    with pytest.raises(ValueError, match=r"truncation is 0\.0, must be above 0"):
        project(generator, images, truncation=0.0)
    with pytest.raises(studies.Unsupported, match="dcgan has no truncation"):
        project(make("dcgan"), images, truncation=0.7)
    with pytest.raises(studies.Unsupported, match="stylegan2 has no z; give w or w\\+"):
        project(generator, images, space="z")
    with pytest.raises(studies.Unsupported, match="dcgan has no w\\+; give z"):
        project(make("dcgan"), images, space="w+")


def test_files_of_latents(tmp_path):
    generator, path = make(), tmp_path / "p.safetensors"
    with pytest.raises(UserError, match="does not exist; `fastgan project` writes it"):
        projection.load(path)
    found = project(generator, drawn(generator), steps=1)
    projection.save(path, found, ["a.png", "b.png"])
    loaded = projection.load(path)
    assert torch.equal(loaded.latents, found.latents) and len(loaded.noise) == len(found.noise) == 5
    assert all(map(torch.equal, loaded.noise, found.noise))
    whole = path.read_bytes()
    renamed = [whole.replace(b"latents", b"latentz"), whole.replace(b"noise.1", b"noise.7")]
    projection.save(path, found._replace(noise=tuple(each[:1] for each in found.noise)), ["a.png"])
    for damaged in (b"", b"x" * 100, whole[:-4], *renamed, path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="has no latents"):
            projection.load(path)
