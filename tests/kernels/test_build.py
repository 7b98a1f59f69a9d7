"""Installation: what is built, recorded and left out, and the cost of an import."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastgan_kernels import extension
from fastgan_kernels.sources import digest

pytestmark = pytest.mark.slow  # compiles

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "csrc", "kernels", "fastgan")


def has_build_tools() -> bool:
    try:
        return int(version("setuptools").split(".")[0]) >= 77 and find_spec("pybind11") is not None
    except PackageNotFoundError:
        return False


needs_build_tools = pytest.mark.skipif(not has_build_tools(), reason="needs setuptools 77 and pybind11")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command that must succeed; a failure shows its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FASTGAN_")} | environment
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the files that an installation reads, with nothing built."""
    target = tmp_path / "sources"
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            leave_out = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
            shutil.copytree(ROOT / name, target / name, ignore=leave_out)
        else:
            shutil.copy(ROOT / name, target)
    return target


def empty(sources: Path) -> None:
    """Empties what takes time to compile, where only its presence matters."""
    csrc = sources / "csrc"
    for path in [*csrc.glob("*/cpu.cpp"), *csrc.glob("*/call.h"), *csrc.glob("common/[bm]*")]:
        path.write_text("")


def make_wheel(sources: Path, target: Path, **environment: str) -> Path:
    """Builds a wheel and returns its path."""
    options = ("--no-build-isolation", "--no-deps", "--wheel-dir", target)
    run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=sources, **environment)
    return next(target.glob("fastgan-*.whl"))


def build(sources: Path, **environment: str) -> tuple[dict, Path]:
    """Builds the extension alone; returns the record and the folder with the packages."""
    lib = sources / "lib"
    run(sys.executable, "setup.py", "build", "--build-lib", lib, cwd=sources, **environment)
    return json.loads((lib / "fastgan_kernels" / "_build.json").read_text()), lib


def test_record_agrees_with_the_extension():
    record = extension.build_info()
    if not record:
        pytest.skip("fastgan_kernels is used without having been built")
    assert record["sources"] == digest(ROOT / "csrc")
    assert set(record) == {"sources", "python", "platform", "compiler", "cpu", "cuda"}
    for part in ("cpu", "cuda"):
        assert record[part]["built"] or record[part]["reason"]
    module = extension.module()
    assert (module is not None) == any(record[part]["built"] for part in ("cpu", "cuda"))
    if module is not None:
        assert module.has_cpu == record["cpu"]["built"]
        assert module.has_cuda == record["cuda"]["built"]
        assert sorted(module.isas) == sorted(record["cpu"]["isas"])
        assert module.openmp == record["cpu"]["openmp"]


# ---- portability ----------------------------------------------------------------------------------------------------

# Mnemonics of VEX and EVEX encoded instructions begin with v, and no others that compilers emit. BMI came with the same
# processors.
MNEMONIC = re.compile(r"^ *[0-9a-f]+:\t(\S+)")
BMI = {"andn", "bzhi", "mulx", "pdep", "pext", "rorx", "sarx", "shlx", "shrx"}


def functions_using_avx(library: Path) -> dict[str, str]:
    """Functions of a library with an instruction that some x86-64 processors lack, each with one such line."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(library)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, name = {}, ""
    for line in output.splitlines():
        head = re.match(r"^[0-9a-f]+ <(.*)>:$", line)
        if head:
            name = head.group(1)
            continue
        match = MNEMONIC.match(line)
        if match and (match.group(1).startswith("v") or match.group(1) in BMI):
            found.setdefault(name, line.strip())
    return found


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_only_functions_of_a_newer_instruction_set_use_it():
    module = extension.module()
    if module is None or "avx2" not in module.isas:
        pytest.skip("needs an extension built on x86-64")
    using = functions_using_avx(Path(module.__file__))
    assert any("avx2::" in name for name in using), "the check itself must see AVX where it is"
    strays = {name: line for name, line in using.items() if not re.search(r"\bavx(2|512)::", name)}
    assert not strays


# ---- data -----------------------------------------------------------------------------------------------------------


@needs_build_tools
def test_a_wheel_would_hold_the_examples():
    """The files that the build copies, asked without building."""
    code = (
        "import setuptools; from distutils.core import run_setup\n"
        "command = run_setup('setup.py', ['-q', 'build_py'], 'commandline').get_command_obj('build_py')\n"
        "command.ensure_finalized()\n"
        "print(*(f'{folder}/{name}' for _, folder, _, names in command.data_files for name in names), sep='\\n')"
    )
    found = set(run(sys.executable, "-c", code, cwd=ROOT).stdout.split())
    examples = {path for path in (ROOT / "fastgan" / "examples").iterdir() if path.suffix in (".safetensors", ".md")}
    assert {f"fastgan/examples/{path.name}" for path in examples} | {"fastgan/py.typed"} <= found


# ---- missing tools --------------------------------------------------------------------------------------------------


@needs_build_tools
@pytest.mark.slow
def test_without_a_compiler_the_package_installs_and_says_so(sources, tmp_path):
    wheel = make_wheel(sources, tmp_path / "wheels", CXX="/nonexistent")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert not [name for name in names if name.endswith(".so")]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fastgan", "fastgan_kernels"}

    # Without an editable installation, which would provide the extension that is missing here.
    alone = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in f.__module__]\n"
    code = (
        "import runpy, torch, fastgan.ops\n"
        "x = torch.tensor([[-1.0, 2.0]], requires_grad=True)\n"
        "fastgan.ops.noise_bias_act(x, act='lrelu').sum().backward()\n"
        "assert torch.allclose(x.grad, torch.tensor([[0.2, 1.0]]))\n"
        "runpy.run_module('fastgan.doctor', run_name='__main__')\n"
    )
    doctor = run(sys.executable, "-c", alone + code, cwd=site, PYTHONPATH=str(site)).stdout
    assert "the C++ compiler does not work: /nonexistent" in doctor
    assert re.search(r"noise_bias_act\n +CPU tensors +torch\n", doctor)


@needs_build_tools
def test_both_parts_can_be_switched_off(sources):
    record, lib = build(sources, FASTGAN_CPU="0", FASTGAN_CUDA="0")
    for part in ("cpu", "cuda"):
        assert not record[part]["built"]
        assert f"FASTGAN_{part.upper()}=0" in record[part]["reason"]
    assert not list(lib.rglob("*.so"))


@needs_build_tools
def test_cuda_asked_for_but_impossible_is_an_error(sources):
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=sources,
        env=os.environ | {"CXX": "/nonexistent", "FASTGAN_CUDA": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stderr.strip().endswith("error: FASTGAN_CUDA=1, but the C++ compiler does not work: /nonexistent")


@needs_build_tools
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_source_that_does_not_compile_leaves_its_part_out(sources):
    """Here both parts: the kernels, then the module that everything needs."""
    for source in (sources / "csrc").glob("*/*.c*"):
        source.write_text("#error broken on purpose\n")
    record, lib = build(sources, FASTGAN_CUDA="0")
    assert "broken on purpose" in record["cpu"]["reason"]
    assert record["cpu"]["isas"] == []
    assert not list(lib.rglob("*.so"))


@needs_build_tools
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_what_the_compiler_refuses_is_left_out(sources, tmp_path):
    """A compiler without AVX-512 and without OpenMP."""
    compiler = tmp_path / "old-g++"
    refuses = '#!/bin/sh\nfor word; do case $word in -mavx512f|-fopenmp) exit 1;; esac; done\nexec g++ "$@"\n'
    compiler.write_text(refuses)
    compiler.chmod(0o755)
    empty(sources)
    record, lib = build(sources, FASTGAN_CUDA="0", CXX=str(compiler))
    assert record["cpu"]["built"], record
    assert record["cpu"]["openmp"] is False
    assert "OpenMP" in record["cpu"]["reason"]
    if "avx2" in record["cpu"]["isas"]:
        assert record["cpu"]["isas"] == ["avx2"]
        assert "avx512" in record["cpu"]["reason"]
    assert list(lib.rglob("*.so"))


@needs_build_tools
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_instruction_sets_can_be_chosen(sources):
    empty(sources)
    record, _ = build(sources, FASTGAN_CUDA="0", FASTGAN_CPU_ISAS="baseline")
    assert record["cpu"]["built"] and record["cpu"]["isas"] == ["baseline"]
    command = [sys.executable, "setup.py", "build_ext"]
    environment = os.environ | {"FASTGAN_CUDA": "0", "FASTGAN_CPU_ISAS": "baseline avx1024"}
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "error: FASTGAN_CPU_ISAS=baseline avx1024: choose from baseline" in done.stderr


# ---- imports --------------------------------------------------------------------------------------------------------


def test_import_needs_torch_and_numpy_only():
    heavy = ["PIL", "matplotlib", "tqdm", "tyro", "tensorboard", "safetensors", "triton", "torchvision"]
    code = (
        "import sys, torch, numpy\nbefore = set(sys.modules)\nimport fastgan, fastgan.ops, fastgan.layers\n"
        f"print([name for name in {heavy} if name in set(sys.modules) - before])"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout.strip() == "[]"


def test_import_is_quick():
    """At least one of three times, since the machine may be busy."""
    code = (
        "import time, torch\nstart = time.perf_counter()\n"
        "import fastgan, fastgan.ops, fastgan.layers\nprint(time.perf_counter() - start)"
    )
    assert any(float(run(sys.executable, "-c", code, cwd=ROOT).stdout) < 0.3 for _ in range(3))


def test_doctor_reports_every_operation():
    """Text, and the dictionary that --json prints."""
    from fastgan.cli import doctor
    from fastgan.ops.fused import OPERATIONS

    found = json.loads(run(sys.executable, "-m", "fastgan.doctor", "--json", cwd=ROOT).stdout)
    assert set(found["operations"]) == set(OPERATIONS)
    for operation in OPERATIONS:
        assert found["operations"][operation]["cpu"]["in_use"]
    text = doctor.describe(found)
    assert all(operation in text for operation in OPERATIONS)
    for reason in (None, "a reason"):
        text = doctor.describe({**found, "replaces_torch": {"few_channels": reason}})
        assert "few_channels" in text and ("not cpp: a reason" in text) == bool(reason)
    assert max(map(len, text.splitlines())) <= 120
