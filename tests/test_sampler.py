"""`fastgan.load`: a seed gives the same image one by one, in batches, with prepared weights, captured or compiled."""

import copy
import gc
import os
import shutil
import subprocess
import sys
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import fastgan
from fastgan import models
from fastgan import sampler as module
from fastgan.cli.generate import main as generate
from fastgan.errors import UserError
from fastgan.ops import winograd
from fastgan.runs import checkpoint, drawing, graphs
from fastgan.runs.graphs import WARM_UPS
from fastgan.runs.precision import Precision
from fastgan.sampler import Sampler
from fastgan.studies import Unsupported
from tests.support.tiny_run import untrained

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("cat", "dog", "owl")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run") / "run", "stylegan2", CLASSES, tanh=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Without classes, styles or noise."""
    return untrained(tmp_path_factory.mktemp("run") / "run", "mlp")


@pytest.fixture(scope="module")
def sampler(run):
    """Draws images one by one."""
    return fastgan.load(run, "cpu", batch=1)


class Recorder:
    """Stands in for CUDA graphs on the CPU: a replay executes the work again."""

    runs_work = False

    def __init__(self):
        self.captures = 0

    def warm_up(self, work):
        return work()

    def capture(self, work):
        self.captures += 1
        return graphs.Captured(work, None)

    def clear(self):
        pass


def assert_close(images, others, tolerance=1e-5):
    assert images.shape == others.shape and images.dtype == others.dtype
    assert (images.float() - others.float()).abs().max() <= tolerance * others.float().abs().max()


@pytest.mark.slow
def test_importing_fastgan_does_not_import_torch():
    code = "import sys, fastgan; assert not {'torch', 'numpy', 'fastgan.sampler'} & set(sys.modules); fastgan.load"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=True)
    with pytest.raises(AttributeError, match="'fastgan' has no attribute 'laod'"):
        fastgan.laod  # noqa: B018
    assert {"load", "patch", "patch_ops"} <= set(dir(fastgan))


def test_images_equal_those_of_the_command_line(run, sampler, tmp_path):
    assert generate(["--checkpoint", str(run), "--seeds", "3-5", "--trunc", "0.7", "--out", str(tmp_path)]) == 0
    images = sampler.sample(3, seed=3, classes="dog", truncation=0.7)
    for seed, image in zip((3, 4, 5), images, strict=True):
        written = np.asarray(Image.open(tmp_path / f"class01-dog-seed{seed:04d}.png"))
        assert (image.movedim(0, 2).numpy() == written).all()


def test_attributes_and_repr(run, sampler, plain):
    assert sampler.class_names == list(CLASSES) and sampler.size == (8, 8)
    assert repr(sampler) == "Sampler(stylegan2, 3x8x8, 3 classes, cpu, float32 (without --amp))"
    assert fastgan.load(plain, "cpu").class_names == []
    assert not sampler.generator.training and not any(p.requires_grad for p in sampler.generator.parameters())


def test_uint8_covers_the_range_of_images(sampler):
    images = sampler.sample(4)
    exact = sampler.sample(4, dtype=torch.float32)
    assert images.shape == (4, 3, 8, 8) and images.dtype == torch.uint8 and images.is_contiguous()
    assert exact.abs().max() > 1, "the range is left, so that clamping shows"
    assert ((exact.clamp(-1, 1) + 1) * 127.5 - images).abs().max() <= 0.5 + 1e-4


def test_an_image_depends_on_its_seed_alone(run, sampler):
    images = sampler.sample(7, dtype=torch.float32)
    assert torch.equal(sampler.sample(seeds=[5, 2], dtype=torch.float32), images[[5, 2]])
    assert torch.equal(sampler.sample(2, seed=4, dtype=torch.float32), images[4:6])
    assert not torch.equal(images[0], images[3])  # of the same class
    assert_close(fastgan.load(run, "cpu", batch=3).sample(7, dtype=torch.float32), images)


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_images_equal_those_of_a_plain_loop(arch, tmp_path):
    """Of every family, in any batch size: up to rounding."""
    classes = CLASSES if arch == "cgan" else ()
    path = untrained(tmp_path / "run", arch, classes)
    sampler, generator = fastgan.load(path, "cpu"), checkpoint.load_generator(path, CPU)[0]
    assert sampler.batch == 64
    options = {"noise": "const"} if "noise" in generator.supports else {}
    z = drawing.latents(range(5), sampler.model.z_dim)
    labels = sampler.labels(range(5))
    with torch.no_grad():
        loop = [generator(z[i : i + 1], None if labels is None else labels[i : i + 1], **options) for i in range(5)]
    sampler.sample(1)
    for batch in (64, 2, 1):  # by now weights are prepared
        sampler.batch = batch
        assert_close(sampler.sample(5, dtype=torch.float32), torch.cat(loop))


@pytest.fixture(scope="module")
def wide():
    """A network of 32x32 images and 32 feature maps, which convolutions of fixed weights compute differently."""
    model = models.ModelConfig(resolution=32, z_dim=8, channel_base=1024, channel_max=32, channels=3)
    torch.manual_seed(0)
    generator = models.build(model)[0].eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return generator, Sampler(copy.deepcopy(generator), model, [], Precision(torch.float32, CPU, ""))


def test_prepared_weights_of_wide_layers_draw_the_same_images(wide, monkeypatch):
    generator, sampler = wide
    launched, run = [], winograd.kernel.run
    monkeypatch.setattr(winograd.kernel, "run", lambda call: launched.append(call) or run(call))
    z = drawing.latents(range(3), 8)
    expected = torch.cat([generator(own, noise="const") for own in z.split(1)])
    assert not launched
    images = sampler.sample(3, dtype=torch.float32)
    assert launched or winograd.kernel.why_not(CPU)
    assert_close(images, expected)
    assert (sampler.sample(3).int() - drawing.quantized(expected).int()).abs().max() <= 1


@pytest.mark.parametrize("amp", [False, True])
def test_changed_weights_are_noticed(wide, amp):
    generator, sampler = copy.deepcopy(wide[0]), copy.deepcopy(wide[0])
    chosen = Precision(torch.bfloat16 if amp else torch.float32, CPU, "")
    sampler = Sampler(sampler, wide[1].model, [], chosen)
    for _ in range(2):
        sampler.sample(1)
        for network in (generator, sampler.generator):
            for parameter in network.parameters():
                parameter.mul_(1.1)
    with chosen.autocast():
        expected = generator(drawing.latents([0], 8), noise="const")
    assert_close(sampler.sample(1, dtype=torch.float32), expected, 0.02 if amp else 1e-5)


def test_kept_results_are_freed_with_the_network():
    model = models.ModelConfig(resolution=8, z_dim=8, channel_base=64, channel_max=8)
    generator = models.build(model)[0].eval().requires_grad_(False)
    sampler = Sampler(generator, model, [], Precision(torch.float32, CPU, ""))
    sampler.sample(1)
    kept = weakref.ref(drawing._trained[generator].kept)
    assert kept()._entries
    del sampler, generator
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(
    ("resolution", "base", "batch"), [(8, 64, 64), (32, 512, 64), (64, 2048, 64), (256, 16384, 2), (1024, 32768, 1)]
)
def test_batches_of_large_images_are_small(resolution, base, batch):
    assert drawing.batch_size(models.ModelConfig(resolution=resolution, channel_base=base, channel_max=512)) == batch


def test_classes_by_name_by_number_or_by_the_seed(sampler):
    images = sampler.sample(5)
    assert torch.equal(sampler.sample(5, classes=["cat", 1, "owl", 0, np.int64(1)]), images)
    assert torch.equal(sampler.sample(5, classes="owl")[2], images[2])
    assert not torch.equal(sampler.sample(5, classes=2)[0], images[0])


def test_truncation_and_noise_are_passed_to_the_generator(sampler):
    z = torch.randn(8, generator=torch.Generator().manual_seed(3))[None]
    for options in ({"truncation": 0.5}, {"noise": "none"}, {"noise": "const"}):
        expected = sampler.generator(z, torch.zeros(1, dtype=torch.int64), **{"noise": "const", **options})
        assert torch.equal(sampler.sample(seeds=[3], dtype=torch.float32, **options), expected)
    one, other = (sampler.sample(seeds=[3], noise="random") for _ in range(2))
    assert not torch.equal(one, other)


def test_a_network_that_still_grows_draws_at_its_stage(tmp_path):
    sampler = fastgan.load(untrained(tmp_path / "run", "pggan", stage=(4, 1.0)), "cpu")
    assert sampler.size == (4, 4)
    assert sampler.sample(2).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("recorder", [None, Recorder], ids=["plain", "captured"])
def test_rectangular_images(recorder):
    model = models.ModelConfig(resolution=8, base_size=(4, 6), z_dim=8, channel_base=64, channel_max=8)
    generator = models.build(model)[0].eval()
    sampler = Sampler(generator, model, [], Precision(torch.float32, CPU, ""), recorder=recorder and recorder())
    assert sampler.sample(2).shape == (2, 1, 8, 12) and "1x8x12" in repr(sampler)


ERRORS = {
    "neither n nor seeds": ({}, "give either n, the number of images, or seeds"),
    "both": ({"n": 1, "seeds": [1]}, "give either n, the number of images, or seeds"),
    "no images": ({"n": 0}, "at least one image"),
    "negative seed": ({"seeds": [3, -1]}, "seed -1 is out of range"),
    "unknown class name": ({"n": 1, "classes": "cow"}, "there is no class 'cow'; there are cat, dog, owl"),
    "unknown class number": ({"n": 1, "classes": 3}, "no class number 3; there are 0 to 2"),
    "too few classes": ({"n": 3, "classes": ["cat", "dog"]}, "classes has 2 entries, must have one for each of 3"),
    "dtype": ({"n": 1, "dtype": torch.int8}, "dtype is torch.int8, must be torch.uint8 or torch.float32"),
    "noise": ({"n": 1, "noise": "loud"}, "noise is 'loud', must be 'const', 'none' or 'random'"),
    "psi": ({"n": 1, "truncation": float("nan")}, "truncation is nan, must be finite"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_messages(sampler, case):
    options, says = ERRORS[case]
    with pytest.raises(ValueError, match=says):
        sampler.sample(**options)


def test_truncation_noise_or_classes_that_a_network_lacks(plain):
    sampler = fastgan.load(plain, "cpu")
    for options, says in (
        ({"truncation": 0.5}, r"mlp has no truncation: psi is 0\.5, must be 1"),
        ({"noise": "none"}, "mlp has no noise: it is 'none', must be 'const'"),
    ):
        with pytest.raises(Unsupported, match=says):
            sampler.sample(1, **options)
    with pytest.raises(ValueError, match="classes is 'cat', but this network was trained without classes"):
        sampler.sample(1, classes="cat")


def test_errors_of_load(run, tmp_path):
    for path, options, says in (
        (tmp_path, {}, "holds no checkpoint.safetensors"),
        (tmp_path / "run", {}, "there is no such checkpoint"),
        (run, {"device": "toaster"}, "no such device"),
        (run, {"batch": 0}, "batch is 0, must be at least 1"),
    ):
        with pytest.raises(UserError, match=says):
            fastgan.load(path, **options)


def test_bf16_activations_give_nearly_the_same_images(sampler):
    half = Sampler(sampler.generator, sampler.model, CLASSES, Precision(torch.bfloat16, CPU, "a test"))
    images, exact = half.sample(6, dtype=torch.float32), sampler.sample(6, dtype=torch.float32)
    assert images.dtype == torch.float32 and not torch.equal(images, exact)
    assert (images - exact).norm() < 0.05 * exact.norm()


# Captured and compiled ----------------------------------------------------------------------------------------------


def test_captures_are_few_and_draw_the_same_images(sampler):
    recorder = Recorder()
    precision = Precision(torch.float32, CPU, "")
    captured = Sampler(sampler.generator, sampler.model, CLASSES, precision, batch=4, recorder=recorder)
    for round in range(WARM_UPS + 2):
        for n in (1, 3, 4, 6, 7):  # batches of 1, 4, 4, 4 and 2, 4 and 4
            options = {"seed": round, "truncation": 0.5 + round / 10, "dtype": torch.float32}
            assert_close(captured.sample(n, **options), sampler.sample(n, **options))
    assert recorder.captures == 3  # for 1, 2 and 4 images; truncation does not matter
    images = captured.sample(4)
    copy = images.clone()
    captured.sample(4, seed=9)
    assert torch.equal(images, copy), "images must be the caller's own, not the graph's output buffer"


@pytest.mark.slow
def test_the_network_compiles_as_one_graph(monkeypatch, sampler, plain):
    """Batch sizes and psi change."""
    monkeypatch.setattr(module, "compiler", lambda *_: partial(torch.compile, dynamic=False, backend="eager"))
    torch.compiler.reset()
    precision = Precision(torch.float32, CPU, "")
    compiled = Sampler(sampler.generator, sampler.model, CLASSES, precision, batch=2, compile=True)
    for psi in (0.7, 0.6):
        options = {"truncation": psi, "dtype": torch.float32}
        assert_close(compiled.sample(2, **options), sampler.sample(2, **options))
    small = fastgan.load(plain, "cpu")
    many = Sampler(small.generator, small.model, [], precision, batch=256, compile=True)
    for size in (1, 2, 3, 5, 9, 17, 33, 65, 129):  # more than the compiler's own limit
        assert_close(many.sample(size, dtype=torch.float32), small.sample(size, dtype=torch.float32))
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="inductor needs a C++ compiler on a CPU")
def test_compiled_images_equal_eager_images(plain):
    compiled, eager = fastgan.load(plain, "cpu", compile=True, batch=2), fastgan.load(plain, "cpu")
    assert_close(compiled.sample(3, dtype=torch.float32), eager.sample(3, dtype=torch.float32))


def test_error_if_the_compiler_does_not_work(monkeypatch, plain):
    def broken(*args, **options):
        raise RuntimeError("no working C++ compiler\nlong trace")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"compile=True: .* does not work here \(no working C\+\+ compiler\)"):
        fastgan.load(plain, "cpu", compile=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
class TestOnGpu:
    @pytest.mark.parametrize("compile", [False, True])
    @pytest.mark.parametrize("amp", [False, True])
    def test_captured_images_equal_eager_images(self, run, sampler, amp, compile):
        captured = fastgan.load(run, "cuda", amp=amp, compile=compile, batch=4)
        for round in range(WARM_UPS + 2):
            options = {"seed": round, "truncation": 0.5 + round / 10, "dtype": torch.float32}
            images, expected = captured.sample(6, **options).cpu(), sampler.sample(6, **options)
            assert (images - expected).norm() < (0.05 if amp else 0.01) * expected.norm()
        assert captured._graphs.failure is None
        assert len(captured._graphs._captured) == 2

    def test_each_replay_draws_new_random_noise(self, run):
        captured = fastgan.load(run, "cuda", batch=4)
        for _ in range(WARM_UPS + 1):
            captured.sample(4, noise="random")
        assert captured._graphs._captured
        one, other = (captured.sample(4, noise="random", dtype=torch.float32) for _ in range(2))
        assert not torch.equal(one, other)

    def test_drawing_does_not_synchronize(self, run):
        captured = fastgan.load(run, "cuda", batch=4)
        z, label = torch.randn(4, 8, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
        psi, mode = torch.ones((), device="cuda"), module._Mode("const", torch.uint8)
        draw = torch.no_grad()(lambda: captured._draw_batch(mode, z, label, psi))
        for _ in range(WARM_UPS + 1):
            draw()
        torch.cuda.set_sync_debug_mode("error")
        try:
            draw()
        finally:
            torch.cuda.set_sync_debug_mode("default")
