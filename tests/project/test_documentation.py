"""README and docs/ are true: commands run (scaled down), options, names and files exist, and the site builds.

Fenced blocks are `bash` or `python`, which are executed here page by page from top to bottom, or `text`, the output of
a command. `NOT_RUN` lists commands that cannot be executed, with the reason; their options are still parsed.
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
from torch.distributed.run import parse_args as launcher_options

from fastgan import metrics
from fastgan.cli import COMMANDS, dataset, directions, evaluate, generate, project, share
from fastgan.cli import export as export
from fastgan.cli import view as view
from fastgan.data import emoji, glyphs
from fastgan.errors import UserError
from fastgan.runs import config as configuration
from fastgan.runs.log import measured
from fastgan.training import configure, sample_grid
from tests.data.readers.test_arrays import write_mnist
from tests.support import foreign
from tests.support.processes import start_ranks
from tests.support.tiny_run import arguments

pytestmark = pytest.mark.slow  # runs the commands of all pages

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """Fenced blocks of a page."""
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
    assert start is None, f"{page}:{start}: unclosed block"
    return found


BLOCKS = {page: blocks_of(page) for page in PAGES}


def commands_of(text: str) -> list[str]:
    """Commands of a bash block; `A && B` are two."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [command.strip() for line in lines for command in line.split("&&")]


def program_of(command: str) -> tuple[dict[str, str], str, list[str]]:
    """Environment variables, program and arguments of a command.

    The program of `python -m NAME` is NAME, that of `fastgan NAME` fastgan.NAME.
    """
    words, variables = shlex.split(command), {}
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    if words[0] == "python":
        return variables, *((words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:]))
    if words[0] == "fastgan" and words[1] in COMMANDS:
        return variables, f"fastgan.{words[1]}", words[2:]
    return variables, words[0], words[1:]


# Beginning of a command that is not executed: the reason. fastgan's options are parsed all the same.
NOT_RUN = {
    "FASTGAN_CUDA=1 FASTGAN_CUDA_ARCHS=90 pip install .": "needs nvcc",
    "WANDB_MODE=offline fastgan train --wandb": "tests/training/test_log_writer.py logs to a stand-in",
    "pytest -n auto --dist worksteal": "would start this run again",
    "python -m bench.run": "takes minutes",
    "fastgan dataset torchvision:": "downloads 170 MB; tests/data/readers/test_torchvision.py reads such sets",
    "fastgan dataset hf:": "downloads 120 MB; tests/data/readers/test_huggingface.py reads such sets",
    "fastgan evaluate --checkpoint RUN --metrics fid": "needs weights that nothing downloads",
    "fastgan export --checkpoint RUN --format rosinality": "needs a run of colour images without classes",
    "fastgan share RUN --out my-network --push USER/NAME": "uploads; tests/cli/test_share.py uploads to a stand-in",
    "fastgan generate --checkpoint hf://": "downloads; tests/data/test_hub.py downloads from a stand-in",
    "fastgan view": "serves until stopped; tests/view/test_view.py opens it in a browser",
    "tensorboard --logdir": "serves until stopped",
}

OPTIONS = {
    "fastgan.train": configure.parse,
    "fastgan.generate": lambda argv: generate.parse(list(argv)),
    **{
        f"fastgan.{name}": functools.partial(lambda kind, argv: tyro.cli(kind, args=argv), module.Options)
        for name, module in (
            ("dataset", dataset),
            ("evaluate", evaluate),
            ("export", export),
            ("project", project),
            ("share", share),
            ("view", view),
        )
    },
    "fastgan.directions": lambda argv: tyro.cli(directions.Directions, args=argv),
}

# Placeholders on pages, and what replaces them. `mentioned_files` makes files and folders.
PLACEHOLDERS = {"https://example.org": "", "{000..099}": "{000..001}"}  # `page_folder` sets the first


def scaled_down(program: str, arguments: list[str]) -> list[str]:
    """Options that make a command finish within a second. The last of a repeated option counts."""
    if program == "fastgan.train":
        resumed = "--resume" in arguments and "auto" not in arguments
        length = ["--minutes", "0.001"] if "--minutes" in arguments else ["--images", "8" if resumed else "4"]
        short = [*length, "--threads", "1", "--no-tensorboard"]
        if not resumed:
            short += ["--batch", "4"]
            if "--init-from" not in arguments:
                short += ["--channel-base", "512", "--channel-max", "8"]  # r3gan needs multiples of 8
        if "--metrics" in arguments:  # starts a process that draws all glyphs
            short += ["--metrics-interval", "4", "--metrics-samples", "8"]
            short += ["--data", "digits", "--resolution", "8"]
        return short
    if program == "fastgan.evaluate":
        return ["--samples", "8"]
    if program == "fastgan.project":
        return ["--steps", "2", *(["--tune", "1"] if "--tune" in arguments else [])]
    if program == "fastgan.dataset":
        return ["--workers", "1"]
    if program == "fastgan.generate" and {"interpolate", "translate", "rotate"} & {*arguments}:
        return ["--steps", "2"]
    return []


def why_not_run(command: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if command.startswith(start)), None)


EXTRAS = re.findall(
    r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2], re.M
)


def check_pip(arguments: list[str]) -> None:
    """Check that a command installs this folder, with existing extras."""
    action, *rest = arguments
    assert action == "install"
    known = ("-e", "-v", "--no-build-isolation", "--no-deps")
    targets = [word for word in rest if word not in known]
    match = re.fullmatch(r"\.(?:\[([\w,]+)\])?", targets[0])
    assert len(targets) == 1 and match, arguments
    assert set(match[1].split(",") if match[1] else ()) <= set(EXTRAS)


# ---- names and files that pages expect -------------------------------------------------------------------------------


def _discriminator():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 4 * 4, 1))


def _official_modules():
    """Modules that examples import from the official code."""
    parts = {"bias_act": foreign.official_bias_act(), "upfirdn2d": foreign.official_upfirdn2d()}
    for name, content in {
        "torch_utils": {},
        "torch_utils.ops": parts,
        "training": {"networks": foreign.official_networks()},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        yield name, module


def _discriminator_step():
    images = torch.randn(2, 3, 8, 8)
    return {"discriminator": _discriminator(), "real": images, "images": images, "labels": None, "gamma": 1.0}


# Names that the Python blocks of a page expect.
NAMES = {
    "README.md": _discriminator_step,
    "docs/penalties.md": _discriminator_step,
    "docs/metrics.md": lambda: {"images": np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8)},
    "docs/patching.md": lambda: {"generator": foreign.Generator(), "latents": torch.randn(2, 5), "torch": torch},
}


@pytest.fixture(scope="module")
def mentioned_files(tmp_path_factory):
    """Files and folders that pages mention. Each page runs in a copy."""
    where = tmp_path_factory.mktemp("mentioned_files")
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

    options = ("--z-dim", "128", "--tanh", "False", "--images", "8", "--log-interval", "4")
    run = where / "runs" / "stylegan2-glyphs-000"
    assert main([*arguments(where / "digits", run), *options]) == 0
    shutil.copytree(run, where / "RUN")
    return where


@pytest.fixture
def page_folder(mentioned_files, tmp_path, monkeypatch, one_cache):
    """Folder in which a page runs, with a server of its files."""
    shutil.copytree(mentioned_files, tmp_path / "page")
    monkeypatch.chdir(tmp_path / "page")
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(glyphs, "render", functools.partial(glyphs.render, count=40))
    monkeypatch.setattr(emoji, "_drawings", lambda drawings=emoji._drawings: drawings()[::20])
    monkeypatch.setattr(sample_grid, "COLUMNS", 2)
    monkeypatch.setattr(metrics, "kernel_distance", functools.partial(metrics.kernel_distance, subset_size=4))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for child processes
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "page"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setitem(PLACEHOLDERS, "https://example.org", f"http://127.0.0.1:{server.server_port}")
        yield tmp_path / "page"
        server.shutdown()


# ---- execution -------------------------------------------------------------------------------------------------------


def execute(command: str, monkeypatch) -> None:
    """Run one command line in this process; torchrun's processes are forked."""
    variables, program, given = program_of(command)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if program in OPTIONS:
        OPTIONS[program](given)
    if why_not_run(command):
        return
    for name, value in PLACEHOLDERS.items():
        given = [word.replace(name, value) for word in given]
    if program == "pip":
        check_pip(given)
    elif program == "torchrun":
        at = given.index("-m")
        launcher, module, theirs = given[:at], given[at + 1], given[at + 2 :]
        OPTIONS[module](theirs)
        theirs += scaled_down(module, theirs)
        if module == "fastgan.train":
            theirs += ["--data", "digits", "--resolution", "8", "--device", "cpu"]
        count = int(launcher_options([*launcher, "-m", module]).nproc_per_node)
        for process in start_ranks(count, theirs, module=module.removeprefix("fastgan.")):
            output, _ = process.communicate()
            assert process.returncode == 0, output
    elif program.startswith("fastgan."):
        main = importlib.import_module(program.replace("fastgan.", "fastgan.cli.")).main
        argv = [*given, *scaled_down(program, given)]
        monkeypatch.setattr(sys, "argv", [program, *argv])
        assert (main() if program == "fastgan.doctor" else main(argv)) == 0
        if program == "fastgan.train" and "--metrics" in given:  # training succeeds even if an evaluation fails
            assert measured(max(Path("runs").iterdir(), key=lambda run: run.stat().st_mtime))
    elif program.startswith("examples/"):
        monkeypatch.setattr(sys, "argv", [program, *given, "--size", "8"])
        runpy.run_path(str(ROOT / program), run_name="__main__")
    elif program.startswith("tests."):
        monkeypatch.setattr(sys, "argv", [program, *given])
        runpy.run_module(program, run_name="__main__")
    else:
        raise AssertionError("unknown program; if it cannot be run, say why in NOT_RUN")


WITH_COMMANDS = [page for page, blocks in BLOCKS.items() if any(block.language != "text" for block in blocks)]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_of_a_page_run(page, page_folder, monkeypatch, capfd):
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


def test_every_block_is_executed_or_output():
    for blocks in BLOCKS.values():
        for block in blocks:
            where = f"{block.page}:{block.line}"
            assert block.language in ("bash", "python", "text"), f"{where}: must be bash, python or text"
            looks_like_command = re.match(r"(\$ )?(python|pip|torchrun|pytest|bash|fastgan) ", block.text)
            assert block.language != "text" or not looks_like_command, f"{where}: a command that no test runs"


def test_every_exception_is_needed():
    commands = [c for blocks in BLOCKS.values() for b in blocks if b.language == "bash" for c in commands_of(b.text)]
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in commands)] == []


def test_a_command_with_a_mistake_fails(page_folder, monkeypatch, capfd):
    for wrong in (
        "python -m fastgan.train --archh mlp",
        "python -m fastgan.view RUN --prot 7",  # only parsed
        "python -m fastgan.generate --checkpoint RUNS",
        'pip install ".[emojis]"',
        "python -m fastgan.trian",
        "fastgan trian",
        "fastgan-train",
    ):
        with pytest.raises((AssertionError, SystemExit, UserError, ImportError, AttributeError)):
            execute(wrong, monkeypatch)


# ---- options, names and links ----------------------------------------------------------------------------------------


def flags_of(*kinds: type) -> set[str]:
    """Command-line options of dataclasses."""
    flags = set()
    for field in (field for kind in kinds for field in fields(kind)):
        flag = configuration.flag(field.name)
        flags |= {flag, flag.replace("--", "--no-")} if field.type in ("bool", bool) else {flag}
    return flags


_groups = [field.default_factory for field in fields(configuration.Config)]
FLAGS = {
    "fastgan.train": flags_of(*_groups) - {"--source"} | {"--data", "--recipe"},
    "fastgan.generate": flags_of(*generate.SUB_COMMANDS.values()),
    "fastgan.dataset": flags_of(dataset.Options),
    "fastgan.directions": flags_of(directions.Directions),
    "fastgan.evaluate": flags_of(evaluate.Options),
    "fastgan.export": flags_of(export.Options),
    "fastgan.project": flags_of(project.Options),
    "fastgan.share": flags_of(share.Options),
    "fastgan.view": flags_of(view.Options),
    "fastgan.doctor": {"--json"},
}
OF_OTHERS = {
    "any": {"--help"},
    "bench.model": {"--dtype", "--layout", "--preference"},
    "bench/gpu_check.sh": {"--dry-run", "--only", "--stand-in", "--total"},
    "examples/": {"--batch", "--channels", "--size"},
    "pip": {"--no-build-isolation", "--no-deps", "--target"},
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
        *("--noise-mode", "--rows", "--cols", "--styles", "--w-frames"),
    },
}


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page):
    text = PAGES[page].read_text()
    known = set().union(*FLAGS.values(), *OF_OTHERS.values())
    unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known
    assert not unknown
    # Options written behind a command belong to that command.
    for command, rest in re.findall(r"`(?:python -m )?fastgan[. ](\w+)([^`]*)`", text):
        unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest)) - FLAGS.get(f"fastgan.{command}", set())
        assert not unknown - OF_OTHERS["any"], command


# Pages on today's code: names and paths on them exist. Notes and the changelog also mention what is gone.
CURRENT = [
    *(path for path in PAGES.values() if path.parent.name != "notes"),
    *(path for path in ROOT.glob("*.md") if path.name not in ("README.md", "CHANGELOG.md")),
    ROOT / "bench" / "README.md",
]
FILES_OF_USERS = {"fastgan.json"}  # an entry of exported files


def resolve(name: str) -> None:
    """Find a dotted name: the longest module, then attributes. Raises AttributeError if it does not exist."""
    parts, attributes = name.split("."), []
    while importlib.util.find_spec(parts[0]) and not _is_module(".".join(parts)):
        attributes.insert(0, parts.pop())
    functools.reduce(getattr, attributes, importlib.import_module(".".join(parts)))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_and_paths_on_a_page_exist(page):
    text = page.read_text()
    names = (
        set(re.findall(r"(?<![\w/.-])(?:fastgan(?:_kernels)?|bench)(?:\.[A-Za-z_]\w*)+(?![\w/])", text))
        - FILES_OF_USERS
    )
    for name in sorted(names):
        resolve(name)
    folders = "fastgan|kernels|csrc|tests|bench|docs|examples"
    for path in set(re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./*-]*[\w*]", text)):
        assert list(ROOT.glob(path.replace("NAME", "*"))), path


def test_a_dead_name_is_found():
    resolve("fastgan.ops.noise_bias_act")
    for dead in ("fastgan.training.checkpoint", "fastgan.losses.critic", "bench.operation"):
        with pytest.raises(AttributeError):
            resolve(dead)


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page].read_text()):
        path, _, anchor = target.partition("#")
        if not path.startswith(("http:", "https:")) and path:
            file = PAGES[page].parent / path
            assert file.exists(), target
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M) if anchor else ()
            assert not anchor or anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


# ---- the site --------------------------------------------------------------------------------------------------------


class Loaded(html.parser.HTMLParser):
    """Addresses that a browser requests for a page, and the page's anchors."""

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
    """Pages written by `mkdocs build --strict`."""
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
    assert {f"{page[5:-3]}.html" for page in PAGES if page != "README.md"} <= set(pages)  # without "docs/" and ".md"
    return pages


def test_the_site_requests_nothing_from_other_servers(site):
    requested = {address for page in site.values() for address in page.addresses}
    assert requested
    assert [each for each in requested if each.startswith(("http:", "https:", "//"))] == []


@pytest.mark.parametrize(
    "module", ["ops", "layers", "losses", "penalties", "studies", "metrics", "interop", "patching"]
)
def test_the_reference_lists_every_public_name(site, module):
    name = f"fastgan.{module}"
    imported = importlib.import_module(name)
    public = getattr(imported, "__all__", None) or [
        key for key, value in vars(imported).items() if key[0] != "_" and getattr(value, "__module__", "") == name
    ]
    documented = {anchor.rpartition(".")[2] for anchor in site["api.html"].anchors if anchor and "." in anchor}
    assert [each for each in public if callable(getattr(imported, each)) and each not in documented] == []
