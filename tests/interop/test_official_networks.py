"""Official StyleGAN2 files: the images and logits of a plain rendition of them, and nothing that a file could do."""

import collections
import copy
import dataclasses
import datetime
import importlib.util
import io
import os
import pickle
import pickletools
import re
import struct
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import fastgan
from fastgan import models
from fastgan.cli.export import main as export
from fastgan.cli.generate import main as generate
from fastgan.cli.train import main as train
from fastgan.errors import UserError
from fastgan.interop import load_official, official_state_dict, unpickling
from fastgan.runs import checkpoint
from fastgan.training import configure, initial
from tests.support import official
from tests.support.damage import mutate
from tests.support.official import Sizes, image_of, inputs, logits_of, nothing_of_it_importable, snapshot, write
from tests.support.tiny_run import tensors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]

CASES = {
    "ada": Sizes(),
    "ada, loud": Sizes(loud=300.0, img_resolution=16),
    "ada, loud, without a clamp": Sizes(loud=300.0, img_resolution=16, conv_clamp=None),
    "ada's CIFAR-10": Sizes(c_dim=5, architecture="orig", mbstd_group_size=32, loud=300.0, img_resolution=16),
    "stylegan3, with classes": Sizes(
        c_dim=3, flat=True, mbstd_group_size=2, mbstd_num_channels=2, discriminator_layers=2
    ),
    # What the official converter makes of a network of the TensorFlow version.
    "converted": Sizes(
        c_dim=3, img_resolution=16, mbstd_group_size=None, discriminator_layers=0, discriminator_lr=0.1, conv_clamp=None
    ),
    "resnet and skip": Sizes(img_resolution=16, generator_architecture="resnet", architecture="skip", loud=300.0),
    "orig, wide w": Sizes(
        img_resolution=16, generator_architecture="orig", z_dim=8, w_dim=12, c_dim=2, discriminator_lr=0.05
    ),
    "narrow discriminator, no noise": Sizes(
        img_resolution=16, use_noise=False, discriminator_base=64, discriminator_max=8, img_channels=4
    ),
    "two taps": Sizes(img_resolution=16, resample_filter=(1, 1)),
    "three taps": Sizes(
        img_resolution=16, resample_filter=(1, 2, 1), generator_architecture="resnet", architecture="skip"
    ),
    "one tap": Sizes(img_resolution=16, resample_filter=(1,)),
    "ten taps": Sizes(img_resolution=16, resample_filter=(1, 0, -11, -4, 49, 78, 33, -7, -2, 3)),
    "rows of taps": Sizes(img_resolution=16, resample_filter=((1, 2, 1), (2, 5, 3), (0, 1, 1), (1, 0, 2))),
    "grey, 8x8, no stddev": Sizes(img_resolution=8, img_channels=1, mbstd_num_channels=0, lr_multiplier=0.1, flat=True),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    contents = {name: snapshot(sizes) for name, sizes in CASES.items()}
    return {
        name: (CASES[name], content, write(folder / f"{number}.pkl", content, protocol=3 + number % 2))
        for number, (name, content) in enumerate(contents.items())
    }


@pytest.fixture(params=CASES)
def case(request, files):
    return files[request.param]


def in_fp64(saved: official.Saved):
    return {name: value.double() for name, value in saved.tensors().items()}


def close(ours, expected, share=1e-6):
    """Compares up to a fraction of the largest value."""
    torch.testing.assert_close(ours, expected, rtol=0, atol=share * expected.abs().max().item())


# ---------------------------------------------------------------------------------------------------- the same numbers


def test_the_official_code_is_not_there():
    assert importlib.util.find_spec("torch_utils") is None and importlib.util.find_spec("dnnlib") is None


OPTIONS = {  # ours and theirs
    "plain": ({"noise": "const"}, {"noise_mode": "const"}),
    "truncated": ({"noise": "none", "truncation": 0.5}, {"noise_mode": "none", "truncation_psi": 0.5}),
    "truncated in some layers": (
        {"noise": "const", "truncation": -0.7, "truncation_layers": 3},
        {"noise_mode": "const", "truncation_psi": -0.7, "truncation_cutoff": 3},
    ),
}


def test_images_are_the_same(case):
    sizes, content, path = case
    with nothing_of_it_importable():
        loaded = load_official(path)
    z, label, _ = inputs(sizes)
    double = copy.deepcopy(loaded.ema).double()
    for ours, theirs in OPTIONS.values():
        expected = image_of(z.double(), label, in_fp64(content["G_ema"]), sizes, **theirs)
        close(loaded.ema(z, label, **ours), expected.float(), 1e-5)
        close(double(z.double(), label, **ours), expected)
    expected = image_of(z, label, content["G"].tensors(), sizes)
    close(loaded.generator(z, label, noise="const"), expected, 1e-5)


def test_logits_are_the_same(case):
    sizes, content, path = case
    discriminator = load_official(path).discriminator
    _, label, image = inputs(sizes)
    expected = logits_of(image.double(), label, in_fp64(content["D"]), sizes)
    close(discriminator(image, label), expected.float(), 1e-5)
    close(discriminator.double()(image.double(), label), expected)


def test_the_clamp_changes_images_with_large_biases(files):
    """Otherwise the cases above could not show a misplaced clamp."""
    sizes, content, _ = files["ada, loud"]
    z, _, image = inputs(sizes)
    without = dataclasses.replace(sizes, conv_clamp=None)
    t, d = content["G_ema"].tensors(), content["D"].tensors()
    assert (image_of(z, None, t, sizes) - image_of(z, None, t, without)).abs().max() > 1
    assert (logits_of(image, None, d, sizes) - logits_of(image, None, d, without)).abs().max() > 1


def test_given_noise_and_random_noise(files):
    """A projector passes noise in place of each layer's constant noise."""
    sizes, content, path = files["ada"]
    ema, t = load_official(path).ema, content["G_ema"].tensors()
    z, *_ = inputs(sizes)
    torch.manual_seed(2)
    ours = ema(z, noise="random")
    torch.manual_seed(2)
    close(ours, image_of(z, None, t, sizes, noise_mode="random"), 1e-5)

    given = {name: torch.randn_like(value) for name, value in t.items() if name.endswith("noise_const")}
    layers = [module for module in ema.modules() if hasattr(module, "noise_const")]
    by_resolution = sorted(given, key=lambda name: (int(re.search(r"b(\d+)", name)[1]), name))
    pairs = zip(ema.synthesis.up, ema.synthesis.same, strict=True)
    order = [ema.synthesis.first, *(layer for pair in pairs for layer in pair)]
    assert len(layers) == len(order) == len(given)
    for layer, name in zip(order, by_resolution, strict=True):
        layer.noise_const.copy_(given[name])
    close(ema(z, noise="const"), image_of(z, None, t | given, sizes), 1e-5)


def test_what_is_loaded_is_ready_to_use(files):
    sizes, _, path = files["stylegan3, with classes"]
    loaded = load_official(path)
    assert not any(network.training for network in (loaded.generator, loaded.ema, loaded.discriminator))
    assert not any(p.requires_grad for p in loaded.ema.parameters())
    assert all(p.requires_grad for network in (loaded.generator, loaded.discriminator) for p in network.parameters())
    assert loaded.config == models.ModelConfig(
        resolution=32, channels=3, num_classes=3, z_dim=12, channel_base=256, channel_max=16, mapping_layers=3,
        mapping_lr=0.01, discriminator_mapping_layers=2, stddev_group=2, stddev_features=2, w_avg_decay=0.998,
    )  # fmt: skip


def test_loading_draws_no_random_numbers(files):
    before = torch.get_rng_state()
    load_official(files["ada"][2])
    assert torch.equal(torch.get_rng_state(), before)


def without_attributes(saved: official.Saved):
    saved.attributes = {}
    for module in saved.modules.values():
        without_attributes(module)


@pytest.mark.parametrize(
    ("flat", "more", "clamp"),
    [(False, {}, None), (True, {}, 256.0), (False, {"conv_clamp": 256}, 256.0), (True, {"conv_clamp": None}, None)],
)
def test_the_clamp_comes_from_the_options_if_layers_lack_it(tmp_path, flat, more, clamp):
    """The two repositories have different defaults."""
    sizes = Sizes(img_resolution=8, flat=flat)
    content = {"G_ema": official.generator(sizes, **more), "D": official.discriminator(sizes, **more)}
    for saved in content.values():
        without_attributes(saved)
    assert load_official(write(tmp_path / "file.pkl", content)).config.conv_clamp == clamp


def test_frozen_layers_are_loaded(tmp_path):
    sizes = Sizes(img_resolution=8)
    content = snapshot(sizes)
    for part in ("conv0", "fromrgb"):
        content["D"].modules["b8"].modules[part].freeze()
    content["D"].kwargs["block_kwargs"]["freeze_layers"] = 2
    discriminator = load_official(write(tmp_path / "file.pkl", content)).discriminator
    image = inputs(sizes)[2]
    close(discriminator(image), logits_of(image, None, content["D"].tensors(), sizes), 1e-5)


@pytest.mark.parametrize("broken", ["D", "G"])
def test_drawing_reads_the_ema_alone(tmp_path, broken):
    """Damaged or unsupported other networks do not matter."""
    content = snapshot(Sizes(img_resolution=8))
    content[broken].modules.popitem()
    path = write(tmp_path / "file.pkl", content)
    assert fastgan.load(path, "cpu").sample(1).shape == (1, 3, 8, 8)
    with pytest.raises(UserError, match=rf"tensor {broken}\."):
        load_official(path)


@pytest.mark.parametrize(("flat", "given", "decay"), [(True, None, 0.998), (False, None, 0.995), (True, 0.99, 0.99)])
def test_the_mean_of_w_decays_as_in_its_repository(tmp_path, flat, given, decay):
    content = snapshot(Sizes(img_resolution=8, flat=flat))
    for name in ("G", "G_ema"):
        if given:
            content[name].kwargs["mapping_kwargs"]["w_avg_beta"] = given
    generator = load_official(write(tmp_path / "file.pkl", content)).generator.train()
    before, z = generator.mapping.w_avg.clone(), torch.randn(4, 12)
    w = generator.mapping(z).detach()
    close(generator.mapping.w_avg, before * decay + w.mean(0) * (1 - decay))


def test_options_of_labels_mean_nothing_without_classes(tmp_path):
    content = snapshot(Sizes(img_resolution=8))
    content["D"].kwargs |= {"cmap_dim": 7}
    content["D"].kwargs["mapping_kwargs"] |= {"embed_features": 5, "layer_features": 6}
    assert load_official(write(tmp_path / "file.pkl", content)).discriminator is not None


def test_a_file_may_hold_the_ema_alone(tmp_path):
    path = write(tmp_path / "file.pkl", {"G_ema": official.generator(Sizes(img_resolution=8)), "D": None})
    loaded = load_official(path)
    assert loaded.generator is None and loaded.discriminator is None and loaded.ema is not None


# ------------------------------------------------------------------------------------------------------------ and back


def test_exported_networks_have_the_official_names_and_numbers(case):
    _, content, path = case
    loaded = load_official(path)
    for network, name in ((loaded.generator, "G"), (loaded.ema, "G_ema"), (loaded.discriminator, "D")):
        expected, exported = content[name].tensors(), official_state_dict(network)
        assert exported.keys() == expected.keys()
        assert all(torch.equal(exported[key], expected[key]) for key in expected)
        assert all(value.is_contiguous() for value in exported.values())


def test_a_network_of_fastgan_is_exported(tmp_path):
    config = models.ModelConfig(resolution=16, channels=3, num_classes=2, z_dim=12, channel_base=256, channel_max=16)
    generator, discriminator = models.build(config)
    sizes = Sizes(
        img_resolution=16,
        c_dim=2,
        num_layers=config.mapping_layers,
        lr_multiplier=config.mapping_lr,
        discriminator_layers=0,
    )
    z, label, image = inputs(sizes)
    expected = image_of(z, label, official_state_dict(generator), sizes)
    close(generator(z, label, noise="const"), expected, 1e-5)
    close(discriminator(image, label), logits_of(image, label, official_state_dict(discriminator), sizes), 1e-5)


def test_only_stylegan2_is_exported():
    generator, _ = models.build(models.ModelConfig(arch="stylegan", resolution=8, channel_base=64, channel_max=8))
    with pytest.raises(TypeError, match="is not a network of fastgan"):
        official_state_dict(generator)


def test_only_square_images_are_exported():
    for network in models.build(models.ModelConfig(resolution=8, base_size=(4, 5), channel_base=64, channel_max=8)):
        with pytest.raises(ValueError, match="square images only"):
            official_state_dict(network)


# ---------------------------------------------------------------------------------------- what fastgan does not contain


def changed(change):
    content = snapshot(Sizes(img_resolution=8))
    change(content)
    return content


def ema_options(**options):
    return lambda content: content["G_ema"].kwargs["synthesis_kwargs"].update(options)


def discriminator_options(**options):
    return lambda content: content["D"].kwargs.update(options)


def remove(content, path, kind, name):
    module = content
    for part in path.split("."):
        module = module[part] if isinstance(module, dict) else module.modules[part]
    del getattr(module, kind)[name]


STRANGE = {
    "architecture": (
        ema_options(architecture="dense"),
        "G_ema with architecture dense, which fastgan does not support",
    ),
    "another architecture than its tensors": (
        discriminator_options(architecture="skip"),
        "lacks the tensor D.b4.fromrgb.weight",
    ),
    "activation": (ema_options(activation="relu"), "G_ema with activation relu"),
    "noise": (ema_options(use_noise=2), "G_ema with use_noise 2"),
    "filter": (ema_options(resample_filter=[1, "2"]), "G_ema with resample_filter a list, which must be a list of"),
    "filter of no sum": (ema_options(resample_filter=[1, -1]), "with a sum other than 0"),
    "uneven filter": (ema_options(resample_filter=[[1, 2], [1]]), "must be a list of at most 64 numbers"),
    "another filter than its tensors": (ema_options(resample_filter=[1, 2, 1]), "another filter in G_ema.synthesis.b"),
    "no mean of w": (
        lambda c: c["G_ema"].kwargs["mapping_kwargs"].update(w_avg_beta=None),
        "G_ema with w_avg_beta None, which must be a number above 0 and at most 1",
    ),
    "other option": (ema_options(novelty=1), "G_ema with novelty 1, which fastgan's networks do not have"),
    "other widths than its tensors": (discriminator_options(channel_max=8), "but its options give"),
    "channels differ": (
        discriminator_options(img_channels=1),
        "channels 1 in D and 3 in G_ema; fastgan has one value for both",
    ),
    "no group": (discriminator_options(epilogue_kwargs={"mbstd_group_size": 0}), "D with mbstd_group_size 0"),
    "4x4": (lambda c: (c["G_ema"].kwargs.update(img_resolution=4), c.pop("D")), "a power of two from 8"),
    "a bomb of layers": (
        lambda c: c["G_ema"].kwargs["mapping_kwargs"].update(num_layers=10**6),
        "G_ema with mapping_kwargs.num_layers 1000000",
    ),
    "wider than its tensors": (lambda c: c["G_ema"].kwargs.update(z_dim=13, w_dim=13), "but its options give"),
    "another generator": (
        lambda c: c["G_ema"].modules["synthesis"].modules.clear(),
        "a G_ema that is not a StyleGAN2",
    ),
    "tensor missing": (
        lambda c: remove(c, "G_ema.synthesis.b8.conv1", "parameters", "weight"),
        "lacks the tensor G_ema.synthesis.b8.conv1.weight",
    ),
    "tensor too many": (
        lambda c: c["D"].modules["b4"].parameters.update(extra=torch.zeros(1)),
        "the tensor D.b4.extra, which",
    ),
    "another filter in it": (
        lambda c: c["D"].modules["b8"].buffers.update(resample_filter=torch.ones(4, 4)),
        "another filter in D.b8.resample_filter than the options of G_ema",
    ),
    "a name of two lines": (
        lambda c: c["D"].modules["b4"].parameters.update({"one\ntwo": torch.zeros(1)}),
        "the tensor D.b4.one?two, which",
    ),
    "no average": (lambda c: c.pop("G_ema"), "has no G_ema"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_unsupported_networks_are_refused_in_one_line(tmp_path, strange):
    change, says = STRANGE[strange]
    path = write(tmp_path / "file.pkl", changed(change))
    with pytest.raises(UserError) as error:
        load_official(path)
    assert says in str(error.value) and str(error.value).startswith(f"{path} ") and "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------- nothing is ever executed


@pytest.fixture
def mark(tmp_path):
    """The file that hostile pickles try to create; it must not exist after the test."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


class Calling:
    """Calls `function` when it is unpickled."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def tensor_bytes() -> bytes:
    """A storage of three numbers as torch.save writes it inside a tensor's pickle."""
    instructions = pickletools.genops(pickle.dumps(torch.ones(3), 4))
    return next(argument for _, argument, _ in instructions if isinstance(argument, bytes))


def saved_bytes(content) -> bytes:
    """Another object in the same format."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"  # STACK_GLOBAL


def nested(content: bytes) -> bytes:
    """A pickle that builds a storage from bytes."""
    return name("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", len(content)) + content + b"\x85R."


def memory_bytes(count=3, keys=("0",), numbers=bytes(12), described=None) -> bytes:
    """A storage of `count` fp32 numbers as torch.save writes it, with another end."""
    front = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    size = b"\x8a\x09" + count.to_bytes(9, "little")
    memory = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + size + b"NtQ."
    behind = pickle.dumps(list(keys), 2), struct.pack("<q", count), numbers
    return b"".join((*front, described or memory, *behind))


def tensor_of(offset: int, size: tuple, stride: tuple) -> bytes:
    """A pickle of a tensor in a storage of three numbers."""
    call = nested(tensor_bytes())[:-1]
    numbers = b"".join(integers(each) for each in (offset, size, stride))
    return b"\x80\x04" + name("torch._utils", "_rebuild_tensor_v2") + b"(" + call + numbers + b"\x89}tR."


def integers(value) -> bytes:
    if isinstance(value, tuple):
        return b"(" + b"".join(map(integers, value)) + b"t"
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


P4 = b"\x80\x04"
HOSTILE = {
    "os.system": (lambda m: pickle.dumps({"G_ema": Calling(os.system, f"touch {m}")}), "asks for posix.system"),
    "eval": (lambda m: pickle.dumps(Calling(eval, f"open({str(m)!r}, 'w')")), "asks for builtins.eval"),
    "exec, protocol 2": (lambda m: pickle.dumps(Calling(exec, "0"), 2), "asks for __builtin__.exec"),
    "getattr": (lambda m: pickle.dumps(Calling(getattr, "a", "upper")), "asks for builtins.getattr"),
    "an attribute of a known name": (
        lambda m: P4 + name("builtins", "dict.fromkeys") + b")R.",
        "asks for builtins.dict.fromkeys",
    ),
    "a name over two lines": (lambda m: P4 + name("os\nerror", "x\r\x1b[2J") + b")R.", "asks for os?error.x??[2J"),
    "TensorFlow": (lambda m: P4 + name("dnnlib.tflib.network", "Network") + b".", "of the TensorFlow version"),
    "protocol 0": (lambda m: pickle.dumps(Calling(os.system, f"touch {m}"), 0), "the instruction PUT"),
    "INST": (lambda m: f"(S'touch {m}'\nios\nsystem\n.".encode(), "the instruction STRING"),
    "INST alone": (lambda m: b"(ios\nsystem\n.", "the instruction INST"),
    "OBJ": (lambda m: P4 + b"(" + name("builtins", "set") + b"o.", "the instruction OBJ"),
    "NEWOBJ": (lambda m: P4 + name("builtins", "set") + b")\x81.", "builds an object that is not a dict"),
    "NEWOBJ_EX": (lambda m: P4 + name("builtins", "set") + b")}\x92.", "builds an object that is not a dict"),
    "persistent id": (lambda m: b"Pos\n.", "the instruction PERSID"),
    "persistent id of an object": (lambda m: P4 + text("x") + b"Q.", "the instruction BINPERSID"),
    "extension registry": (lambda m: P4 + b"\x82\x01.", "the instruction EXT1"),
    "BUILD on a function": (
        lambda m: P4 + name("torch.storage", "_load_from_bytes") + b"}" + text("__defaults__") + b")sb.",
        "sets the attributes of an object",
    ),
    "BUILD on a dict": (lambda m: P4 + b"}(}}tb.", "sets the attributes of an object"),
    "call of a string": (lambda m: P4 + text("os.system") + b")R.", "calls something that is not a function"),
    "call of what a call made": (lambda m: P4 + name("collections", "OrderedDict") + b")R)R.", "not a function"),
    "arguments that are no tuple": (lambda m: P4 + name("collections", "OrderedDict") + b"]R.", "a tuple belongs"),
    "a dict with arguments": (lambda m: P4 + name("dnnlib.util", "EasyDict") + b"]\x85R.", "builds a dict in another"),
    "not enough arguments": (lambda m: P4 + name("numpy", "dtype") + b")R.", "truncated, damaged"),
    "no module": (
        lambda m: P4 + name("torch_utils.persistence", "_reconstruct_persistent_obj") + b"}\x85R.",
        "describes a module in another way",
    ),
    "in a tensor": (
        lambda m: P4 + nested(saved_bytes(Calling(os.system, f"touch {m}"))),
        "a tensor that is damaged, or that is not plain numbers",
    ),
    "in a tensor, unframed": (
        lambda m: P4 + nested(pickle.dumps(Calling(os.system, f"touch {m}"), 2)),
        "a tensor that is damaged",
    ),
    "memory that nothing fills": (
        lambda m: P4 + nested(memory_bytes(count=2**40, keys=[], numbers=b"")),
        "a tensor that is damaged",
    ),
    "memory of another size": (lambda m: P4 + nested(memory_bytes(count=4)), "a tensor that is damaged"),
    "memory of another key": (lambda m: P4 + nested(memory_bytes(keys=["1"])), "a tensor that is damaged"),
    "a call in a tensor": (
        lambda m: P4 + nested(memory_bytes(described=b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.")),
        "a tensor that is damaged",
    ),
    "a tensor's archive": (lambda m: P4 + nested(b"PK\3\4" + bytes(100)), "a tensor that is damaged"),
    "a tensor of strings": (lambda m: P4 + nested(saved_bytes({"a": "b"})), "not plain numbers"),
    "a deep tensor": (
        lambda m: P4 + nested(saved_bytes({str(i): i for i in range(999)})),
        "not plain numbers",
    ),
    "half a tensor": (lambda m: P4 + nested(tensor_bytes()[:-5]), "a tensor that is damaged"),
    "larger than its storage": (lambda m: tensor_of(0, (4,), (1,)), "larger than its storage"),
    "beyond its storage": (lambda m: tensor_of(1, (3,), (1,)), "larger than its storage"),
    "the same number many times": (lambda m: tensor_of(0, (10**6,), (0,)), "larger than its storage"),
    "before its storage": (lambda m: tensor_of(-1, (1,), (1,)), "of an invalid shape"),
    "backwards": (lambda m: tensor_of(2, (3,), (-1,)), "of an invalid shape"),
    "nothing": (lambda m: b"", "truncated, damaged"),
    "an image": (lambda m: b"\xff\xd8\xff\xe0" + bytes(100), "truncated, damaged"),
    "a stack of two": (lambda m: P4 + b"NN.", "truncated, damaged"),
    "a mark": (lambda m: P4 + b"(R.", "lacks its operands"),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_executes_nothing(tmp_path, mark, hostile):
    make, says = HOSTILE[hostile]
    path = tmp_path / "file.pkl"
    path.write_bytes(make(mark))
    with pytest.raises(UserError) as error:
        load_official(path)
    assert says in str(error.value) and str(error.value).startswith(f"{path} ") and str(error.value).isprintable()
    assert str(error.value).endswith("nothing in the file was executed")


UNKEPT = {
    "keys that hash without end": b"})" + 20_000 * b"\x85" + b"Ns.",
    "numbers with the same hash": b"}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"Ns.",
    "members": name("builtins", "set") + b"](K\x01\x85\x85K\x01\x85e\x85R.",
}


@pytest.mark.parametrize("unkept", UNKEPT)
def test_keys_that_may_collide_are_dropped(tmp_path, unkept):
    path = tmp_path / "file.pkl"
    path.write_bytes(P4 + UNKEPT[unkept])
    assert len(unpickling.load(path)) == 0


class OfAFork:
    """A class that only a fork has."""

    def __init__(self):
        self.kimg, self.best = 25_000, {"fid": 2.8}


def progress(dtype: torch.dtype) -> dict:
    """Objects that a fork may add to its files."""
    return {
        "cur_nimg": torch.tensor([25_000], dtype=torch.int64),
        "tensor": torch.ones(3).to(dtype),
        "array": np.arange(6, dtype=np.float64).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "objects": np.array(["a", None], dtype=object),
        "texts": np.array(["a", "b"]),
        "scalars": [np.float32(1), np.datetime64("2026-01-01"), np.bool_(True)],
        "bytes": [b"", b"\xff", bytearray(b"ab")],
        "date": datetime.datetime(2026, 1, 1),
        "path": PurePosixPath("a/b"),
        "object": OfAFork(),
        "class": OfAFork,
        "keys": {(1, 2): 0.5, 0.5: None, frozenset("a"): 1},
        "device": torch.device("cpu"),
        "ordered": collections.OrderedDict(a=collections.Counter("aab")),
        "range": range(3),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_additions_of_forks_are_ignored(tmp_path, protocol):
    """Protocol 2 stores bytes, and so tensors, in its own way."""
    dtypes = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool, torch.complex64, torch.uint16]
    sizes = Sizes(img_resolution=8)
    content = {"progress": [progress(dtype) for dtype in dtypes]} | snapshot(sizes)
    content["G_ema"].attributes["augmentation"] = np.ones(3)
    loaded = load_official(write(tmp_path / "file.pkl", content, protocol))
    z, *_ = inputs(sizes)
    close(loaded.ema(z, noise="const"), image_of(z, None, content["G_ema"].tensors(), sizes), 1e-5)


def test_parameters_may_have_attributes(tmp_path):
    """PyTorch pickles parameters with attributes, which forks add, by another function."""
    path, weight = tmp_path / "file.pkl", torch.nn.Parameter(torch.randn(3))
    weight.learning_rate = 0.1
    path.write_bytes(pickle.dumps({"weight": weight}, 4))
    assert torch.equal(unpickling.load(path)["weight"], weight)


def test_pythons_unpickler_would_execute_such_a_file(tmp_path):
    made = tmp_path / "made"
    pickle.loads(HOSTILE["os.system"][0](made))
    assert made.exists()


def test_tensors_cannot_be_multiplied(tmp_path):
    """Copying the same bytes again and again would fill the memory."""
    content = tensor_bytes()
    once = b"h\x00h\x01\x85R"
    head = name("torch.storage", "_load_from_bytes") + b"q\x00" + b"B" + struct.pack("<I", len(content)) + content
    path = tmp_path / "file.pkl"
    path.write_bytes(P4 + head + b"q\x01\x86" + 50 * once + b".")
    with pytest.raises(UserError, match="builds tensors or sets larger than the file"):
        load_official(path)


def test_sets_cannot_be_multiplied(tmp_path):
    """Likewise for sets built from one list."""
    head = name("builtins", "set") + b"q\x00](" + b"".join(text(f"{i}") for i in range(500)) + b"eq\x01"
    path = tmp_path / "file.pkl"
    path.write_bytes(P4 + head + b"\x86" + 50 * b"h\x00h\x01\x85R" + b".")
    with pytest.raises(UserError, match="builds tensors or sets larger than the file"):
        load_official(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_storages_are_read_as_torch_saves_them(tmp_path, dtype):
    path = tmp_path / "file.pkl"
    values = torch.randn(3, 4).to(dtype)
    path.write_bytes(pickle.dumps({"some": values.t()[1:], "none": values[:0]}, 4))
    loaded = unpickling.load(path)
    for name, expected in (("some", values.t()[1:]), ("none", values[:0])):
        torch.testing.assert_close(loaded[name], expected, rtol=0, atol=0, check_stride=True)


def test_a_file_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickling, "MAX_INSTRUCTIONS", 1000)
    path = tmp_path / "file.pkl"
    path.write_bytes(P4 + 1001 * b"N" + b".")
    with pytest.raises(UserError, match="far more instructions than any network file"):
        load_official(path)


def test_a_network_that_contains_itself_is_refused(tmp_path):
    content = snapshot(Sizes(img_resolution=8))
    block = content["G_ema"].modules["synthesis"].modules["b8"]
    block.modules["again"] = block.modules["conv0"]
    with pytest.raises(UserError, match="contains itself, or one module twice"):
        load_official(write(tmp_path / "file.pkl", content))


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_missing_file_is_one_line(tmp_path, what):
    path = tmp_path / "file.pkl"
    if what == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_official(path)


FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def refused_or_loaded(folder: Path, content: bytes) -> None:
    path = folder / "file.pkl"
    path.write_bytes(content)
    try:
        load_official(path)
    except UserError as error:
        assert str(error).isprintable()


@FEW
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "random.pkl"
    path.write_bytes(P4 + content)
    with pytest.raises(UserError):
        load_official(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "file.pkl"
    sizes = Sizes(img_resolution=8, channel_base=16, channel_max=2, z_dim=2, num_layers=1, mbstd_num_channels=1)
    return write(path, {"G_ema": official.generator(sizes)}).read_bytes()


@FEW
@given(st.randoms())
def test_a_damaged_file_is_refused_or_read(tmp_path_factory, small, rng):
    refused_or_loaded(tmp_path_factory.getbasetemp(), mutate(small, rng))


# ------------------------------------------------------------------------------------------------------- command lines


def error_of(command, argv, capsys):
    """The one line of its error."""
    capsys.readouterr()
    assert command([str(each) for each in argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and " images/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


def test_generate_draws_from_an_official_file(files, tmp_path, capsys):
    _, _, path = files["stylegan3, with classes"]
    out = tmp_path / "images"
    assert generate(["--checkpoint", str(path), "--seeds", "0-1", "--classes", "2", "--out", str(out)]) == 0
    assert [each.name for each in sorted(out.iterdir())] == ["class02-2-seed0000.png", "class02-2-seed0001.png"]
    assert generate(["mix", "--checkpoint", str(path), "--seeds", "0", "--out", str(tmp_path / "mix.png")]) == 0
    error = error_of(generate, ["--checkpoint", path, "--classes", "3"], capsys)
    assert "there is no class '3'; there are 0, 1, 2" in error


def test_a_sampler_and_an_export_are_made_of_an_official_file(files, tmp_path):
    """Both draw the images of `fastgan generate`."""
    _, _, path = files["stylegan3, with classes"]
    sampler = fastgan.load(path, "cpu", batch=1)
    images = sampler.sample(seeds=[0, 1], classes=[2, 2]).permute(0, 2, 3, 1).numpy()
    out = tmp_path / "images"
    assert generate(["--checkpoint", str(path), "--seeds", "0-1", "--classes", "2", "--out", str(out)]) == 0
    for seed, image in enumerate(images):
        drawn = np.asarray(Image.open(out / f"class02-2-seed{seed:04d}.png"))
        np.testing.assert_array_equal(drawn.reshape(image.shape), image)
    assert sampler.class_names == ["0", "1", "2"]
    assert export(["--checkpoint", str(path), "--format", "torch", "--out", str(tmp_path / "generator.pt2")]) == 0


def test_generate_refuses_a_hostile_file(tmp_path, mark, capsys):
    path = tmp_path / "file.pkl"
    path.write_bytes(HOSTILE["os.system"][0](mark))
    assert "asks for posix.system" in error_of(generate, ["--checkpoint", path], capsys)


TINY = Sizes(
    img_resolution=8, img_channels=1, c_dim=2, z_dim=6, channel_base=64, channel_max=8, mbstd_group_size=8,
    discriminator_layers=2, architecture="orig",
)  # fmt: skip
# Steps too small to change anything: what is saved is what was loaded.
STILL = ["--lr-g", "1e-30", "--lr-d", "1e-30", "--ema-halflife", "1e30"]


def options(folder, out, *more):
    return [
        *("--data", str(folder), "--out", str(out), "--resolution", "8", "--batch", "8", "--images", "8"),
        *("--threads", "1", "--no-tensorboard", "--grid-interval", "0", "--r1-interval", "1", *map(str, more)),
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny") / "file.pkl", snapshot(TINY))


@pytest.fixture(scope="module")
def run(folder, tiny, tmp_path_factory):
    """A training from an official file."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert train(options(folder, out, "--init-from", tiny, *STILL)) == 0
    return out


def test_a_training_starts_with_an_official_file(run, tiny):
    ours, theirs = tensors(run), load_official(tiny)
    for name in ("generator", "discriminator", "ema"):
        for key, value in getattr(theirs, name).state_dict().items():
            if not key.endswith("w_avg"):
                assert (ours[f"{name}.{key}"] == value.numpy()).all(), (name, key)
    header = checkpoint.read_header(run)
    assert header.model == theirs.config
    network = header.config.network
    assert (network.z_dim, network.mapping_layers, network.discriminator_mapping_layers) == (6, 3, 2)
    assert header.config.training.init_from == str(tiny) and header.config.training.ema_rampup == 0


def test_such_a_training_is_resumed_and_started_from(run, folder, tmp_path, capsys):
    assert train(["--resume", str(run), "--images", "16"]) == 0
    assert train(options(folder, tmp_path / "next", "--init-from", run, *STILL)) == 0
    before, after = tensors(run), tensors(tmp_path / "next")
    networks = [
        name for name in before if name.split(".")[0] in ("generator", "discriminator", "ema") and "w_avg" not in name
    ]
    assert networks and all((before[name] == after[name]).all() for name in networks)
    assert checkpoint.read_header(tmp_path / "next").step == 1
    error = error_of(train, ["--resume", run, "--init-from", run, "--images", "24"], capsys)
    assert error.startswith(f"--init-from {run}: ")


UNFIT = {
    "architecture": (["--arch", "r3gan"], "--arch r3gan: the networks of --init-from {file} are stylegan2; give that"),
    "batch": (
        ["--batch", "12"],
        "--batch 12: must be a multiple of 8, as the discriminator compares groups of 8 images",
    ),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_networks_that_do_not_fit_are_one_line(folder, tiny, tmp_path, capsys, unfit):
    given, says = UNFIT[unfit]
    argv = [*options(folder, tmp_path / "run", "--init-from", tiny), *given]
    assert error_of(train, argv, capsys).startswith(says.format(file=tiny))
    assert not (tmp_path / "run").exists()


def test_growing_networks_start_at_full_size():
    model = models.ModelConfig(arch="pggan", resolution=8, channel_base=64, channel_max=8, z_dim=8)
    given = configure.parse(["--arch", "pggan", "--resolution", "8", "--loss", "wgan-gp"])
    start = initial.InitialNetworks(Path("file"), model, {})
    assert configure.resolve(start.fill_auto(given)).growth.grow_from == 0
    given = configure.parse(["--arch", "pggan", "--resolution", "8", "--grow-from", "4"])
    assert configure.resolve(start.fill_auto(given)).growth.grow_from == 4


def test_a_process_has_a_share_of_the_batch():
    config = configure.resolve(configure.parse(["--resolution", "8", "--batch", "48"]))
    configure.check_groups(config, 8, 1)
    configure.check_groups(config, 8, 8)  # less than a group each
    configure.check_groups(config, None, 16)
    with pytest.raises(
        UserError, match="--batch 48: must be a multiple of 8 for each of 4 processes, as the discriminator"
    ):
        configure.check_groups(config, 8, 4)


def test_a_resumed_training_has_the_groups_of_its_networks(folder, tiny, tmp_path, capsys):
    """The official file has groups of 8; fresh networks have 4."""
    out = tmp_path / "run"
    assert train([*options(folder, out, "--init-from", tiny), "--batch", "24", "--images", "24"]) == 0
    error = error_of(train, ["--resume", out, "--images", "48", "--batch-gpu", "12"], capsys)
    assert error == "--batch-gpu 12: must be a multiple of 8, as the discriminator compares groups of 8 images"


def test_networks_of_images_that_are_not_square_start_with_any_images():
    model = models.ModelConfig(resolution=32, base_size=(4, 8), channel_base=64, channel_max=8)
    start = initial.InitialNetworks(Path("file"), model, {})
    for resolution, first in {"64x32": (4, 8), "32x64": (8, 4), "32": (4, 4)}.items():
        config = configure.resolve(start.fill_auto(configure.parse(["--resolution", resolution])))
        assert start.model_config(config, 0) == dataclasses.replace(model, base_size=first)


def test_half_grown_networks_are_no_start(folder, run, monkeypatch):
    header = dataclasses.replace(checkpoint.read_header(run), stage=(4, 1.0))
    monkeypatch.setattr(checkpoint, "read_header", lambda path: header)
    with pytest.raises(UserError, match=r"has grown to 4x4 only; go on with it by --resume first"):
        initial.read(str(run))


def test_a_file_without_a_discriminator_cannot_be_trained(folder, tmp_path, capsys):
    path = write(tmp_path / "file.pkl", {"G_ema": official.generator(TINY)})
    error = error_of(train, options(folder, tmp_path / "run", "--init-from", path), capsys)
    assert error == f"{path} has no D: a training needs a discriminator as well"


def test_a_hostile_file_starts_no_training(folder, tmp_path, mark, capsys):
    path = tmp_path / "file.pkl"
    path.write_bytes(HOSTILE["os.system"][0](mark))
    error = error_of(train, options(folder, tmp_path / "run", "--init-from", path), capsys)
    assert "asks for posix.system" in error and not (tmp_path / "run").exists()
