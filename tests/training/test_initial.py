"""`--init-from`: starting with trained networks, also of other sizes, and frozen layers."""

import dataclasses
import re

import pytest
import torch

from fastgan import models
from fastgan.cli.train import main as train
from fastgan.errors import UserError
from fastgan.runs import checkpoint
from fastgan.training import configure, initial
from fastgan.training.state import new_state
from tests.support.tiny_run import arguments, assert_same_checkpoint, tensors, untrained
from tests.support.tiny_run import train as train_tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]

SIZES = {"resolution": 16, "channel_base": 128, "channel_max": 8, "z_dim": 8}
PARTS = ("mapping.embed", "mapping.layers.0")


def state_of(model: models.ModelConfig, seed: int = 0, *given: str) -> checkpoint.State:
    torch.manual_seed(seed)
    argv = ["--arch", model.arch, "--resolution", str(model.resolution), *given]
    state = new_state(model, configure.resolve(configure.parse(argv)), torch.device("cpu"))
    for module in (state.generator, state.discriminator, state.ema):  # nothing is equal by chance, not even zeros
        for value in module.state_dict().values():
            torch.nn.init.normal_(value) if value.is_floating_point() else value.fill_(seed)
    return state


def contents(state: checkpoint.State) -> dict[str, torch.Tensor]:
    networks = ((name, state.modules()[name]) for name in checkpoint.NETWORKS)
    return {f"{name}.{key}": value.clone() for name, each in networks for key, value in each.state_dict().items()}


def started(there: models.ModelConfig, here: models.ModelConfig):
    """Copied tensors, tensors before and after, and the printed line about fresh ones."""
    given, state = contents(state_of(there, 1)), state_of(here, 2)
    before = contents(state)
    says = initial.InitialNetworks("file", there, dict(given)).copy_into(state, here)
    after = contents(state)
    for name, value in after.items():  # nothing is made up
        assert any(torch.equal(value, each) for each in (before[name], *given.values()))
    return given, before, after, says


MODEL = {
    "stylegan2": {"discriminator_mapping_layers": 1},
    "stylegan2 skip": {"generator_architecture": "orig", "discriminator_architecture": "skip"},
    "stylegan": {},
    "pggan": {},
    "r3gan": {},
    "fastgan": {"channel_base": 256},  # whose widths at a resolution are those of others at twice as many pixels
    "dcgan": {},
    "dcgan upsample": {"variant": "upsample"},
    "cgan": {"num_classes": 3},
    "cgan mlp": {"num_classes": 3, "variant": "mlp"},
    "mlp": {},
}


def model_of(name: str, **options) -> models.ModelConfig:
    return models.ModelConfig(**{**SIZES, "arch": name.split()[0], **MODEL[name], **options})


@pytest.mark.parametrize("name", MODEL)
def test_all_tensors_of_equal_networks_are_copied(name):
    given, _, after, says = started(model_of(name), model_of(name))
    assert says is None and given.keys() == after.keys()
    assert all(torch.equal(value, given[name]) for name, value in after.items())


# Tensors of networks for 16x16 and their names in networks for 32x32, and tensors that are initialized anew.
RESOLUTIONS = {
    "stylegan2": (
        {
            "discriminator.blocks.0.conv.weight": "discriminator.blocks.1.conv.weight",
            "discriminator.blocks.1.down.bias": "discriminator.blocks.2.down.bias",
            "discriminator.conv.weight": "discriminator.conv.weight",
            "ema.synthesis.up.1.conv.weight": "ema.synthesis.up.1.conv.weight",
        },
        "generator.synthesis.up.2, generator.synthesis.same.2, generator.synthesis.to_rgb.3, discriminator.from_rgb, "
        "discriminator.blocks.0",
    ),
    "stylegan2 skip": (  # whose discriminator looks at the image in every resolution
        {
            "discriminator.from_rgb.weight": "discriminator.from_smaller.0.weight",
            "discriminator.from_smaller.1.bias": "discriminator.from_smaller.2.bias",
            "generator.synthesis.same.1.conv.weight": "generator.synthesis.same.1.conv.weight",
        },
        "generator.synthesis.up.2, generator.synthesis.same.2, generator.synthesis.to_rgb, discriminator.from_rgb, "
        "discriminator.blocks.0",
    ),
    "pggan": (
        {
            "discriminator.blocks.1.conv.weight": "discriminator.blocks.1.conv.weight",
            "discriminator.from_rgb.2.bias": "discriminator.from_rgb.2.bias",
        },
        "generator.blocks.2, generator.to_rgb.3, discriminator.from_rgb.3, discriminator.blocks.2",
    ),
    "stylegan": (
        {"generator.layers.5.conv.weight": "generator.layers.5.conv.weight"},
        "generator.layers.6-7, generator.to_rgb.3, discriminator.from_rgb.3, discriminator.blocks.2",
    ),
    "r3gan": (  # the trunk is two blocks and one step to the next resolution, three times
        {
            "generator.trunk.7.group.weight": "generator.trunk.7.group.weight",
            "discriminator.trunk.0.group.weight": "discriminator.trunk.3.group.weight",
            "discriminator.trunk.7.group_bias": "discriminator.trunk.10.group_bias",
            "discriminator.head.weight": "discriminator.head.weight",
        },
        "generator.trunk.9-10, generator.to_rgb, discriminator.from_rgb, discriminator.trunk.0-1",
    ),
    "fastgan": (
        {
            name: name
            for name in (
                "generator.blocks.16.0.layer.parametrizations.weight.original",
                "discriminator.blocks.8.direct.norm.weight",
                "discriminator.out.parametrizations.weight.0.v",
            )
        },
        "generator.blocks.32, generator.excitations, generator.to_small, generator.to_image, discriminator.stem, "
        "discriminator.blocks.16, discriminator.excitations.8.squeeze.parametrizations.weight.original, "
        "discriminator.excitations.8.squeeze.parametrizations.weight.0.v, discriminator.small_stem, "
        "discriminator.decoder, discriminator.part_decoder, discriminator.small_decoder",
    ),
    "dcgan": (
        {
            "generator.layers.1.layer.weight": "generator.layers.1.layer.weight",
            "discriminator.layers.1.layer.weight": "discriminator.layers.2.layer.weight",
            "discriminator.out.weight": "discriminator.out.weight",
        },
        "generator.layers.2-3, discriminator.layers.0-1",
    ),
}


@pytest.mark.parametrize("name", RESOLUTIONS)
def test_layers_are_matched_by_their_resolution(name):
    moves, fresh = RESOLUTIONS[name]
    small, large = model_of(name), model_of(name, resolution=32, channel_base=256)
    given, before, after, says = started(small, large)
    for old, new in moves.items():
        assert torch.equal(after[new], given[old]), new
    assert says.partition("; fresh: ")[2] == fresh
    count, of = re.match(r"(\d+) of (\d+) tensors are those of file; fresh", says).groups()
    unchanged = [key for key in after if torch.equal(after[key], before[key])]
    assert (int(count), int(of)) == (len(after) - len(unchanged), len(after))
    assert {key.split(".")[0] for key in unchanged} == set(checkpoint.NETWORKS)
    # And back.
    given, _, after, _ = started(large, small)
    for old, new in moves.items():
        assert torch.equal(after[old], given[new]), old


OTHERS = {  # changed fields of the model, and the tensors that are then initialized anew
    "with classes": (
        "stylegan2", {}, {"num_classes": 3},
        "generator.mapping.embed, generator.mapping.layers.0.weight, "
        "discriminator.embed, discriminator.directions, discriminator.out",
    ),
    "without classes": (
        "stylegan2", {"num_classes": 3}, {"num_classes": 0}, "generator.mapping.layers.0.weight, discriminator.out",
    ),
    "more classes": (
        "stylegan2",
        {"num_classes": 3},
        {"num_classes": 4},
        "generator.mapping.embed.weight, discriminator.embed.weight",
    ),
    "deeper mapping": ("stylegan2", {}, {"mapping_layers": 4}, "generator.mapping.layers.2-3"),
    "colour": (
        "stylegan2", {}, {"channels": 3},
        "generator.synthesis.to_rgb.0-2.weight, generator.synthesis.to_rgb.0-2.bias, discriminator.from_rgb.weight",
    ),
    "wider at 4x4": ("pggan", {"channel_base": 32}, {"channel_base": 64}, None),
    "colour of pggan": (
        "pggan", {"channels": 3}, {"channels": 4},
        "generator.to_rgb, discriminator.from_rgb.0-2.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_tensors_that_do_not_fit_stay_fresh_and_are_named(other):
    name, there, here, fresh = OTHERS[other]
    given, before, after, says = started(model_of(name, **there), model_of(name, **there | here))
    for key, value in after.items():
        fits = key in given and given[key].shape == value.shape
        assert torch.equal(value, given[key] if fits else before[key]), key
    if fresh is not None:
        assert says.partition("; fresh: ")[2] == fresh


def test_another_mapping_lr_keeps_the_function_of_the_mapping_network():
    model = model_of("stylegan2", mapping_lr=0.01)
    faster = dataclasses.replace(model, mapping_lr=0.1)
    there, here = state_of(model, 1), state_of(faster, 2)
    initial.InitialNetworks("file", model, contents(there)).copy_into(here, faster)
    z = torch.randn(3, 8)
    torch.testing.assert_close(here.ema.styles(z), there.ema.styles(z))


def fitted(model: models.ModelConfig, *given: str) -> models.ModelConfig:
    start = initial.InitialNetworks("file", model, {})
    argv = ["--arch", model.arch, "--resolution", "16", *given]
    return start.model_config(configure.resolve(start.fill_auto(configure.parse(argv))), model.num_classes)


def test_given_sizes_apply_to_both_networks_and_others_stay():
    model = model_of(
        "stylegan2", discriminator_channel_base=256, discriminator_channel_max=16, discriminator_mapping_lr=0.5, w_dim=6
    )
    assert fitted(model) == fitted(model, "--channel-base", "128", "--z-dim", "8") == model
    wide = fitted(model, "--channel-base", "512", "--mapping-lr", "0.02")
    assert wide == dataclasses.replace(
        model, channel_base=512, mapping_lr=0.02, discriminator_channel_base=None, discriminator_mapping_lr=None
    )
    assert fitted(model, "--z-dim", "4") == dataclasses.replace(model, z_dim=4)


def test_another_z_dim_keeps_w_and_all_layers_after_it():
    model = model_of("stylegan2")
    _, _, _, says = started(model, fitted(model, "--z-dim", "4"))
    assert says.partition("; fresh: ")[2] == "generator.mapping.layers.0.weight"


def test_every_ema_starts_as_that_of_the_file():
    state = state_of(model_of("mlp"), 2, "--ema-halflife", "10", "5", "20")
    given = contents(state_of(model_of("mlp"), 1))
    initial.InitialNetworks("file", model_of("mlp"), dict(given)).copy_into(state, model_of("mlp"))
    for each in (state.ema, *state.other_emas):
        assert all(torch.equal(value, given[f"ema.{key}"]) for key, value in each.state_dict().items())
    assert len(state.other_emas) == 2


def test_networks_of_which_nothing_fits_are_refused():
    with pytest.raises(UserError, match="--init-from file: none of its weights fits these networks"):
        started(model_of("mlp", channel_max=4), model_of("mlp", channel_max=5, z_dim=3, resolution=8))


def test_a_damaged_checkpoint_is_refused(tmp_path, monkeypatch):
    """A tensor missing from the file is an error, not a fresh tensor."""
    run = untrained(tmp_path / "run", "dcgan")
    read = checkpoint._read
    without = lambda *given: {name: each for name, each in read(*given).items() if "out.bias" not in name}
    monkeypatch.setattr(checkpoint, "_read", without)
    with pytest.raises(UserError, match=r"tensor discriminator\.out\.bias missing"):
        initial.read(str(run))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return train_tiny(folder, tmp_path_factory.mktemp("run") / "run", "--labels", "False", "--images", "4")


def test_a_training_started_from_other_sizes_is_resumed(folder, run, tmp_path, capsys):
    """Other classes, colours and resolution at once; options override sizes of the file."""
    out = tmp_path / "next"
    more = ["--init-from", str(run), "--labels", "True", "--channels", "3", "--mapping-layers", "3", "--images", "4"]
    assert train([*arguments(folder, out, *more), "--lr-g", "1e-30", "--lr-d", "1e-30", "--ema-halflife", "1e30"]) == 0
    says = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("started "))
    assert re.search(rf"\d+ of \d+ tensors are those of {run}/checkpoint\.safetensors; fresh: ", says)
    for part in (*PARTS, "mapping.layers.2"):
        assert f"generator.{part}" in says
    before, after = tensors(run), tensors(out)
    kept = ("discriminator.conv.weight", "generator.synthesis.same.0.conv.weight", "ema.mapping.layers.1.bias")
    assert all((before[name] == after[name]).all() for name in kept)
    header = checkpoint.read_header(out)
    assert (header.model.num_classes, header.model.channels, header.model.mapping_layers) == (2, 3, 3)
    assert header.config.network.z_dim == 8
    assert train(["--resume", str(out), "--images", "8"]) == 0


def test_the_architecture_comes_from_the_file(tmp_path):
    """Unless an option names another one."""
    start = initial.InitialNetworks("file", model_of("r3gan", channel_max=16), {})
    given = configure.parse(["--resolution", "16"])
    assert configure.resolve(given).network.arch == "stylegan2"
    assert configure.resolve(start.fill_auto(given)).network.arch == "r3gan"


def test_a_training_of_the_same_sizes_prints_no_fresh_tensors(folder, run, tmp_path, capsys):
    train_tiny(folder, tmp_path / "next", "--init-from", str(run), "--labels", "False", "--images", "4")
    assert "started " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--arch", "r3gan"], "--arch r3gan: the networks of --init-from {run}/checkpoint.safetensors are stylegan2"),
        (["--channel-max", "64", "--channel-base", "4"], "channel_base is 4, must be at least"),
    ],
)
def test_impossible_options_are_errors_of_one_line(folder, run, tmp_path, capsys, given, says):
    capsys.readouterr()
    assert train([*arguments(folder, tmp_path / "next", "--init-from", str(run)), *given]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: " + says.format(run=run))
    assert not (tmp_path / "next").exists()


# Frozen layers -------------------------------------------------------------------------------------------------------

FREEZE = ["--labels", "False", "--freeze-d", "3", "--r1-interval", "1"]


OFFICIAL_ORDER = {  # of a discriminator for 16x16: fromrgb, conv0, conv1 and skip of b16 and b8
    "resnet": "from_rgb blocks.0.conv blocks.0.down blocks.0.skip blocks.1.conv blocks.1.down blocks.1.skip",
    "orig": "from_rgb blocks.0.conv blocks.0.down blocks.1.conv blocks.1.down",
    "skip": "from_rgb blocks.0.conv blocks.0.down from_smaller.0 blocks.1.conv blocks.1.down",
}


@pytest.mark.parametrize("architecture", OFFICIAL_ORDER)
def test_frozen_layers_are_counted_like_in_the_official_code(architecture):
    discriminator = models.build(model_of("stylegan2", discriminator_architecture=architecture))[1]
    names = {module: name for name, module in discriminator.named_modules()}
    assert " ".join(names[layer] for layer in discriminator.layers_from_image()) == OFFICIAL_ORDER[architecture]


def test_a_resumed_training_with_frozen_layers_is_bit_identical(folder, run, tmp_path, capsys):
    whole, half = tmp_path / "whole", tmp_path / "half"
    given = ["--init-from", str(run), *FREEZE, "--images"]
    train_tiny(folder, whole, *given, "16")
    train_tiny(folder, half, *given, "8")
    assert train(["--resume", str(half), "--images", "16"]) == 0
    assert_same_checkpoint(whole, half)
    before, after = tensors(run), tensors(whole)
    frozen = [
        f"discriminator.{name}"
        for name in ("from_rgb.weight", "from_rgb.bias", "blocks.0.conv.bias", "blocks.0.down.weight")
    ]
    assert all((before[name] == after[name]).all() for name in frozen)
    for name in ("discriminator.blocks.0.skip.weight", "discriminator.conv.bias", "generator.synthesis.const"):
        assert (before[name] != after[name]).any()
    moments = [name for name in after if name.startswith("optimizer_d.")]
    assert moments and not [
        name for name in moments if name.startswith(("optimizer_d.from_rgb", "optimizer_d.blocks.0.conv"))
    ]
    capsys.readouterr()
    assert train(["--resume", str(half), "--images", "24", "--freeze-d", "1"]) == 2
    assert "--freeze-d 1: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--freeze-d", "3"], "--freeze-d 3: is for trained networks; give them with --init-from"),
        (
            ["--init-from", "{run}", "--freeze-d", "5"],
            "--freeze-d 5: this discriminator has 4 layers to freeze; give at most 4",
        ),
        (["--init-from", "{run}", "--freeze-d", "-1"], "--freeze-d -1: must be at least 0"),
        (
            ["--init-from", "{run}", "--channels", "3", "--freeze-d", "1"],
            "--freeze-d: would keep discriminator.from_rgb.weight as it is, "
            "which --init-from {run}/checkpoint.safetensors",
        ),
    ],
)
def test_layers_that_cannot_be_frozen(folder, run, tmp_path, capsys, given, says):
    capsys.readouterr()
    argv = arguments(folder, tmp_path / "next", "--labels", "False", *(each.format(run=run) for each in given))
    assert train(argv) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: " + says.format(run=run))
    assert not (tmp_path / "next").exists()


def test_layers_that_grow_cannot_be_frozen():
    argv = ["--arch", "pggan", "--grow-from", "4", "--init-from", "run", "--freeze-d", "2"]
    with pytest.raises(UserError, match="--freeze-d 2: the layers of networks that grow must learn"):
        configure.resolve(configure.parse(argv))
