"""`--recipe auto`: the table, its page, and what a user's options change."""

import re
from pathlib import Path

import pytest

from fastgan.runs.config import options
from fastgan.training import configure, recommended
from fastgan.training.recommended import CASES, Machine, case_for, choose, micro_batch

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
IMAGES, SIDES, MACHINES = (500, 5_000, 100_000), (32, 64, 256, 1024), {"CPU": Machine(), "GPU, 24 GB": Machine(24)}
# Options in the page's table.
IN_TABLE = (
    "--arch",
    "--discriminator",
    "--channel-base",
    "--batch ",
    "--r1-gamma",
    "--augment",
    "--variant",
    "--images",
    "--minutes",
)


@pytest.fixture(autouse=True)
def every_extra(monkeypatch):
    """As if all extras were installed."""
    monkeypatch.setattr(recommended, "has_pretrained_network", lambda: True)


def chosen(*argv: str, images: int = 500, machine: Machine = MACHINES["GPU, 24 GB"]):
    command = configure.parse_command(list(argv))
    config, lines = choose(command.config, command.given, images, machine)
    return options(configure.resolve(config)), lines


def table() -> list[str]:
    """Rows of the page: each number of images, resolution and machine."""
    rows = []
    for machine, about in MACHINES.items():
        for side in SIDES:
            found = {}
            for images in IMAGES:
                argv = ["--data", "x", "--resolution", str(side), "--channels", "3"]
                _, lines = chosen(*argv, images=images, machine=about)
                words = [line.strip().partition("  ")[0] for line in lines[1:] if line.strip().startswith(IN_TABLE)]
                case = case_for(images, side, about, configure.parse(argv))
                found.setdefault((f"`{' '.join(words)}`", case.why), []).append(images)
            for (words, why), of in found.items():
                sizes = ["under 2,000", "2,000 to 20,000", "more"][IMAGES.index(of[0]) : IMAGES.index(of[-1]) + 1]
                rows.append(
                    f"| {machine} | {side} | {'any' if len(sizes) == 3 else ', '.join(sizes)} | {words} | {why} |"
                )
    return rows


def test_the_page_has_the_table():
    assert re.findall(r"^\| (?:CPU|GPU).*$", PAGE.read_text(), re.M) == table(), "\n".join(table())


def test_the_page_begins_with_the_line_for_500_photographs_and_a_gpu():
    start = PAGE.read_text().split("\n## ")[0]
    (command,) = re.findall(r"^fastgan train (.*)$", start, re.M)
    given = configure.parse_command(command.split())
    assert given.recipe == "auto" and "500 photographs and one GPU" in start


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("images", [1, 2_000, 20_001])
@pytest.mark.parametrize("side", [8, 28, 64, 96, 256, 1024])
def test_every_situation_has_options_that_can_be_trained_with(images, side, machine):
    values, lines = chosen("--data", "x", "--resolution", str(side), "--channels", "3", images=images, machine=machine)
    assert not [name for name in ("arch", "batch", "images", "lr_g") if values[name] == "auto"]
    assert lines[0].startswith(f"recipe     for {images:,} images of {side}x{side} on a ")
    assert all(re.match(r"  --\S+.*  \S", line) for line in lines[1:])


def test_printed_options_are_those_of_the_training_and_can_be_typed():
    argv = ["--data", "x", "--resolution", "256", "--channels", "3"]
    values, lines = chosen(*argv, images=5_000)
    typed = " ".join(re.match(r"  (.*?)  ", line)[1] for line in lines[1:]).split()
    again = options(configure.resolve(configure.parse([*argv, *typed])))
    shown = [name for name in recommended.SHOWN if f"--{name.replace('_', '-')}" in typed]
    assert len(shown) > 6 and [again[name] for name in shown] == [values[name] for name in shown]


def test_few_photographs_on_a_gpu_take_the_family_for_few_images():
    values, lines = chosen("--data", "x", "--resolution", "256", "--channels", "3")
    assert (values["arch"], values["batch"], values["augment"]) == ("fastgan", 8, "diffaug")
    assert any("--arch fastgan" in line and "Liu et al. 2021" in line for line in lines)


def test_options_of_the_user_win():
    argv = ["--data", "x", "--resolution", "512", "--channels", "3"]
    values, lines = chosen(*argv, "--batch", "16", "--no-amp", "--minutes", "90", images=100_000)
    assert (values["batch"], values["amp"], values["minutes"], values["images"]) == (16, False, 90, 0)
    assert values["r1_gamma"] == 0.0002 * 512**2 / 16, "gamma follows the batch"
    assert [line.split()[-1] for line in lines if "--batch " in line or "--minutes" in line] == ["given", "given"]
    values, _ = chosen(*argv, "--r1-gamma", "3", "--augment", "none", "--batch-gpu", "4", images=100_000)
    assert (values["r1_gamma"], values["augment"], values["batch_gpu"]) == (3, "none", 4)


@pytest.mark.parametrize("argv", [["--arch", "dcgan"], ["--loss", "hinge"], ["--discriminator", "projected"]])
def test_a_choice_that_no_case_has_keeps_its_own_recipe(argv):
    data = ["--data", "x", "--resolution", "64", "--channels", "3"]
    values, _ = chosen(*data, *argv, images=100_000)
    plain = options(configure.resolve(configure.parse([*data, *argv])))
    ours = {"amp", "batch_gpu"}
    assert {name for name in values if values[name] != plain[name]} <= ours
    assert chosen(*data, *argv, images=500)[0]["augment"] == "diffaug"


def test_a_family_of_another_case_is_found():
    values, _ = chosen("--data", "x", "--resolution", "64", "--channels", "3", "--arch", "stylegan2", images=5_000)
    assert (values["augment"], values["channel_max"], values["discriminator"]) == ("ada", 512, "own")


def test_a_missing_extra_leaves_its_case_out(monkeypatch):
    monkeypatch.setattr(recommended, "has_pretrained_network", lambda: False)
    values, _ = chosen("--data", "x", "--resolution", "256", "--channels", "3", images=5_000)
    assert (values["arch"], values["discriminator"]) == ("stylegan2", "own")


def test_networks_of_a_published_configuration_have_no_parts_of_ours():
    values, _ = chosen("--data", "x", "--resolution", "64", "--channels", "3", "--arch", "stylegan2", images=5_000)
    assert values["noise"] and not values["pixel_shuffle"]


def test_cases_leave_no_gap():
    for gpu in (False, True):
        for images in (0, 1_999, 2_000, 20_000, 20_001):
            for side in (8, 63, 64, 127, 128, 256, 257, 4096):
                assert any(
                    each.gpu == gpu
                    and each.images[0] <= images <= each.images[1]
                    and each.resolution[0] <= side <= each.resolution[1]
                    and not each.projected
                    for each in CASES
                ), (gpu, images, side)


@pytest.mark.parametrize(
    "batch, side, machine, micro",
    [
        (32, 256, Machine(), 0),
        (32, 256, Machine(80), 0),
        (32, 256, Machine(16), 16),
        (64, 1024, Machine(24), 4),
        (256, 256, Machine(24, 4), 16),
        (8, 1024, Machine(16), 4),
        (24, 512, Machine(16), 8),
    ],
)
def test_micro_batches_follow_the_memory_and_divide_the_batch(batch, side, machine, micro):
    assert micro_batch(batch, side, machine) == micro
    assert not micro or batch // machine.processes % micro == 0


def test_without_the_option_nothing_changes():
    assert configure.parse_command([]).recipe == "family"
    assert configure.resolve(configure.parse(["--recipe", "family"])) == configure.resolve(configure.parse([]))
