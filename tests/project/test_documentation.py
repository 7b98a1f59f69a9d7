"""README and docs/ say what is so: their commands run, as they stand there but scaled down; their options exist; the
site builds, and asks no other server for anything.

Every fenced block is `bash` or `python`, whose content is executed here page by page from top to bottom, or `text`,
which is what a command prints. What cannot be executed stands in `NOT_RUN` with the reason, and its options are still
parsed.
"""

import functools
import html.parser
import http.server
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
import types
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from torch import nn

from fastgan import metrics
from fastgan.cli import COMMANDS, dataset, evaluate, generate
from fastgan.cli import export as export
from fastgan.cli import view as view
from fastgan.data import glyphs
from fastgan.errors import UserError
from fastgan.runs import config as configuration
from fastgan.runs.log import measured
from fastgan.training import configure
from tests.data.test_arrays import write_mnist
from tests.support import foreign
from tests.support.tiny_run import arguments

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    found, start = [], None
    lines = PAGES[page].read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if start is None:
                start = number
            else:
                language = lines[start - 1].removeprefix("```")
                found.append(Block(page, start, language, "\n".join(lines[start : number - 1])))
                start = None
    assert start is None, f"{page}:{start}: the block has no end"
    return found


BLOCKS = {page: blocks_of(page) for page in PAGES}


def commands_of(text: str) -> list[str]:
    """The commands of a bash block, one by one; `A && B` are two."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [command.strip() for line in lines for command in line.split("&&")]


def program_of(command: str) -> tuple[dict[str, str], str, list[str]]:
    """The variables in front of a command, what is executed (of `python -m NAME` and `torchrun ... -m NAME`, NAME; of
    `fastgan NAME`, fastgan.NAME), and the arguments."""
    words, variables = shlex.split(command), {}
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    if words[0] == "python":
        return variables, *((words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:]))
    if words[0] == "fastgan" and words[1] in COMMANDS:
        return variables, f"fastgan.{words[1]}", words[2:]
    return variables, words[0], words[1:]


# What is not executed, by how it begins, and why. Of fastgan's own the options are parsed all the same.
NOT_RUN = {
    "FASTGAN_CUDA=1 FASTGAN_CUDA_ARCHS=90 pip install .": "is this very installation, on a machine with nvcc",
    "WANDB_MODE=offline python -m fastgan.train --wandb": "tests/runs/test_log.py logs to a stand-in; no wandb here",
    "pytest -n auto --dist worksteal": "is this very run",
    "pytest bench/": "takes minutes",
    "python -m fastgan.dataset torchvision:": "downloads 170 MB; tests/data/test_dataset.py reads sets of torchvision",
    "python -m fastgan.dataset hf:": "downloads 120 MB; tests/data/test_dataset.py reads sets of Hugging Face",
    "python -m fastgan.evaluate --checkpoint RUN --metrics fid": "needs weights that nothing downloads",
    "python -m fastgan.export --checkpoint RUN --format rosinality": "needs a run of colour images without classes",
    "python -m fastgan.view": "serves until it is stopped; tests/view/test_view.py opens it in a browser",
    "tensorboard --logdir": "serves until it is stopped",
}

OPTIONS = {
    "fastgan.train": configure.parse,
    "fastgan.generate": lambda argv: generate.parse(list(argv)),
    **{
        f"fastgan.{name}": functools.partial(lambda kind, argv: tyro.cli(kind, args=argv), module.Options)
        for name, module in (("dataset", dataset), ("evaluate", evaluate), ("export", export), ("view", view))
    },
}

# What stands for something of the reader's, and what is put in its place. Files and folders are those of `things`.
BOUND = {"https://example.org": "", "{000..099}": "{000..001}"}  # the first is filled in by `page_folder`


def smaller(program: str, arguments: list[str]) -> list[str]:
    """What is added to a command so that it takes a second. The last of an option given twice counts."""
    if program == "fastgan.train":
        resumed = "--resume" in arguments and "auto" not in arguments
        short = ["--images", "16" if resumed else "8", "--threads", "1", "--no-tensorboard"]
        if not resumed:
            short += ["--batch", "4"]
            if "--init-from" not in arguments:
                short += ["--channel-base", "1024", "--channel-max", "16"]  # r3gan has multiples of 8
        if "--metrics" in arguments:  # another process, which draws all glyphs
            short += ["--metrics-interval", "4", "--metrics-samples", "8"]
            short += ["--data", "digits", "--resolution", "8"]
        return short
    if program == "fastgan.evaluate":
        return ["--samples", "8"]
    if program == "fastgan.dataset":
        return ["--workers", "1"]
    if program == "fastgan.generate" and "interpolate" in arguments:
        return ["--steps", "2"]
    return []


def why_not_run(command: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if command.startswith(start)), None)


EXTRAS = re.findall(
    r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2], re.M
)


def check_pip(arguments: list[str]) -> None:
    """An installation is that of this folder, with extras that there are."""
    action, *rest = arguments
    assert action == "install"
    known = ("-e", "-v", "--no-build-isolation", "--no-deps")
    targets = [word for word in rest if word not in known]
    match = re.fullmatch(r"\.(?:\[([\w,]+)\])?", targets[0])
    assert len(targets) == 1 and match, arguments
    assert set(match[1].split(",") if match[1] else ()) <= set(EXTRAS)


# ---- what the pages' names stand for --------------------------------------------------------------------------------


def _discriminator():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 4 * 4, 1))


def _official_modules():
    """What is imported from the official code."""
    parts = {"bias_act": foreign.official_bias_act(), "upfirdn2d": foreign.official_upfirdn2d()}
    for name, content in {
        "torch_utils": {},
        "torch_utils.ops": parts,
        "training": {"networks": foreign.official_networks()},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        yield name, module


# Of the Python blocks of each page, the names that they expect.
NAMES = {
    "README.md": lambda: {"discriminator": _discriminator(), "real": torch.randn(2, 3, 8, 8), "gamma": 1.0},
    "docs/metrics.md": lambda: {"images": np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8)},
    "docs/patching.md": lambda: {"generator": foreign.Generator(), "latents": torch.randn(2, 5), "torch": torch},
}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Files and folders that the pages speak of; each page is executed in a copy."""
    where = tmp_path_factory.mktemp("things")
    rng = np.random.default_rng(0)
    for number in range(10):
        (where / "digits" / str(number)).mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(where / "digits" / str(number) / f"{index}.png")
    rows = ["file,species"]
    for number in range(8):
        path = where / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(small).resize((256, 256)).save(path)
        rows.append(f"{path.parent.name}/{path.name},{path.parent.name}")
    shutil.make_archive(str(where / "faces"), "zip", where / "photos")
    with tarfile.open(where / "flowers.tgz", "w:gz") as tar:
        tar.add(where / "photos", "flowers")
    shapes, numbers = rng.integers(0, 256, (4, 28, 28), np.uint8), np.arange(4, dtype=np.uint8)
    np.savez(where / "shapes.npz", x_test=shapes, y_test=numbers)
    write_mnist(where / "mnist", "train", shapes, numbers, zipped=True)
    (where / "photos" / "labels.csv").write_text("\n".join(rows))
    (where / "shards").mkdir()
    pictures = sorted((where / "photos").rglob("*.png"))
    for number in range(2):
        with tarfile.open(where / "shards" / f"set-{number:03}.tar", "w") as tar:
            for path in pictures[number::2]:
                tar.add(path, path.name)
        shutil.copy(where / "shards" / f"set-{number:03}.tar", where / f"more-{number:03}.tar")  # for the server
    (where / "shards.txt").write_text("shards/set-000.tar\nshards/set-001.tar\n")
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(where / "bedroom_train.lmdb"), map_size=1 << 24) as base, base.begin(write=True) as writing:
        for path in pictures:
            writing.put(path.stem.encode(), path.read_bytes())
    from fastgan.cli.train import main

    run = where / "runs" / "stylegan2-glyphs-000"
    assert main([*arguments(where / "digits", run), "--z-dim", "128", "--images", "8", "--log-interval", "4"]) == 0
    shutil.copytree(run, where / "RUN")
    return where


@pytest.fixture
def page_folder(things, tmp_path, monkeypatch, one_cache):
    """The folder that a page is executed in, and a server of its files."""
    shutil.copytree(things, tmp_path / "page")
    monkeypatch.chdir(tmp_path / "page")
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(glyphs, "render", functools.partial(glyphs.render, count=40))
    monkeypatch.setattr(metrics, "kernel_distance", functools.partial(metrics.kernel_distance, subset_size=4))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of processes that are started here
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "page"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setitem(BOUND, "https://example.org", f"http://127.0.0.1:{server.server_port}")
        yield tmp_path / "page"
        server.shutdown()


# ---- execution -------------------------------------------------------------------------------------------------------


def execute(command: str, monkeypatch) -> None:
    """Run one command line in this process, or with torchrun in two others."""
    variables, program, given = program_of(command)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if program in OPTIONS:
        OPTIONS[program](given)
    if why_not_run(command):
        return
    for name, value in BOUND.items():
        given = [word.replace(name, value) for word in given]
    if program == "pip":
        check_pip(given)
    elif program == "torchrun":
        at = given.index("-m")
        own, module, theirs = given[:at], given[at + 1], given[at + 2 :]
        OPTIONS[module](theirs)
        theirs += smaller(module, theirs)
        if module == "fastgan.train":
            theirs += ["--data", "digits", "--resolution", "8", "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *own, "-m", module, *theirs],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    elif program.startswith("fastgan."):
        package = importlib.util.find_spec(program).submodule_search_locations
        main = importlib.import_module(f"{program}.__main__" if package else program).main
        argv = [*given, *smaller(program, given)]
        monkeypatch.setattr(sys, "argv", [program, *argv])
        assert (main() if program == "fastgan.doctor" else main(argv)) == 0
        if program == "fastgan.train" and "--metrics" in given:  # an evaluation that fails is no mistake of a training
            assert measured(max(Path("runs").iterdir(), key=lambda run: run.stat().st_mtime))
    elif program.startswith("examples/"):
        monkeypatch.setattr(sys, "argv", [program, *given, "--size", "8"])
        runpy.run_path(str(ROOT / program), run_name="__main__")
    elif program.startswith("tests."):
        monkeypatch.setattr(sys, "argv", [program, *given])
        runpy.run_module(program, run_name="__main__")
    else:
        raise AssertionError("nothing here knows how to run it; if it cannot be run, NOT_RUN says why")


WITH_COMMANDS = [page for page, blocks in BLOCKS.items() if any(block.language != "text" for block in blocks)]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_what_a_page_says_can_be_run(page, page_folder, monkeypatch, capfd):
    for name, module in _official_modules() if page == "docs/patching.md" else ():
        monkeypatch.setitem(sys.modules, name, module)
    names = NAMES.get(page, dict)() | {"__name__": "page"}
    for block in BLOCKS[page]:
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(PAGES[page]), "exec"), names)
        elif block.language == "bash":
            for command in commands_of(block.text):
                try:
                    execute(command, monkeypatch)
                except (Exception, SystemExit, AssertionError) as error:
                    printed = capfd.readouterr()
                    pytest.fail(f"{page}:{block.line}: {command}\n{error!r}\n{printed.out}\n{printed.err}")


def test_every_block_is_a_command_or_what_one_prints():
    for blocks in BLOCKS.values():
        for block in blocks:
            where = f"{block.page}:{block.line}"
            assert block.language in ("bash", "python", "text"), f"{where}: must be bash, python or text"
            looks_so = re.match(r"(\$ )?(python|pip|torchrun|pytest|bash|fastgan) ", block.text)
            assert block.language != "text" or not looks_so, f"{where}: a command that no test runs"


def test_every_exception_is_one():
    commands = [c for blocks in BLOCKS.values() for b in blocks if b.language == "bash" for c in commands_of(b.text)]
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in commands)] == []


def test_a_command_with_a_mistake_fails(page_folder, monkeypatch, capfd):
    for wrong in (
        "python -m fastgan.train --archh mlp",
        "python -m fastgan.view RUN --prot 7",  # one that is only parsed
        "python -m fastgan.generate --checkpoint RUNS",
        'pip install ".[emojis]"',
        "python -m fastgan.trian",
        "fastgan trian",
        "fastgan-train",
    ):
        with pytest.raises((AssertionError, SystemExit, UserError, ImportError, AttributeError)):
            execute(wrong, monkeypatch)


# ---- options and links -----------------------------------------------------------------------------------------------


def flags_of(*kinds: type) -> set[str]:
    """The options that dataclasses become on a command line."""
    flags = set()
    for field in (field for kind in kinds for field in fields(kind)):
        flag = configuration.flag(field.name)
        flags |= {flag, flag.replace("--", "--no-")} if field.type in ("bool", bool) else {flag}
    return flags


_groups = [field.default_factory for field in fields(configuration.Config)]
FLAGS = {
    "fastgan.train": flags_of(*_groups) - {"--source"} | {"--data"},
    "fastgan.generate": flags_of(*generate.SUB_COMMANDS.values()),
    "fastgan.dataset": flags_of(dataset.Options),
    "fastgan.evaluate": flags_of(evaluate.Options),
    "fastgan.export": flags_of(export.Options),
    "fastgan.view": flags_of(view.Options),
    "fastgan.doctor": {"--json"},
}
OF_OTHERS = {
    "any": {"--help"},
    "examples/": {"--batch", "--channels", "--size"},
    "pip": {"--no-build-isolation", "--no-deps"},
    "pytest-benchmark": {"--benchmark-only"},
    "pytest-xdist": {"--dist"},
    "tensorboard": {"--logdir"},
    "torchrun": {
        *("--standalone", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"),
        "--signals-to-handle",
    },
    "stylegan2-ada-pytorch, stylegan3": {
        *("--outdir", "--cond", "--cfg", "--kimg", "--gamma", "--glr", "--dlr", "--cbase", "--cmax", "--map-depth"),
        *("--mbstd-group", "--aug", "--p", "--target", "--snap", "--fp32", "--freezed", "--network", "--class"),
        *("--noise-mode", "--rows", "--cols", "--styles"),
    },
}


@pytest.mark.parametrize("page", PAGES)
def test_options_are_those_of_a_command_line(page):
    text = PAGES[page].read_text()
    known = set().union(*FLAGS.values(), *OF_OTHERS.values())
    unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known
    assert not unknown
    # Where it is said of which command line they are, they are of that one.
    for spoken in re.findall(r"`(?:python -m )?fastgan[. ](\w+)([^`]*)`", text):
        unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", spoken[1])) - FLAGS.get(f"fastgan.{spoken[0]}", set())
        unknown -= OF_OTHERS["any"]
        assert not unknown, spoken


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_refers_to_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page].read_text()):
        path, _, anchor = target.partition("#")
        if not path.startswith(("http:", "https:")) and path:
            file = PAGES[page].parent / path
            assert file.exists(), target
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M) if anchor else ()
            assert not anchor or anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


# ---- the site --------------------------------------------------------------------------------------------------------


class Loaded(html.parser.HTMLParser):
    """What a browser asks for when it shows a page."""

    def __init__(self):
        super().__init__()
        self.addresses, self.anchors = [], set()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        if tag == "link" and attributes.get("rel") not in ("next", "prev", "canonical"):
            self.addresses.append(attributes["href"])
        elif tag in ("script", "img", "iframe") and attributes.get("src"):
            self.addresses.append(attributes["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What `mkdocs build --strict` writes, page by page."""
    pytest.importorskip("mkdocs")
    where = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(where)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {}
    for path in where.rglob("*.html"):
        pages[path.relative_to(where).as_posix()] = loaded = Loaded()
        loaded.feed(path.read_text())
    assert {f"{Path(page).stem}.html" for page in PAGES if page != "README.md"} <= set(pages)
    return pages


def test_the_site_asks_no_other_server_for_anything(site):
    asked = {address for page in site.values() for address in page.addresses}
    assert asked
    assert [each for each in asked if each.startswith(("http:", "https:", "//"))] == []


@pytest.mark.parametrize("module", ["ops", "layers", "losses", "studies", "metrics", "interop", "patching"])
def test_the_reference_has_what_is_public(site, module):
    name = f"fastgan.{module}"
    imported = importlib.import_module(name)
    public = getattr(imported, "__all__", None) or [
        key for key, value in vars(imported).items() if key[0] != "_" and getattr(value, "__module__", "") == name
    ]
    documented = {anchor.rpartition(".")[2] for anchor in site["api.html"].anchors if anchor and "." in anchor}
    assert [each for each in public if callable(getattr(imported, each)) and each not in documented] == []
