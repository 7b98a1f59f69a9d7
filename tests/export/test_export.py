"""`fastgan export`: files that draw the same images without fastgan, and one line for every error."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import fastgan
from fastgan import editing, models
from fastgan.cli.export import TOLERANCE, main
from fastgan.export import formats
from fastgan.export.formats import metadata, open_onnx, to_onnx, to_torch
from fastgan.export.tracing import Network, inputs, largest_difference, trace
from fastgan.runs import drawing
from tests.support import official, official_stylegan3
from tests.support.commands import error_of
from tests.support.tiny_run import untrained

pytestmark = pytest.mark.usefixtures("one_thread")
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")), reason='needs the extra "export"'
)

CLASSES = ("cat", "dog", "owl")
ALL = dict.fromkeys(models.ARCHITECTURES, ()) | {"dcgan": CLASSES, "cgan": CLASSES, "stylegan": CLASSES}
STAGES = {"pggan": (8, 0.3), "stylegan": (4, 1.0)}  # while a resolution fades in, and at the first resolution


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function from an architecture to a run of it."""
    made = {}

    def run(arch):
        if arch not in made:
            made[arch] = untrained(tmp_path_factory.mktemp(arch) / "run", arch, ALL[arch], STAGES.get(arch))
        return made[arch]

    return run


@pytest.fixture(scope="module")
def traced(runs):
    """A function from an architecture to its sampler and traced program, cached because tracing takes long."""
    made = {}

    def of(arch):
        if arch not in made:
            sampler = fastgan.load(runs(arch), "cpu")
            made[arch] = sampler, trace(sampler)
        return made[arch]

    return of


def with_zeros(given):
    """The inputs with one latent set to zero, so that a norm divides by its epsilon alone."""
    given["z"][0] = 0
    return given


# PyTorch's files -----------------------------------------------------------------------------------------------------

ALONE = """
import io, json, sys, torch
folder, *names = sys.argv[1:]
for name in names:
    extra = {"fastgan.json": ""}
    network = torch.export.load(f"{folder}/{name}.pt2", extra_files=extra).module()
    assert json.loads(extra["fastgan.json"])["arch"] == name
    for given, expected in torch.load(f"{folder}/{name}.pt"):
        z = given.pop("z")
        image = network(z, **given)
        assert image.shape == expected.shape and (image - expected).abs().max() < 1e-4, name
assert not [name for name in sys.modules if name.startswith("fastgan")]
print("same images:", *names)
"""


@pytest.mark.slow
def test_pt2_files_draw_every_architecture_without_fastgan(traced, tmp_path):
    """Files draw any number of samples, and contain no paths of this machine."""
    for arch in models.ARCHITECTURES:
        sampler, program = traced(arch)
        content = to_torch(program, metadata(sampler, "const", "float"))
        assert str(Path(fastgan.__file__).parent).encode() not in content
        (tmp_path / f"{arch}.pt2").write_bytes(content)
        cases = [with_zeros(inputs(sampler, seeds, 0.6)) for seeds in ([4], range(5))]
        options = {"noise": "const"} if "noise" in sampler.generator.supports else {}
        expected = [sampler.generator(**given, **options) for given in cases]
        torch.save(list(zip(cases, expected, strict=True)), tmp_path / f"{arch}.pt")
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(tmp_path), *models.ARCHITECTURES]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == f"same images: {' '.join(models.ARCHITECTURES)}", done.stderr


def test_inputs_are_those_of_the_network(traced):
    for arch, names in (("mlp", ["z"]), ("cgan", ["z", "label"])):
        sampler, program = traced(arch)
        assert list(inputs(sampler, [0])) == names
        specs = program.graph_signature.input_specs
        assert [spec.arg.name for spec in specs if spec.kind.name == "USER_INPUT"] == names
        operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert not [name for name in operations if "fastgan" in name]


def test_noise_is_const_or_none(runs):
    sampler = fastgan.load(runs("stylegan2"), "cpu")
    network = Network(sampler.generator, "none", "float")
    assert largest_difference(network, sampler, noise="none") < TOLERANCE["float"]
    assert largest_difference(network, sampler, noise="const") > 0.01


# ONNX ----------------------------------------------------------------------------------------------------------------


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["dcgan", "stylegan2"])
def test_onnx_files_draw_the_images_of_pytorch(traced, arch):
    """Files have standard operators only, and draw any number of samples."""
    import onnx

    sampler, program = traced(arch)
    content = to_onnx(program, metadata(sampler, "const", "float"))
    draw = open_onnx(content)
    assert largest_difference(draw, sampler) < TOLERANCE["float"]
    given = with_zeros(inputs(sampler, range(5), 0.6))
    options = {"noise": "const"} if "noise" in sampler.generator.supports else {}
    assert (draw(**given) - sampler.generator(**given, **options)).abs().max() < TOLERANCE["float"]

    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    assert {entry.domain for entry in model.opset_import} == {""} and not model.functions
    assert str(Path(fastgan.__file__).parent).encode() not in content
    assert [entry.name for entry in model.graph.input] == list(given)
    assert [entry.name for entry in model.graph.output] == ["image"]
    written = {entry.key: entry.value for entry in model.metadata_props}
    assert (
        written["arch"] == arch
        and written["height"] == written["width"] == "8"
        and written["fastgan"] == fastgan.__version__
    )
    assert json.loads(written["class_names"]) == list(ALL[arch])


@needs_onnx
@pytest.mark.slow
def test_shuffled_pixels_are_the_same_in_onnx(tmp_path):
    run = untrained(tmp_path / "run", "stylegan2", CLASSES, resolution=16, pixel_shuffle=True)
    sampler = fastgan.load(run, "cpu")
    draw = open_onnx(to_onnx(trace(sampler), metadata(sampler, "const", "float")))
    assert sampler.sample(1).shape == (1, 3, 16, 16)
    assert largest_difference(draw, sampler) < TOLERANCE["float"]


@pytest.fixture(params=["stylegan", "stylegan2", "stylegan3"])
def styled(request, runs, tmp_path):
    """A run, or for stylegan3 a file in the official layout, with classes."""
    if request.param != "stylegan3":
        return runs(request.param)
    sizes = official_stylegan3.Sizes(img_resolution=8, num_layers=3, num_critical=1, c_dim=3, margin_size=6)
    return official.write(tmp_path / "official.pkl", official_stylegan3.snapshot(sizes))


@needs_onnx
@pytest.mark.slow
def test_two_onnx_files_are_the_halves_of_a_generator_between_which_ws_can_be_edited(styled, tmp_path, capsys):
    import onnx

    out = tmp_path / "g.onnx"
    assert main(["--checkpoint", str(styled), "--split", "--out", str(out)]) == 0
    files = [tmp_path / "g_mapping.onnx", tmp_path / "g_synthesis.onnx"]
    assert capsys.readouterr().out.splitlines()[1:] == [str(path) for path in files] and not out.exists()
    mapping, synthesis = (open_onnx(path.read_bytes()) for path in files)
    sampler = fastgan.load(styled, "cpu")
    given = inputs(sampler, range(5), 0.6)
    with torch.no_grad():
        ws = sampler.generator.styles(**given)
    torch.testing.assert_close(mapping(**given), ws, rtol=1e-4, atol=1e-5)

    found = editing.principal(sampler.generator, count=1, layers=[1, 2], samples=100)
    moved = mapping(**given)
    moved[:, list(found[0].layers)] += 3 * found[0].step * found[0].vector
    plain = sampler.generator(**given, noise="const")
    with editing.edited(sampler.generator, found, {"p0": 3.0}):
        expected = sampler.generator(**given, noise="const")
    assert (synthesis(ws=moved) - expected).abs().max() < TOLERANCE["float"] < (plain - expected).abs().max() / 10

    for path, names in zip(files, ((list(given), "ws"), (["ws"], "image")), strict=True):
        model = onnx.load_from_string(path.read_bytes())
        onnx.checker.check_model(model)
        assert {entry.domain for entry in model.opset_import} == {""} and not model.functions
        assert ([entry.name for entry in model.graph.input], model.graph.output[0].name) == names
        assert {entry.key: entry.value for entry in model.metadata_props}["part"] == path.stem[2:]


@pytest.mark.slow
def test_two_pt2_files(runs, tmp_path):
    argv = ["--checkpoint", str(runs("stylegan2")), "--split", "--format", "torch", "--image", "uint8"]
    assert main([*argv, "--out", str(tmp_path / "g.pt2")]) == 0
    mapping, synthesis = (torch.export.load(tmp_path / f"g_{part}.pt2").module() for part in ("mapping", "synthesis"))
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    image = synthesis(mapping(z, truncation=torch.tensor(0.7)))
    expected = fastgan.load(runs("stylegan2"), "cpu").generator(z, truncation=0.7, noise="const")
    assert (image.int() - drawing.quantized(expected).int()).abs().max() <= 1 and image.dtype == torch.uint8


@pytest.mark.slow
@needs_onnx
def test_the_command_writes_a_uint8_onnx_file(runs, tmp_path, capsys):
    import onnxruntime

    out = tmp_path / "new" / "generator.onnx"
    assert main(["--checkpoint", str(runs("cgan")), "--out", str(out), "--image", "uint8"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"images of ONNX Runtime .* differ from PyTorch's by at most [01] levels of 255", first)
    assert last == str(out) and [path.name for path in out.parent.iterdir()] == ["generator.onnx"]
    session = onnxruntime.InferenceSession(out)
    z = np.zeros((2, 8), np.float32)
    (image,) = session.run(["image"], {"z": z, "label": np.array([0, 2])})
    assert image.dtype == np.uint8 and image.shape == (2, 3, 8, 8)
    assert (image[0] != image[1]).any()


# The command and its errors ------------------------------------------------------------------------------------------


def test_the_command_writes_to_the_run_by_default(runs, capsys):
    run = runs("mlp")
    assert main(["--checkpoint", str(run), "--format", "torch"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "generator.pt2")
    network = torch.export.load(run / "generator.pt2").module()
    assert network(torch.zeros(3, 8)).shape == (3, 3, 8, 8)


def test_a_file_that_draws_other_images_is_not_written(runs, tmp_path, monkeypatch, capsys):
    right = formats.FORMATS["torch"]
    for factor, says in (
        (1.1, "torch.export differ from PyTorch's"),
        (float("nan"), "by nan in a range of 2"),
    ):
        opened = lambda content, factor=factor: lambda **given: factor * right.open(content)(**given)
        monkeypatch.setitem(formats.FORMATS, "torch", right._replace(open=opened))
        argv = ["--checkpoint", str(runs("mlp")), "--format", "torch", "--out", str(tmp_path / "x.pt2")]
        assert says in error_of(main, argv, capsys)
    assert not list(tmp_path.iterdir())


ERRORS = {
    "no checkpoint": (["--checkpoint", "nowhere"], "nowhere: there is no such checkpoint"),
    "ending": (["--out", "x.onnx"], "--out x.onnx: the name must end in .pt2 for --format torch"),
    "no folder": (["--out", "file/x.pt2"], "cannot write file/x.pt2: "),
    "a folder in its place": (["--out", "x.pt2"], "cannot write x.pt2"),
    "no noise": (["--noise", "none"], "--noise none: mlp has no noise"),
    "no halves": (["--split", "--out", "y.pt2"], "--split: mlp has no styles: its generator has no halves"),
    "halves of a training file": (
        ["--split", "--format", "pkl"],
        "--split: works with --format onnx and torch, not with pkl",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_option_is_one_line_and_creates_no_files(case, runs, tmp_path, monkeypatch, capsys):
    argv, says = ERRORS[case]
    run = runs("mlp")
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("x.pt2").mkdir()
    assert says in error_of(main, ["--checkpoint", str(run), "--format", "torch", *argv], capsys)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "x.pt2"]


def test_an_unknown_format(runs, capsys):
    line = error_of(main, ["--checkpoint", str(runs("mlp")), "--format", "tflite"], capsys)
    assert line == "--format tflite: must be onnx, torch, pkl or rosinality"


def test_error_without_the_extra(runs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = error_of(main, ["--checkpoint", str(runs("mlp"))], capsys)
    assert line.startswith('ONNX needs the extra "export", which is not installed: pip install ".[export]"')
