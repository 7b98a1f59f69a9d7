"""Files of other programs that fastgan writes and reads: the official StyleGAN2's pickles, and rosinality's."""

import copy
import dataclasses
import io
import os
import pickle
import re
import sys
import types
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import fastgan
from fastgan import models
from fastgan.cli.evaluate import main as evaluate
from fastgan.cli.export import main as export
from fastgan.cli.generate import main as generate
from fastgan.cli.train import main as train
from fastgan.errors import UserError
from fastgan.interop import load_official, official_state_dict, pickling, rosinality, writing
from fastgan.interop.official import build, read_official
from fastgan.runs import checkpoint
from fastgan.runs.networks import open_networks
from fastgan.training.joint_batch import JointBatch
from tests.cli.test_evaluate import of_pixels  # noqa: F401
from tests.support import official
from tests.support import rosinality as of_rosinality
from tests.support.commands import error_of
from tests.support.damage import mutate
from tests.support.official import Sizes, image_of, logits_of, snapshot, write
from tests.support.tiny_run import make_folder, untrained

pytestmark = pytest.mark.usefixtures("one_cache")

FORMS = {
    "as usual": Sizes(img_resolution=16),
    "converted": Sizes(
        img_resolution=16, c_dim=3, mbstd_group_size=None, discriminator_layers=0, discriminator_lr=0.1, conv_clamp=None
    ),
    "flat": Sizes(img_resolution=8, flat=True, c_dim=2, discriminator_layers=2, mbstd_group_size=2, mbstd_num_channels=2),  # noqa: E501
    "rare": Sizes(
        img_resolution=16, generator_architecture="resnet", architecture="skip", use_noise=False, w_dim=16,
        resample_filter=(1, 2, 1), discriminator_base=64, discriminator_max=8, img_channels=4, c_dim=2,
        discriminator_lr=0.05,
    ),
    "orig": Sizes(img_resolution=8, generator_architecture="orig", architecture="orig", mbstd_num_channels=0),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two files for each form: one of the official code, and the one that fastgan writes after reading it."""
    folder, found = tmp_path_factory.mktemp("written"), {}
    for name, sizes in FORMS.items():
        content = snapshot(sizes)
        path, again = write(folder / f"{name}.pkl", content), folder / f"{name} again.pkl"
        assert export(["--checkpoint", str(path), "--format", "pkl", "--out", str(again)]) == 0
        found[name] = sizes, content, path, again
    return found


@pytest.fixture(params=FORMS)
def form(request, written):
    return written[request.param]


# ------------------------------------------------------------------------------------------ the official code's pickles


def test_writing_restores_what_was_read(form):
    """Bitwise, with all options."""
    _, _, path, again = form
    config, tensors = read_official(path).load_state_dicts()
    config_again, tensors_again = read_official(again).load_state_dicts()
    assert config_again == config
    assert tensors_again.keys() == tensors.keys() == {"generator", "discriminator", "ema"}
    for name in tensors:
        assert all(torch.equal(tensors_again[name][key], value) for key, value in tensors[name].items())


def modules_of(state):
    """Options and official tensors of a network in a file."""
    return state["_init_kwargs"], dict(pickled_tensors(state))


def pickled_tensors(state, prefix=""):
    for kind in ("_parameters", "_buffers"):
        yield from ((prefix + name, (kind, value)) for name, value in state[kind].items())
    for name, part in state["_modules"].items():
        yield from pickled_tensors(vars(part), f"{prefix}{name}.")


class Unpickled:
    """A module as the official function restores it, without its source."""

    def __init__(self, meta):
        assert (meta["type"], meta["version"]) == ("class", 6)
        self.meta, self.__dict__ = meta, self.__dict__ | meta["state"]


def unpickled(path):
    """The content of a file, its networks described."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) == ("torch_utils.persistence", "_reconstruct_persistent_obj"):
                return Unpickled
            assert module.startswith(("torch", "collections")), (module, name)
            return super().find_class(module, name)

    return Unpickler(io.BytesIO(path.read_bytes())).load()


def test_names_shapes_and_options_are_the_official_ones(form):
    sizes, content, _, again = form
    file = unpickled(again)
    assert set(file) == {"G", "D", "G_ema", "training_set_kwargs", "augment_pipe"}
    assert file["training_set_kwargs"] is None and file["augment_pipe"] is None
    for name in ("G", "D", "G_ema"):
        options, tensors = modules_of(vars(file[name]))
        expected = content[name].tensors()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, (_, value) in tensors.items())
        buffers = {key for key, (kind, _) in tensors.items() if kind == "_buffers"}
        assert buffers == {key for key in expected if key.endswith(("resample_filter", "noise_const", "w_avg"))}
    g, d = file["G_ema"]._init_kwargs, file["D"]._init_kwargs
    assert (g["z_dim"], g["w_dim"], g["c_dim"]) == (sizes.z_dim, sizes.style_dim, sizes.c_dim)
    assert g["mapping_kwargs"] == {
        "num_layers": sizes.num_layers,
        "lr_multiplier": sizes.lr_multiplier,
        "w_avg_beta": 0.998 if sizes.flat else 0.995,
    }
    synthesis = g["synthesis_kwargs"]
    assert synthesis["architecture"] == sizes.generator_architecture and synthesis["use_noise"] == sizes.use_noise
    assert synthesis["resample_filter"] == d["block_kwargs"]["resample_filter"] == list(sizes.resample_filter)
    assert d["architecture"] == sizes.architecture and d["conv_clamp"] == sizes.conv_clamp
    assert d["epilogue_kwargs"] == {
        "mbstd_group_size": sizes.mbstd_group_size,
        "mbstd_num_channels": sizes.mbstd_num_channels,
    }
    assert d["mapping_kwargs"]["lr_multiplier"] == (sizes.rate if sizes.c_dim else 0.01)
    assert d["mapping_kwargs"]["num_layers"] == (sizes.discriminator_layers if sizes.c_dim else 0)


def official_repository(nested):
    """Stand-ins of the official modules that a file's source imports: the loader and the classes of networks.

    The loader runs the source as a module, makes an object of the named class without calling its constructor, and sets
    its state. Networks are trees of modules with the tensors of `tests.support.official`.
    """
    persistence, names = types.ModuleType("torch_utils.persistence"), "networks" if nested else "networks_stylegan2"

    def _reconstruct_persistent_obj(meta):
        module = types.ModuleType("imported")
        exec(meta["module_src"], module.__dict__)
        kind = type(meta["class_name"], (module.__dict__[meta["class_name"]],), {})  # the official one is derived from
        made = kind.__new__(kind)
        if hasattr(made, "__setstate__"):
            made.__setstate__(meta["state"])
        else:
            made.__dict__.update(meta["state"])
        return made

    _reconstruct_persistent_obj.__module__ = persistence.__name__
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    networks = types.ModuleType(f"training.{names}")

    class Tree(nn.Module):
        def grow(self, saved):
            for name, value in saved.parameters.items():
                self.register_parameter(name, nn.Parameter(torch.full_like(value, torch.nan)))
            for name, value in saved.buffers.items():
                self.register_buffer(name, torch.full_like(value, torch.nan))
            for name, part in saved.modules.items():
                self.add_module(name, Tree().grow(part))
            return self

    class Nested(Tree):
        def __init__(self, z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs, synthesis_kwargs):
            super().__init__()
            self.options = {**mapping_kwargs, **synthesis_kwargs}
            self.grow(official.generator(self.sizes))

    class Flat(Tree):
        describe = staticmethod(official.generator)

        def __init__(self, z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs, **synthesis_kwargs):
            super().__init__()
            self.options = {**mapping_kwargs, **synthesis_kwargs}
            self.grow(self.describe(self.sizes))

    class Discriminator(Tree):
        def __init__(self, c_dim, img_resolution, img_channels, **options):
            super().__init__()
            self.options = options
            self.grow(official.discriminator(self.sizes))

    networks.Generator = type("Generator", (Nested if nested else Flat,), {})  # derived, as the official decorator does
    networks.Discriminator = Discriminator
    training = types.ModuleType("training")
    training.__path__ = []
    modules = {"torch_utils": types.ModuleType("torch_utils"), persistence.__name__: persistence}
    return modules | {"training": training, networks.__name__: networks}, networks


@pytest.mark.parametrize("nested", [True, False], ids=["stylegan2-ada-pytorch", "stylegan3"])
def test_the_official_loader_gets_networks_of_its_own_classes(form, nested, monkeypatch):
    sizes, content, _, again = form
    modules, networks = official_repository(nested)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for kind in (networks.Generator, networks.Discriminator):
        kind.sizes = sizes
    file = pickle.loads(again.read_bytes())
    for name, kind in (("G", networks.Generator), ("G_ema", networks.Generator), ("D", networks.Discriminator)):
        network, expected = file[name], content[name].tensors()
        assert type(network) is kind and not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        state = network.state_dict()
        assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)
        copy.deepcopy(network)
    assert "synthesis_kwargs" not in file["G_ema"].options and file["G_ema"].options["num_fp16_res"] == 0
    assert file["D"].options["epilogue_kwargs"]["mbstd_group_size"] == sizes.mbstd_group_size


def test_elsewhere_the_file_says_where_it_is_read(written, monkeypatch):
    modules, _ = official_repository(nested=True)
    for name in ("torch_utils", "torch_utils.persistence"):
        monkeypatch.setitem(sys.modules, name, modules[name])
    with pytest.raises(ImportError, match="needs the code of stylegan2-ada-pytorch or stylegan3"):
        pickle.loads(written["as usual"][3].read_bytes())


def test_a_fault_of_the_official_code_is_not_hidden(written, monkeypatch):
    modules, networks = official_repository(nested=True)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delattr(networks, "Generator")
    with pytest.raises(AttributeError, match="Generator"):
        pickle.loads(written["as usual"][3].read_bytes())


def test_a_run_is_exported_and_read(tmp_path, capsys):
    run = untrained(tmp_path / "run", "stylegan2", ("cat", "dog"), tanh=False)
    assert export(["--checkpoint", str(run), "--format", "pkl"]) == 0
    out = run / "networks.pkl"
    assert capsys.readouterr().out == f"{out}\n"
    loaded, saved = load_official(out), checkpoint.read_networks(checkpoint.read_header(run))
    for name in ("generator", "discriminator", "ema"):
        for key, value in getattr(loaded, name).state_dict().items():
            assert torch.equal(value, saved[f"{name}.{key}"])
    assert loaded.config == checkpoint.read_header(run).model


def test_one_of_several_emas_is_exported(tmp_path, capsys):
    run = untrained(tmp_path / "run", "stylegan2", tanh=False, ema_halflife=(10.0, 2.5))
    assert export(["--checkpoint", str(run), "--format", "pkl", "--ema", "2.5"]) == 0
    loaded, saved = load_official(run / "networks.pkl"), load_file(run / checkpoint.FILE_NAME)
    for name, prefix in (("ema", "other_emas.0"), ("generator", "generator")):
        for key, value in getattr(loaded, name).state_dict().items():
            assert torch.equal(value, saved[f"{prefix}.{key}"])
    names = dict(loaded.ema.named_parameters())
    assert not any(torch.equal(saved[f"ema.{name}"], saved[f"other_emas.0.{name}"]) for name in names)


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys):
    run = untrained(tmp_path / "run", "dcgan")
    error = error_of(export, ["--checkpoint", str(run), "--format", "pkl"], capsys)
    assert error.endswith("is dcgan; such a file holds stylegan2 and stylegan3 only")
    bounded = untrained(tmp_path / "bounded", "stylegan2")
    error = error_of(export, ["--checkpoint", str(bounded), "--format", "pkl"], capsys)
    assert error.endswith("go through tanh, which that code does not have; train with --tanh False for it")
    with pytest.raises(ValueError, match="no tanh"):
        official_state_dict(models.build(models.ModelConfig(tanh=True))[0])
    shuffled = models.ModelConfig(pixel_shuffle=True, conv_clamp=None)
    for format in ("pkl", "rosinality"):
        with pytest.raises(ValueError, match=r"2x2 pixels at each place, .* train with --pixel-shuffle False for it"):
            writing.to_bytes(format, shuffled, {})
    for network in models.build(shuffled):
        with pytest.raises(ValueError, match="no pixel shuffle"):
            official_state_dict(network)
    alone = write(tmp_path / "file.pkl", {"G_ema": official.generator(Sizes(img_resolution=8))})
    argv = ["--checkpoint", str(alone), "--format", "pkl"]
    assert "G and D missing" in error_of(export, [*argv, "--out", str(tmp_path / "new.pkl")], capsys)
    assert error_of(export, [*argv, "--out", str(alone)], capsys).endswith("which is read; give another name")
    assert "must end in .pkl" in error_of(export, [*argv, "--out", str(tmp_path / "new.pt")], capsys)
    assert "--image uint8: works with --format onnx" in error_of(export, [*argv, "--image", "uint8"], capsys)
    assert not (tmp_path / "new.pkl").exists()


# --------------------------------------------------------------------------------------------------------- rosinality's

PLAIN = Sizes(img_resolution=16, conv_clamp=None)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A file of that code, and its content."""
    path, content = tmp_path_factory.mktemp("rosinality") / "550000.pt", of_rosinality.checkpoint(PLAIN)
    path.write_bytes(of_rosinality.saved(content))
    return path, content


def close(ours, expected, share=1e-12):
    torch.testing.assert_close(ours, expected, rtol=0, atol=share * expected.abs().max().item())


def in_fp64(state):
    return {name: value.double() for name, value in state.items()}


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before torch 1.6"])
def test_rosinalitys_images_and_logits_are_the_same(tmp_path, theirs, archive):
    _, content = theirs
    path = tmp_path / "file"
    path.write_bytes(of_rosinality.saved(content, archive))
    found = open_networks(path)
    config, tensors = found.load_state_dicts()
    torch.manual_seed(1)
    z, image = torch.randn(4, PLAIN.z_dim).double(), torch.randn(8, 3, 16, 16).double()
    mean = content["latent_avg"]
    for network, state in (("ema", "g_ema"), ("generator", "g")):
        expected = of_rosinality.official_generator(in_fp64(content[state]), mean.double())
        ours = build(network, config, tensors[network]).double()
        close(ours(z, noise="const"), image_of(z, None, expected, PLAIN), 1e-6)
        truncated = image_of(z, None, expected, PLAIN, truncation_psi=0.5, noise_mode="none")
        close(ours(z, noise="none", truncation=0.5), truncated, 1e-6)
    expected = of_rosinality.official_discriminator(in_fp64(content["d"]), PLAIN)
    close(
        build("discriminator", config, tensors["discriminator"]).double()(image),
        logits_of(image, None, expected, PLAIN),
    )
    assert not any(each.requires_grad for each in found.load("cpu").parameters())


def test_without_a_mean_of_w_it_is_estimated(theirs):
    path, content = theirs
    without = {name: value for name, value in content.items() if name != "latent_avg"}
    path = path.with_name("without.pt")
    path.write_bytes(of_rosinality.saved(without))
    mapping = open_networks(path).load("cpu").mapping
    expected = mapping(torch.randn(100_000, PLAIN.z_dim)).mean(0)
    assert (mapping.w_avg - expected).norm() < 0.1 * expected.norm()
    assert torch.equal(open_networks(path).load("cpu").mapping.w_avg, mapping.w_avg)


def test_rosinalitys_file_is_written_as_it_was_read(theirs, tmp_path, capsys):
    path, content = theirs
    out = tmp_path / "again.pt"
    assert export(["--checkpoint", str(path), "--format", "rosinality", "--out", str(out)]) == 0
    *remarks, name = capsys.readouterr().out.splitlines()
    assert name == str(out) and len(remarks) == 2 and "set `channels` to {4: 16, 8: 16, 16: 16}" in remarks[0]
    assert remarks[1] == "that code's scripts have `latent` 512 and `n_mlp` 8: set them to 12 and 3"
    again = torch.load(out, weights_only=True)
    assert again.keys() == {"g", "d", "g_ema", "g_optim", "d_optim", "latent_avg"}
    assert torch.equal(again["latent_avg"], content["latent_avg"])
    for each in ("g", "d", "g_ema"):
        assert again[each].keys() == content[each].keys()
        assert all(torch.equal(again[each][key], value) for key, value in content[each].items())


def test_rosinalitys_training_starts_with_the_optimizers_of_a_file(theirs, tmp_path):
    """Adam loads the state, and its first step equals that of that code's own optimizer."""
    path, content = theirs
    out = tmp_path / "again.pt"
    assert export(["--checkpoint", str(path), "--format", "rosinality", "--out", str(out)]) == 0
    again = torch.load(out, weights_only=True)
    for name, interval in (("g", 4), ("d", 16)):
        buffers = ("noises.", "kernel")
        parameters = [nn.Parameter(each) for key, each in content[name].items() if not any(b in key for b in buffers)]
        optimizer, share = torch.optim.Adam(parameters), interval / (interval + 1)
        optimizer.load_state_dict(again[f"{name}_optim"])
        (group,) = optimizer.param_groups
        assert (group["lr"], group["betas"]) == (0.002 * share, (0.0, 0.99**share)) and not optimizer.state


def test_usual_networks_need_no_remark():
    usual = models.ModelConfig(resolution=1024, channels=3, channel_max=512, z_dim=512, mapping_layers=8)
    for base in (16384, 32768):
        assert rosinality.differences(dataclasses.replace(usual, channel_base=base)) == []
    found = rosinality.differences(dataclasses.replace(usual, channel_base=32768, resample_filter=(1, 2, 1)))
    assert found == ["that code's networks have a filter of 4 taps: give them a `blur_kernel` of 3"]
    assert rosinality._widths([512] * 4) == (32768, 512)
    assert rosinality._widths([512, 512, 512, 512, 256]) == (16384, 512)
    assert rosinality._widths([16, 16, 8]) == (128, 16)


def test_another_rate_of_the_mapping_network_draws_the_same_images(tmp_path):
    run = untrained(tmp_path / "run", "stylegan2", tanh=False)
    assert checkpoint.read_header(run).model.mapping_lr == 0.1
    assert export(["--checkpoint", str(run), "--format", "rosinality"]) == 0
    ours, again = fastgan.load(run, "cpu"), fastgan.load(run / "networks.pt", "cpu")
    options = {"seeds": [0, 1], "truncation": 0.7, "dtype": torch.float32}
    close(again.sample(**options), ours.sample(**options), 1e-5)


def unfit(path, **changes):
    found = open_networks(path)
    config, tensors = found.load_state_dicts()
    return found._replace(load_state_dicts=lambda: (dataclasses.replace(config, **changes), tensors))


def test_networks_that_the_layout_cannot_hold_are_one_line(theirs, tmp_path, capsys):
    path = write(tmp_path / "file.pkl", snapshot(Sizes(img_resolution=8, c_dim=2)))
    out = tmp_path / "new.pt"
    error = error_of(export, ["--checkpoint", str(path), "--format", "rosinality", "--out", str(out)], capsys)
    assert "square RGB images only: it has num_classes 0, these networks have 2" in error
    loud = write(tmp_path / "loud.pkl", snapshot(Sizes(img_resolution=8, loud=300.0, conv_clamp=256.0)))
    error = error_of(export, ["--checkpoint", str(loud), "--format", "rosinality", "--out", str(out)], capsys)
    assert "that code does not clamp activations" in error
    assert not out.exists()


STRANGE = {
    "no average": (lambda c: c.pop("g_ema"), "has no g_ema"),
    "no dict": (lambda c: c.update(g_ema=[1]), "a g_ema that is not a state dictionary"),
    "another network": (lambda c: c["g_ema"].pop("style.1.weight"), "lacks the tensor g_ema.style.1.weight"),
    "tensor missing": (lambda c: c["d"].pop("final_linear.1.bias"), "lacks the tensor d.final_linear.1.bias"),
    "tensor too many": (lambda c: c["g"].update({"iwt.ll": torch.ones(1)}), "has the tensor g.iwt.ll, which"),
    "a shape": (lambda c: c["g"].update({"conv1.noise.weight": torch.ones(2)}), "g.conv1.noise.weight of shape [2]"),
    "a filter": (lambda c: c["d"].update({"convs.1.skip.0.kernel": torch.ones(4, 4)}), "another filter in d.convs.1"),
    "widths": (
        lambda c: c["g_ema"].update({"convs.0.conv.weight": torch.ones(1, 24, 16, 3, 3)}),
        "has feature maps of [16, 24, 16] channels",
    ),
    "dimensions": (lambda c: c["g_ema"].update({"input.input": torch.ones(3)}), "a g_ema that is not a StyleGAN2"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_other_networks_are_refused_in_one_line(theirs, tmp_path, strange):
    change, says = STRANGE[strange]
    content = copy.deepcopy(theirs[1])
    change(content)
    path = tmp_path / "file.pt"
    path.write_bytes(of_rosinality.saved(content))
    with pytest.raises(UserError, match=re.escape(says)) as error:
        open_networks(path).load_state_dicts()
    assert str(error.value).startswith(f"{path} ") and str(error.value).isprintable()


@pytest.mark.parametrize("archive", [True, False])
def test_damaged_files_are_refused_in_one_line_or_read(tmp_path, archive):
    sizes = Sizes(img_resolution=8, channel_base=16, channel_max=2, z_dim=2, num_layers=1)
    whole, random, path = of_rosinality.saved(of_rosinality.checkpoint(sizes), archive), Random(0), tmp_path / "file.pt"
    refused = 0
    for _ in range(60):
        path.write_bytes(mutate(whole, random, head=2000))
        try:
            open_networks(path).load_state_dicts()
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(path)) and str(error).isprintable()
    assert 20 < refused < 60


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("archive", [True, False])
def test_nothing_in_such_a_file_is_executed(tmp_path, archive):
    path = tmp_path / "file.pt"
    path.write_bytes(of_rosinality.saved({"g_ema": Hostile()}, archive))
    with pytest.raises(UserError, match="is not a network file of torch") as error:
        open_networks(path)
    assert str(error.value).isprintable()


# -------------------------------------------------------------------------------- by content, and on every command line


@pytest.fixture(scope="module")
def named_oddly(written, theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    paths = []
    for name, source in (
        ("a.PKL", written["as usual"][2]),
        ("b", written["as usual"][3]),
        ("c.safetensors", theirs[0]),
    ):
        (folder / name).write_bytes(source.read_bytes())
        paths.append(folder / name)
    return paths


def test_the_content_decides_about_a_file_not_its_name(named_oddly, tmp_path):
    for path in named_oddly:
        assert fastgan.load(path, "cpu").sample(1).shape == (1, 3, 16, 16)
        assert generate(["--checkpoint", str(path), "--seeds", "0", "--out", str(tmp_path / "image.png")]) == 0


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"PK\3\4 no archive", b"\x80\x04.", b"{}", bytes(40)])
def test_other_files_are_refused_in_one_line(tmp_path, content, capsys):
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    error = error_of(generate, ["--checkpoint", str(path)], capsys)
    assert error.startswith(f"{path} is ") and "deserializing" not in error


def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    pipe = tmp_path / "checkpoint.safetensors"
    os.mkfifo(pipe)
    for command, argv in ((generate, ["--checkpoint"]), (train, ["--resume"]), (train, ["--init-from"])):
        for path in (pipe, tmp_path):
            assert "regular file; give a run's folder or" in error_of(command, [*argv, str(path)], capsys)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("colours") / "images")


@pytest.mark.usefixtures("of_pixels")
def test_files_of_other_programs_are_measured(theirs, tmp_path, colours, capsys):
    small = write(tmp_path / "file.pkl", snapshot(Sizes(img_resolution=8, img_channels=1, c_dim=2)))
    argv = ["--checkpoint", str(small), "--samples", "12"]
    assert "does not say what it was trained on; give the images" in error_of(evaluate, argv, capsys)
    for ema in ("5", "all"):
        error = error_of(evaluate, [*argv, "--ema", ema], capsys)
        assert error.startswith(f"--ema {ema}: {small} ") and error.endswith("leave it out")
    out = tmp_path / "found.json"
    assert evaluate([*argv, "--data", str(colours), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("stylegan2\ncompared with 10 real images") and '"images_shown": null' in out.read_text()
    three = write(tmp_path / "three.pkl", snapshot(Sizes(img_resolution=8, img_channels=1, c_dim=3)))
    error = error_of(evaluate, ["--checkpoint", str(three), "--samples", "12", "--data", str(colours)], capsys)
    assert "has 2 classes, the network of" in error


@pytest.mark.parametrize("which", ["converted", "rosinality"])
def test_a_training_starts_from_such_a_file(which, written, theirs, tmp_path):
    """The official converter's discriminator compares the whole batch, of any size."""
    data, path = tmp_path / "data", theirs[0] if which == "rosinality" else written["converted"][2]
    for name in "abc":
        (data / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / name / f"{number}.png")
    out, batch = tmp_path / "run", "6" if which == "converted" else "4"
    argv = [
        *("--init-from", str(path), "--data", str(data), "--out", str(out), "--resolution", "16", "--channels", "3"),
        *(
            "--labels",
            str(which == "converted"),
            "--batch",
            batch,
            "--images",
            "8",
            "--threads",
            "1",
            "--no-tensorboard",
        ),
        *("--grid-interval", "0"),
    ]
    assert train(argv) == 0
    model = checkpoint.read_header(out).model
    if which == "converted":
        assert (model.stddev_group, model.discriminator_mapping_lr, model.discriminator_mapping_layers) == (
            None,
            0.1,
            0,
        )
        assert train(["--resume", str(out), "--images", "16"]) == 0
        assert export(["--checkpoint", str(out), "--format", "pkl"]) == 0
        options = unpickled(out / "networks.pkl")["D"]._init_kwargs
        assert options["epilogue_kwargs"]["mbstd_group_size"] is None
        assert options["mapping_kwargs"] == {"num_layers": 0, "lr_multiplier": 0.1}
    else:
        assert export(["--checkpoint", str(out), "--format", "rosinality"]) == 0


def test_a_group_never_mixes_real_and_generated_images():
    """The step may concatenate real and generated images; groups must not cross them."""
    _, discriminator = models.build(models.ModelConfig(resolution=8, channel_base=64, channel_max=8, stddev_group=None))
    assert not JointBatch(discriminator).fits(torch.zeros(8, 1, 8, 8))
    _, discriminator = models.build(models.ModelConfig(resolution=8, channel_base=64, channel_max=8))
    assert JointBatch(discriminator).fits(torch.zeros(8, 1, 8, 8))


def test_the_source_in_a_file_is_fastgans_own():
    assert pickling.SOURCE.startswith('"""Written by fastgan.')
    compile(pickling.SOURCE, "source", "exec")
