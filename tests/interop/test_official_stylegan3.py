"""Official StyleGAN3 files: images, gradients and logits of a plain rendition of the networks, and the way back."""

import copy
import pickle
import sys
import types

import pytest
import torch

from fastgan import models
from fastgan.cli.export import main as export
from fastgan.cli.train import main as train
from fastgan.errors import UserError
from fastgan.interop import load_official, official_state_dict
from fastgan.interop.official import official_names, read_official
from fastgan.runs import checkpoint
from tests.interop.test_official_networks import close, options
from tests.interop.test_other_programs import official_repository
from tests.support.official import inputs, logits_of, nothing_of_it_importable, write
from tests.support.official_stylegan3 import Sizes, generator, image_of, snapshot
from tests.support.tiny_run import tensors

pytestmark = pytest.mark.usefixtures("one_cache")

CASES = {
    "t": Sizes(img_resolution=16, num_layers=4, num_critical=1),
    "t, loud, with classes": Sizes(img_resolution=16, num_layers=3, num_critical=1, c_dim=3, loud=300.0, margin_size=6),
    "r": Sizes(img_resolution=32, num_layers=5, channel_max=6, conv_kernel=1, use_radial_filters=True),
    "r, grey, no clamp": Sizes(
        img_resolution=8, num_layers=3, conv_kernel=1, use_radial_filters=True, img_channels=1, conv_clamp=None
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stylegan3")
    found = {}
    for number, (name, sizes) in enumerate(CASES.items()):
        content = snapshot(sizes)
        found[name] = sizes, content, write(folder / f"{number}.pkl", content)
    return found


@pytest.fixture(params=CASES)
def case(request, files):
    return files[request.param]


def in_fp64(saved):
    return {name: value.double() for name, value in saved.tensors().items()}


def test_images_and_logits_are_the_same(case):
    sizes, content, path = case
    with nothing_of_it_importable():
        loaded = load_official(path)
    z, label, image = inputs(sizes)
    double = copy.deepcopy(loaded.ema).double()
    for ours, theirs in (
        ({}, {}),
        ({"truncation": 0.5}, {"truncation_psi": 0.5}),
        ({"truncation": -0.7, "truncation_layers": 2}, {"truncation_psi": -0.7, "truncation_cutoff": 2}),
    ):
        expected = image_of(z.double(), label, in_fp64(content["G_ema"]), sizes, **theirs)
        close(double(z.double(), label, **ours), expected)
        close(loaded.ema(z, label, **ours), expected.float(), 1e-5)
    close(loaded.generator(z, label), image_of(z, label, content["G"].tensors(), sizes), 1e-5)
    expected = logits_of(image, label, content["D"].tensors(), sizes.discriminator())
    close(loaded.discriminator(image, label), expected, 1e-5)


def test_gradients_are_the_same(case):
    sizes, content, path = case
    network = load_official(path).generator.double()
    tensors = {name: value.requires_grad_() for name, value in in_fp64(content["G"]).items()}
    z, label, image = inputs(sizes, 2)
    (network(z.double(), label) * image[:2]).sum().backward()
    (image_of(z.double(), label, tensors, sizes) * image[:2]).sum().backward()
    names = official_names(network)
    for name, parameter in network.named_parameters():
        if parameter.grad.abs().max() > 1e-9:  # without classes or under the clamp some are zero
            close(parameter.grad, tensors[names[name]].grad, 1e-5)


def test_a_moved_scene_is_the_same(files):
    """The transform is a buffer of the file."""
    sizes, content, path = files["t"]
    moved = torch.tensor([[0.9, -0.3, 0.1], [0.3, 0.9, -0.2], [0.0, 0.0, 1.0]])
    network, z = load_official(path).ema, inputs(sizes)[0]
    network.synthesis.input.transform.copy_(moved)
    close(network(z), image_of(z, None, content["G_ema"].tensors() | {"synthesis.input.transform": moved}, sizes), 1e-5)


def test_the_clamp_changes_images_with_large_biases(files):
    sizes, content, _ = files["t, loud, with classes"]
    z, label, _ = inputs(sizes)
    t = content["G_ema"].tensors()
    without = Sizes(**(vars(sizes) | {"conv_clamp": None}))
    assert (image_of(z, label, t, sizes) - image_of(z, label, t, without)).abs().max() > 1


def test_the_configuration_is_that_of_the_file(files):
    assert load_official(files["r"][2]).config == models.ModelConfig(
        arch="stylegan3", resolution=32, channels=3, z_dim=12, w_dim=10, channel_base=512, channel_max=6, variant="r",
        mapping_layers=2, mapping_lr=0.01, w_avg_decay=0.998, synthesis_layers=5, margin=10,
        discriminator_channel_base=256, discriminator_channel_max=16,
    )  # fmt: skip


def test_exported_networks_have_the_official_names_and_numbers(case, tmp_path):
    _, content, path = case
    loaded = load_official(path)
    for network, name in ((loaded.generator, "G"), (loaded.ema, "G_ema"), (loaded.discriminator, "D")):
        expected, exported = content[name].tensors(), official_state_dict(network)
        assert exported.keys() == expected.keys()
        for key in expected:
            if key.endswith("_filter"):  # computed anew, in another order of operations
                torch.testing.assert_close(exported[key], expected[key], rtol=1e-6, atol=1e-8)
            else:
                assert torch.equal(exported[key], expected[key]), key
    again = tmp_path / "again.pkl"
    assert export(["--checkpoint", str(path), "--format", "pkl", "--out", str(again)]) == 0
    (config, tensors), (config_again, tensors_again) = (read_official(p).load_state_dicts() for p in (path, again))
    assert config == config_again and tensors.keys() == tensors_again.keys()
    for name, state in tensors.items():
        assert all(torch.equal(tensors_again[name][key], value) for key, value in state.items())


def test_the_official_loader_gets_networks_of_its_own_classes(files, tmp_path, monkeypatch):
    sizes, content, path = files["r"]
    again = tmp_path / "again.pkl"
    assert export(["--checkpoint", str(path), "--format", "pkl", "--out", str(again)]) == 0
    modules, stylegan2 = official_repository(nested=False)
    stylegan3 = modules["training.networks_stylegan3"] = types.ModuleType("training.networks_stylegan3")
    stylegan3.Generator = type("Generator", (stylegan2.Generator,), {"describe": staticmethod(generator)})
    stylegan3.Generator.sizes, stylegan2.Discriminator.sizes = sizes, sizes.discriminator()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    file = pickle.loads(again.read_bytes())
    for name, kind in (("G_ema", stylegan3.Generator), ("D", stylegan2.Discriminator)):
        assert type(file[name]) is kind
        expected, state = content[name].tensors(), file[name].state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.allclose(state[key], expected[key], rtol=1e-6, atol=1e-8) for key in state)
    given = file["G_ema"].options
    assert (given["conv_kernel"], given["use_radial_filters"], given["num_layers"]) == (1, True, 5)
    assert given["margin_size"] == 10 and given["channel_max"] == sizes.channel_max


STRANGE = {
    "another scale of the image": ({"output_scale": 1.0}, "G_ema with output_scale 1.0, which must be 0.25"),
    "t's kernel, r's filters": ({"use_radial_filters": True}, "conv_kernel 3, which does not go with"),
    "another number of layers": ({"num_layers": 5}, "lacks the tensor G_ema.synthesis.L"),
    "other option": ({"novelty": 1}, "G_ema with novelty 1, which fastgan's networks do not have"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_unsupported_networks_are_refused_in_one_line(tmp_path, strange):
    changed, says = STRANGE[strange]
    path = write(tmp_path / "file.pkl", {"G_ema": generator(CASES["t"], **changed)})
    with pytest.raises(UserError) as error:
        load_official(path)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_filters_of_another_design_are_refused(tmp_path):
    content = snapshot(CASES["t"])
    layer = content["G_ema"].modules["synthesis"].modules["L1_36_12"]
    layer.buffers["up_filter"] = layer.buffers["up_filter"].roll(1)
    with pytest.raises(UserError, match=r"another filter in G_ema.synthesis.L1_36_12.up_filter than the options"):
        load_official(write(tmp_path / "file.pkl", content))


def test_a_training_starts_with_an_official_file(folder, tmp_path):
    """With steps too small to change anything, what is saved is what was loaded, except for running means."""
    sizes = Sizes(img_resolution=8, num_layers=3, num_critical=1, margin_size=2, img_channels=1, c_dim=2, z_dim=6)
    path, out = write(tmp_path / "file.pkl", snapshot(sizes)), tmp_path / "run"
    still = ["--lr-g", "1e-30", "--lr-d", "1e-30", "--ema-halflife", "1e30"]
    assert train(options(folder, out, "--init-from", path, *still)) == 0
    ours, theirs = tensors(out), load_official(path)
    for name in ("generator", "discriminator", "ema"):
        for key, value in getattr(theirs, name).state_dict().items():
            if not key.endswith(("w_avg", "magnitude_ema")):
                assert (ours[f"{name}.{key}"] == value.numpy()).all(), (name, key)
    assert checkpoint.read_header(out).model == theirs.config
