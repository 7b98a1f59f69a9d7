"""Pivotal tuning: images that w cannot tell are learned, and the rest of the network stays near what it was."""

import pytest
import torch

from fastgan import projection, studies, tuning
from fastgan.models import noise_maps
from fastgan.projection import project
from fastgan.runs.drawing import Unsupported
from fastgan.tuning import tune
from tests.test_projection import drawn, make


@pytest.fixture(scope="module")
def found():
    """A generator, images that it cannot draw, and the nearest that it can."""
    generator = make()
    images = drawn(generator).flip(3)
    return generator, images, project(generator, images, steps=10, candidates=8)


def change(before, after, seeds=range(8)):
    """Mean square of the change of images of random latents."""
    images = [studies.samples(network, seeds) for network in (before, after)]
    return float((images[0] - images[1]).square().mean())


def test_a_copy_learns_the_images_at_their_pivots(found):
    generator, images, pivots = found
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    steps = []
    tuned = tune(generator, pivots, images, steps=40, watch=lambda *given: steps.append(given))
    assert (tuned.psnr > pivots.psnr + 1.5).all()
    again = studies.samples(*projection.with_noise(tuned.generator, pivots))[0]
    torch.testing.assert_close(again, tuned.images)
    numbers, distances = zip(*steps, strict=True)
    assert list(numbers) == list(range(1, 41)) and (distances[-1] < distances[0]).all()
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the given generator has changed"
        if name.startswith("mapping."):
            assert torch.equal(tuned.generator.state_dict()[name], value)
    assert not any(value.requires_grad for value in tuned.generator.parameters()) and not tuned.generator.training
    assert all(map(torch.equal, noise_maps.own_maps(tuned.generator), noise_maps.own_maps(generator)))


def test_other_images_are_held_to_what_they_were(found, monkeypatch):
    generator, images, pivots = found
    changes = []
    for weight in (0.0, 10.0):
        monkeypatch.setattr(tuning, "LOCALITY", weight)
        changes.append(change(generator, tune(generator, pivots, images, steps=30).generator))
    assert changes[1] < 0.7 * changes[0]


def test_images_are_taken_in_turns(found):
    """More images than a batch has."""
    generator, images, pivots = found
    seen = []
    tuned = tune(generator, pivots, images, steps=2, batch=1, watch=lambda _, distances: seen.append(distances))
    assert [each.shape for each in seen] == [(1,), (1,)] and tuned.images.shape == images.shape


def test_wrong_arguments_are_named(found):
    generator, images, pivots = found
    with pytest.raises(ValueError, match="steps is 0"):
        tune(generator, pivots, images, steps=0)
    with pytest.raises(Unsupported, match="dcgan has no styles"):
        tune(make("dcgan"), pivots, images, steps=1)
