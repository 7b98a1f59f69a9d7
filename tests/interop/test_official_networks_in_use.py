"""Networks in the official layout after their training: projected to, tuned, edited, measured and animated."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import editing, projection, studies
from fastgan.cli.directions import main as directions
from fastgan.cli.evaluate import main as evaluate
from fastgan.cli.generate import main as generate
from fastgan.cli.project import main as project
from fastgan.interop import load_official
from fastgan.metrics import path_length
from fastgan.metrics.perceptual import PerceptualDistance
from tests.support import official, official_stylegan3

pytestmark = pytest.mark.slow

MODULES = {
    "stylegan2": (official, {"channel_base": 64, "channel_max": 8}),
    "stylegan3": (official_stylegan3, {"num_layers": 3, "num_critical": 1, "margin_size": 4}),
}
CLASS = 1


@pytest.fixture(scope="module", params=MODULES)
def file(request, tmp_path_factory):
    """A file with random weights, which draws images that are not all black and white."""
    module, sizes = MODULES[request.param]
    content = module.snapshot(module.Sizes(img_resolution=8, z_dim=6, c_dim=2, **sizes))
    for block in content["G_ema"].modules["synthesis"].modules.values():
        if "torgb" in block.modules:
            block.modules["torgb"].parameters = {
                name: 0.1 * tensor for name, tensor in block.modules["torgb"].parameters.items()
            }
    return official.write(tmp_path_factory.mktemp(request.param) / "network.pkl", content)


@pytest.fixture(scope="module")
def drawn(file):
    """A file with an image of the network, and what `fastgan project --tune` leaves of it beside."""
    folder = file.parent / "drawn"
    argv = ["--checkpoint", str(file), "--class", str(CLASS), "--seeds", "77"]
    assert generate([*argv, "--seed-format", "numpy", "--out", str(folder)]) == 0
    (image,) = folder.iterdir()
    argv = [str(image), "--checkpoint", str(file), "--class", str(CLASS), "--distance", "pixels", "--steps", "80"]
    assert project([*argv, "--tune", "5", "--out", str(folder / "found.png")]) == 0
    return image


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def psnr(image, other):
    return 10 * math.log10(255**2 / max(np.square(image - other).mean(), 1e-9))


def test_an_image_is_found_again_and_the_tuned_network_is_a_file_in_that_layout(file, drawn, tmp_path):
    found = drawn.parent / "found.safetensors"
    for network in (file, drawn.parent / "found-tuned.pkl"):
        argv = ["--checkpoint", str(network), "--projected", str(found), "--out", str(tmp_path / network.stem)]
        assert generate(argv) == 0
        (again,) = (tmp_path / network.stem).iterdir()
        assert psnr(pixels(again), pixels(drawn)) > 30
        ema = load_official(network).ema
        (expected,) = studies.to_uint8(studies.samples(*projection.with_noise(ema, projection.load(found)))[0])
        assert np.array_equal(pixels(again), expected)


def test_what_was_found_is_edited_along_directions(file, drawn, tmp_path):
    argv = ["--checkpoint", str(file), "--class", str(CLASS), "--samples", "1", "--count", "2", "--steps", "3"]
    assert directions([*argv, "--out", str(tmp_path / "sheet.png")]) == 0
    axes, found = tmp_path / "sheet.safetensors", drawn.parent / "found.safetensors"
    argv = ["--checkpoint", str(file), "--projected", str(found), "--edit", "f1=3", "--directions", str(axes)]
    assert generate([*argv, "--out", str(tmp_path / "edited")]) == 0
    (image,) = (tmp_path / "edited").iterdir()
    noisy, latents = projection.with_noise(load_official(file).ema, projection.load(found))
    with editing.edited(noisy, editing.load(axes), {"f1": 3.0}):
        (expected,) = studies.to_uint8(studies.samples(noisy, latents)[0])
    assert np.array_equal(pixels(image), expected) and psnr(expected.astype(int), pixels(drawn)) < 40


def test_its_paths_are_measured_without_real_images(file, tmp_path):
    argv = ["--checkpoint", str(file), "--metrics", "ppl-w,ppl-z-end", "--samples", "4"]
    assert evaluate([*argv, "--json", str(tmp_path / "metrics.json")]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["samples"]
    ema, distance = load_official(file).ema, PerceptualDistance()
    ends, places = path_length.draw_paths(4, 6, seed=0)
    for name, metric in (("ppl_w", "ppl-w"), ("ppl_z_end", "ppl-z-end")):
        lengths = path_length.path_lengths(ema, ends, places, torch.arange(4) % 2, metric, distance)
        assert found[name] == pytest.approx(path_length.summary(lengths), rel=1e-3) and found[name] > 0


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_it_is_animated(file, tmp_path, ending):
    """Through three seeds and back to the first."""
    out, seeds = tmp_path / f"walk.{ending}", [5, 6, 7]
    argv = ["interpolate", "--checkpoint", str(file), "--class", str(CLASS), "--seeds", "5-7", "--loop", "--steps", "3"]
    assert generate([*argv, "--seed-format", "numpy", "--out", str(out)]) == 0
    if ending == "gif":
        animation, frames = Image.open(out), []
        for number in range(animation.n_frames):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")))
    else:
        import av

        with av.open(str(out)) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 6
    z = torch.from_numpy(np.stack([np.random.RandomState(seed).randn(6) for seed in seeds])).float()
    ema = load_official(file).ema
    expected = studies.to_uint8(studies.samples(ema, z, label=CLASS)[0]).astype(int)
    side = len(frames[0]) // 8
    for frame, image in zip(frames[::2], expected, strict=True):
        shown = frame[side // 2 :: side, side // 2 :: side].astype(int)
        assert np.abs(shown - image).mean() < 12, "256 colours, or compressed"
        assert np.abs(shown - expected[(expected != image).any((1, 2, 3))]).mean() > 12
