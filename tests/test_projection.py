"""Projection: images of a generator are found again, and what is found can be studied."""

import pytest
import torch

from fastgan import projection, studies
from fastgan.errors import UserError
from fastgan.models import ARCHITECTURES, ModelConfig, build
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
    again = studies.samples(generator, found.latents)[0]
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


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_family_can_be_projected_to(arch):
    generator = make(arch, num_classes=2)
    found = project(generator, drawn(generator, label=1), num_classes=2, steps=2, candidates=4)
    labels = [None] * 2 if found.labels is None else found.labels.tolist()
    for latent, label, image in zip(found.latents, labels, found.images, strict=True):
        torch.testing.assert_close(studies.samples(generator, latent[None], label=label)[0, 0], image)


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
    assert torch.equal(projection.load(path), found.latents)
    whole = path.read_bytes()
    for damaged in (b"", b"x" * 100, whole[:-4], whole.replace(b"latents", b"latentz")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="has no latents"):
            projection.load(path)
