"""Directions in w: what they are on networks where it is known, and what they do to images."""

import pytest
import torch

from fastgan import editing, studies
from fastgan.errors import UserError
from fastgan.models import ModelConfig, build

STYLED = ("stylegan", "stylegan2", "stylegan3")


def make(arch="stylegan2", num_classes=0, **options):
    torch.manual_seed(0)
    sizes = {"resolution": 16, "z_dim": 8, "channel_base": 128, "channel_max": 8, "mapping_layers": 2}
    generator, _ = build(ModelConfig(arch=arch, channels=1, num_classes=num_classes, **sizes, **options))
    return generator.eval().requires_grad_(False)


@pytest.mark.parametrize("arch", STYLED)
def test_factorized_directions_change_the_styles_most(arch):
    """Beside random directions, by the norm of the change of all layers' styles."""
    generator = make(arch)
    maps = [weight for _, weight in editing._style_maps(generator)]
    size = lambda vector: sum((weight @ vector.double()).square().sum() for weight in maps)
    first, *others = editing.factorized(generator, count=3, samples=100)
    assert first.vector.norm() == pytest.approx(1)
    assert all(size(first.vector) > size(each.vector) for each in others)
    for vector in torch.nn.functional.normalize(torch.randn(20, len(first.vector)), dim=1):
        assert size(first.vector) > size(vector)
    total = sum(weight.square().sum() for weight in maps)
    assert first.share == pytest.approx(float(size(first.vector) / total), rel=1e-5)


def test_every_layer_s_style_map_is_found_where_it_reads():
    """Changing the w of a layer changes the styles of this layer's maps, as the maps say."""
    generator = make()
    layers = [layer for layer, _ in editing._style_maps(generator)]
    # 4x4: one convolution and ToRGB; 8x8 and 16x16: two and ToRGB. ToRGB shares its w with the next convolution.
    assert sorted(layers) == [0, 1, 1, 2, 3, 3, 4, 5]


def test_principal_components_of_a_known_distribution():
    """The mapping network made linear: w = diag(1, 2, 3, ...) z."""
    generator = make()

    class Scaled(torch.nn.Module):
        embed = None
        w_avg = torch.zeros(8)

        def forward(self, z, label=None):
            return z * torch.arange(1.0, 9.0)

    generator.mapping = Scaled()
    found = editing.principal(generator, count=2, samples=20_000)
    for each, axis in zip(found, (7, 6), strict=True):
        assert each.vector[axis] > 0.99
        assert each.step == pytest.approx(axis + 1, rel=0.03)
        assert each.share == pytest.approx((axis + 1) ** 2 / 204, rel=0.05)
    assert [each.name for each in found] == ["p0", "p1"]


def test_directions_of_classes_lead_from_the_mean_of_all_to_each():
    generator = make(num_classes=3)
    found = editing.of_classes(generator, ["cat", "a dog, or two", "x"], samples=300)
    assert [each.name for each in found] == ["class-cat", "class-1", "class-x"]
    w, labels = editing.sampled(generator, 300)
    means = torch.stack([w[labels == label].mean(0) for label in range(3)])
    for each, mean in zip(found, means, strict=True):
        torch.testing.assert_close(each.step * each.vector.double(), mean - means.mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(studies.Unsupported, match="without classes"):
        editing.of_classes(make(), [])


@pytest.mark.parametrize("arch", STYLED)
def test_an_edit_moves_the_images_of_every_study(arch):
    generator = make(arch)
    found = editing.principal(generator, count=2, samples=100, layers=[1, 2])
    plain = studies.samples(generator, [0, 1])
    sheet = studies.edits(generator, [0, 1], found, [-1.0, 0.0, 2.0])
    assert torch.equal(sheet[:, 0, 1], plain[0]) and torch.equal(sheet[:, 1, 1], plain[0])
    with editing.edited(generator, found, {"p1": 2.0}):
        torch.testing.assert_close(studies.samples(generator, [0, 1])[0], sheet[:, 1, 2])
    assert not torch.allclose(sheet[:, 1, 2], plain[0]) and not torch.allclose(sheet[:, 0, 2], plain[0])
    assert torch.equal(studies.samples(generator, [0, 1]), plain), "an edit ends with its block"


def test_only_the_chosen_layers_are_edited():
    generator = make()
    (one,) = editing.factorized(generator, count=1, layers=[2, 4], samples=100)
    offset = editing.style_offset(generator, [one], {"f0": 3.0})
    assert offset.abs().sum(1).nonzero().flatten().tolist() == [2, 4]
    torch.testing.assert_close(offset[2], 3 * one.step * one.vector)


def test_a_file_has_all_of_a_direction(tmp_path):
    found = editing.principal(make(), count=3, samples=50, layers=[0, 3])
    editing.save(tmp_path / "d.safetensors", found)
    for saved, each in zip(editing.load(tmp_path / "d.safetensors"), found, strict=True):
        assert torch.equal(saved.vector, each.vector) and saved[0] == each[0] and saved[2:] == each[2:]


def test_what_is_no_file_of_directions_is_named(tmp_path):
    path = tmp_path / "d.safetensors"
    with pytest.raises(UserError, match="does not exist; `fastgan directions` writes it"):
        editing.load(path)
    editing.save(path, editing.principal(make(), count=1, samples=50))
    whole = path.read_bytes()
    for damaged in (
        b"",
        b"nonsense",
        whole[:40],
        whole[:-4],
        whole.replace(b"p0", b'"0'),
        whole.replace(b"step", b"stop"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="has no directions"):
            editing.load(path)


def test_directions_of_another_network_and_unknown_names_are_refused():
    found = editing.principal(make(), count=1, samples=50)
    larger = make("stylegan3")
    with pytest.raises(ValueError, match="no direction 'p7'; there are p0"), editing.edited(larger, found, {"p7": 1.0}):
        pass
    far = [each._replace(layers=(99,)) for each in found]
    with pytest.raises(ValueError, match="of another network"), editing.edited(larger, far, {"p0": 1.0}):
        pass
    with pytest.raises(studies.Unsupported, match="dcgan has no styles"):
        editing.factorized(build(ModelConfig(arch="dcgan", resolution=16, channels=1))[0].eval())
    with pytest.raises(studies.Unsupported, match="has layers 0 to 5, not"):
        editing.factorized(make(), layers=[6])
