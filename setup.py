"""Builds `fastgan_kernels._C` from csrc/, with the tools that this machine has.

csrc/*/cpu.cpp are compiled once per instruction set, csrc/*/cuda.cu by nvcc for several cards, csrc/common/*.cpp once
for any machine, all in parallel by ninja. Nothing that is missing or fails stops the installation: the part is left
out, and `_build.json` beside the extension records why (`python -m fastgan.doctor` prints it).

    CXX                 the C++ compiler (default: the first of g++, c++, clang++)
    CXXFLAGS, LDFLAGS   added to every C++ command, to the link
    CUDA_HOME           where to look for nvcc first (then PATH, then /usr/local/cuda)
    FASTGAN_CPU=0       leave the CPU kernels out
    FASTGAN_CPU_ISAS    instruction sets to compile for, of "baseline,avx2,avx512" (default: see default_isas)
    FASTGAN_CUDA=0|1    leave the CUDA kernels out | stop with an error if they cannot be built
    FASTGAN_CUDA_ARCHS  cards to compile for, such as "80,90" (PTX in it serves later cards)
    MAX_JOBS            compilers to run at once (default: the number of usable CPUs)
"""

import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = Path("csrc")
SOURCES = runpy.run_path(str(ROOT / "kernels/sources.py"))["digest"](ROOT / CSRC)
usable_cpus = runpy.run_path(str(ROOT / "fastgan/cores.py"))["usable_cpus"]

# Arithmetic is IEEE but for contraction to fused multiply-add: no -ffast-math, which drops NaN and reassociates sums.
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wall", "-I", str(CSRC)]

# All flags that enable instruction sets. Objects built with them have a namespace of their own.
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    # With the bf16 instructions: on a CPU with AVX-512 but without them, AVX2 is as fast.
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16"),
        *("-mfma", "-mf16c", "-mprefer-vector-width=512"),
    ],
}

SLOWEST_CPU_SOURCES = ("noise_bias_act", "norm")  # folders in csrc/

NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xfatbin", "-compress-all"]
NVCC_FLAGS += ["-I", str(CSRC)]
DEFAULT_CUDA_ARCHS = [75, 80, 90, 100, 120]


class LeftOut(Exception):
    """Raised for a part that cannot be built here; the message is the reason recorded in `_build.json`."""


# ---- tools of this machine ------------------------------------------------------------------------------------------


def find_compiler() -> list[str]:
    """Command of the C++ compiler, tested on a small program."""
    if sys.platform != "linux":
        raise LeftOut(f"compiled kernels are built on Linux only so far (this is {sys.platform})")
    if os.environ.get("CXX"):
        candidates = [shlex.split(os.environ["CXX"])]
    else:
        candidates = [[name] for name in ("g++", "c++", "clang++") if shutil.which(name)]
    if not candidates:
        raise LeftOut("no C++ compiler found (g++, c++ or clang++; or set CXX)")
    if not accepts(candidates[0], ["-std=c++17", "-fPIC", "-shared"]):
        raise LeftOut(f"the C++ compiler does not work: {shlex.join(candidates[0])}")
    return candidates[0]


def accepts(compiler: list[str], flags: list[str], source: str = "int main() { return 0; }") -> bool:
    """Whether the compiler accepts `source` with these flags, without a warning."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trial.cpp")
        path.write_text(source)
        command = [*compiler, "-Werror", *flags, str(path), "-o", str(path.with_suffix(".out"))]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            return False


def has_openmp(compiler: list[str]) -> bool:
    """Whether GNU OpenMP is available. No other runtime will do: torch loads GNU's, and two would compete for cores."""
    source = "#include <omp.h>\n#ifdef __clang__\n#error\n#endif\nint main() { return omp_get_max_threads(); }"
    return accepts(compiler, ["-fopenmp", "-fPIC", "-shared"], source)


def default_isas() -> list[str]:
    """Instruction sets to compile for without FASTGAN_CPU_ISAS.

    On x86-64 "baseline" (SSE2) takes a third of the time and serves only CPUs made before about 2013. It is left out
    unless this is one of them.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["baseline"]
    features = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").is_file() else []
    return ["avx2", "avx512"] if {"avx2", "fma", "f16c"} <= set(features) else list(ISA_FLAGS)


def find_isas(compiler: list[str]) -> tuple[list[str], list[str]]:
    """Instruction sets to compile for, and a reason for each that the compiler refuses."""
    known = list(ISA_FLAGS) if platform.machine() in ("x86_64", "AMD64") else ["baseline"]
    listed = os.environ.get("FASTGAN_CPU_ISAS", "").strip()
    asked = re.split(r"[\s,;]+", listed) if listed else default_isas()
    if set(asked) - set(known):
        raise SystemExit(f"error: FASTGAN_CPU_ISAS={listed}: choose from {', '.join(known)}")
    isas = [isa for isa in known if isa in asked and accepts(compiler, [*ISA_FLAGS[isa], "-fPIC", "-shared"])]
    return isas or ["baseline"], [f"the compiler refuses {isa}" for isa in asked if isa not in isas]


def find_python_headers() -> list[str]:
    """Include flags of Python and pybind11."""
    try:
        import pybind11
    except ImportError:
        raise LeftOut("pybind11 is not installed (`pip install pybind11`)") from None
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        raise LeftOut(f"Python's headers are missing: no Python.h in {include} (Debian: python3-dev)")
    return ["-isystem", include, "-isystem", pybind11.get_include()]


def find_ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    except ImportError:
        pass
    if not shutil.which("ninja"):
        raise LeftOut("ninja is not installed (`pip install ninja`)")
    return "ninja"


def find_nvcc() -> str:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [str(Path(home, "bin")) for home in homes if home] + [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(places))
    if nvcc is None:
        raise LeftOut("no CUDA compiler found (nvcc in CUDA_HOME, PATH or /usr/local/cuda)")
    return nvcc


def find_cuda_archs(nvcc: str) -> list[int]:
    """Compute capabilities to compile for, ascending."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    if listed.returncode != 0:
        raise LeftOut(f"{nvcc} does not run: {last_line(listed.stderr) or listed.returncode}")
    known = {int(number) for number in re.findall(r"compute_(\d+)\b", listed.stdout)}
    asked = os.environ.get("FASTGAN_CUDA_ARCHS", "").strip()
    if not asked:
        archs = [arch for arch in DEFAULT_CUDA_ARCHS if arch in known]
        if not archs:
            raise LeftOut(f"{nvcc} knows none of the cards {DEFAULT_CUDA_ARCHS}")
        return archs
    words = re.split(r"[\s,;]+", asked)
    unknown = [word for word in words if not word.isdigit() or int(word) not in known]
    if unknown:
        names = ", ".join(str(arch) for arch in sorted(known))
        raise SystemExit(f"error: FASTGAN_CUDA_ARCHS={asked}: choose from {names} ({nvcc} knows these)")
    return sorted({int(word) for word in words})


def first_line_of(command: list[str], pattern: str = "") -> str:
    output = subprocess.run(command, capture_output=True, text=True).stdout
    return next((line.strip() for line in output.splitlines() if re.search(pattern, line)), "")


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()


# ---- the build ------------------------------------------------------------------------------------------------------


class Build:
    """One build: detects the tools, compiles what they can compile, and records the outcome."""

    def __init__(self, folder: Path):
        self.folder = folder  # of objects, relative to the repository root; reused by the next build
        self.jobs = int(os.environ.get("MAX_JOBS") or usable_cpus())
        self.record = {
            "sources": SOURCES,
            "python": platform.python_version(),
            "platform": sysconfig.get_platform(),
            "compiler": "",
            "cpu": {"built": False, "isas": [], "openmp": False, "reason": ""},
            "cuda": {"built": False, "nvcc": "", "archs": [], "reason": ""},
        }

    def run(self) -> Path | None:
        """Builds the extension and returns its path, or None if there is none."""
        library = None
        try:
            self.compiler = find_compiler()
            self.record["compiler"] = first_line_of([*self.compiler, "--version"])
            self.headers = find_python_headers()
            self.ninja = find_ninja()
            parts = [part for part in (self.detect_cpu(), self.detect_cuda()) if part]
            library = self.compile(parts)
        except LeftOut as reason:
            for part in ("cpu", "cuda"):
                self.record[part]["reason"] = self.record[part]["reason"] or str(reason)
        if os.environ.get("FASTGAN_CUDA") == "1" and not self.record["cuda"]["built"]:
            raise SystemExit(f"error: FASTGAN_CUDA=1, but {self.record['cuda']['reason']}")
        return library

    def detect_cpu(self) -> str | None:
        record = self.record["cpu"]
        if os.environ.get("FASTGAN_CPU") == "0":
            record["reason"] = "switched off by FASTGAN_CPU=0 when it was built"
            return None
        record["isas"], reasons = find_isas(self.compiler)
        record["openmp"] = has_openmp(self.compiler)
        if not record["openmp"]:
            reasons.append("one thread only: the compiler has no GNU OpenMP")
        record["reason"] = "; ".join(reasons)
        return "cpu"

    def detect_cuda(self) -> str | None:
        record = self.record["cuda"]
        if os.environ.get("FASTGAN_CUDA") == "0":
            record["reason"] = "switched off by FASTGAN_CUDA=0 when it was built"
            return None
        try:
            self.nvcc = find_nvcc()
            record["nvcc"] = first_line_of([self.nvcc, "--version"], r"release")
            record["archs"] = find_cuda_archs(self.nvcc)
        except LeftOut as reason:
            record["reason"] = str(reason)
            return None
        return "cuda"

    def compile(self, parts: list[str]) -> Path | None:
        """Runs ninja, again without a part if that part fails."""
        while parts:
            self.write_ninja_file(parts)
            log = self.run_ninja("all")
            if log is None:
                for part in parts:
                    self.record[part]["built"] = True
                return self.folder / "_C.so"
            failures = {part: failure for part in parts if (failure := self.run_ninja(part)) is not None}
            for part, failure in (failures or {part: log for part in parts}).items():
                nothing = {"isas": [], "openmp": False} if part == "cpu" else {"archs": []}
                self.record[part].update(nothing, reason=self.summary_of(part, failure))
                parts = [other for other in parts if other != part]
        return None

    def run_ninja(self, target: str) -> str | None:
        """The output of a failed run, or None after a good one."""
        command = [self.ninja, "-f", str(self.folder / "build.ninja"), "-j", str(self.jobs), "-k", "0", target]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout, flush=True)  # pip shows it under -v
        return done.stdout if done.returncode else None

    def summary_of(self, part: str, log: str) -> str:
        log_file = self.folder / f"{part}.log"
        (ROOT / log_file).write_text(log)
        errors = [line.strip() for line in log.splitlines() if re.search(r"\b(error|fatal)\b", line, re.I)]
        return f"compilation failed: {(errors or [last_line(log)])[0][:160]} (more in {log_file})"

    def write_ninja_file(self, parts: list[str]) -> None:
        cpu, cuda = (self.record[part] for part in ("cpu", "cuda"))
        isas = cpu["isas"] if "cpu" in parts else []
        openmp = ["-fopenmp", "-DFASTGAN_OPENMP=1"] if "cpu" in parts and cpu["openmp"] else ["-Wno-unknown-pragmas"]
        user_flags = shlex.split(os.environ.get("CXXFLAGS", ""))
        module_flags = [*user_flags, *CXX_FLAGS, *self.headers, *openmp, "-DFASTGAN_MODULE=_C"]
        module_flags += [f'-DFASTGAN_SOURCES="{SOURCES}"']
        module_flags += [f"-DFASTGAN_WITH_{part.upper()}=1" for part in parts]
        module_flags += [f"-DFASTGAN_WITH_{isa.upper()}=1" for isa in isas]
        edges = {"cuda": [], "module": [], "cpu": []}  # (object, source, flags) of each part, in build order
        for source in sources("common/*.cpp"):
            bindings = ["common/bindings.h", *map(str, sources("*/call.h"))] if source.name == "module.cpp" else []
            included = [word for header in bindings for word in ("-include", str(CSRC / header))]
            edges["module"].append((source.with_suffix(".o"), source, [*module_flags, *included]))
        # The slowest first, so that no core idles at the end.
        kernels_cpu = sorted(sources("*/cpu.cpp"), key=lambda source: source.parent.name not in SLOWEST_CPU_SOURCES)
        for source in kernels_cpu if "cpu" in parts else []:
            for isa in isas:
                flags = [*user_flags, *CXX_FLAGS, *openmp, *ISA_FLAGS[isa], f"-DFASTGAN_ISA={isa}"]
                edges["cpu"].append((source.with_suffix(f".{isa}.o"), source, flags))
        if "cuda" in parts:
            # nvcc uses the same host compiler.
            host = ["-ccbin", next(word for word in reversed(self.compiler) if not word.startswith("-"))]
            targets = cuda_targets(cuda["archs"])
            for source in sources("*/cuda.cu"):
                flags = [*host, *NVCC_FLAGS, *targets, f"--threads={self.jobs}"]
                edges["cuda"].append((source.with_suffix(".o"), source, flags))

        # Hide the symbols of linked archives: torch has a CUDA runtime of its own in the same process.
        link = ["-shared", "-Xlinker", "--exclude-libs=ALL", "-Xlinker", "-Bsymbolic"]
        linker = self.compiler
        if "cuda" in parts:
            linker = [self.nvcc, *host, "-cudart", "static"]
            link += ["-Xcompiler", "-fopenmp"] if openmp[0] == "-fopenmp" else []
            link += [word for flag in shlex.split(os.environ.get("LDFLAGS", "")) for word in ("-Xcompiler", flag)]
        else:
            link += openmp[:1] + shlex.split(os.environ.get("LDFLAGS", ""))

        def rule(name: str, command: list[str], tail: str, extra: str = "") -> str:
            return f"rule {name}\n  command = {quoted(command)} {tail}\n{extra}"

        depends = "  depfile = $out.d\n  deps = gcc\n"
        lines = [f"builddir = {self.folder}\n"]
        lines += [rule("cxx", self.compiler, "$flags -MMD -MF $out.d -c $in -o $out", depends)]
        lines += [rule("link", linker, "$in -o $out $flags")]
        if "cuda" in parts:
            lines += [rule("nvcc", [self.nvcc], "$flags -MMD -MF $out.d -c $in -o $out", depends)]
        for part, objects in edges.items():
            for target, source, flags in objects:
                compiler = "nvcc" if part == "cuda" else "cxx"
                lines += [f"build {self.folder / target}: {compiler} {CSRC / source}\n  flags = {quoted(flags)}\n"]
            names = " ".join(str(self.folder / target) for target, _, _ in objects)
            lines += [f"build {part}: phony {names}\n"]
        everything = " ".join(str(self.folder / target) for objects in edges.values() for target, _, _ in objects)
        lines += [f"build {self.folder / '_C.so'}: link {everything}\n  flags = {quoted(link)}\n"]
        lines += [f"build all: phony {self.folder / '_C.so'}\n"]
        (ROOT / self.folder).mkdir(parents=True, exist_ok=True)
        (ROOT / self.folder / "build.ninja").write_text("\n".join(lines))


def sources(pattern: str) -> list[Path]:
    """Files that match a pattern, relative to csrc/."""
    return sorted(path.relative_to(ROOT / CSRC) for path in (ROOT / CSRC).glob(pattern))


def cuda_targets(archs: list[int]) -> list[str]:
    """Flags of nvcc for machine code of each of `archs` and for PTX, which serves any later card.

    The slow step from C++ to PTX runs once for 8.0 and above (which has bf16 conversions) and once for older cards.
    """
    flags = []
    for group in ([arch for arch in archs if arch < 80], [arch for arch in archs if arch >= 80]):
        if group:
            codes = ",".join([f"sm_{arch}" for arch in group] + [f"compute_{group[0]}"])
            flags.append(f"-gencode=arch=compute_{group[0]},code=[{codes}]")
    return flags


def quoted(words: list[str]) -> str:
    """Words quoted for a command in a ninja file."""
    return shlex.join(words).replace("$", "$$")


# ---- setuptools -----------------------------------------------------------------------------------------------------


class BuildKernels(build_ext):
    """Puts the extension and `_build.json` into the build folder, or into kernels/ for an editable installation."""

    def run(self):
        abi_tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build = Build(Path(self.get_finalized_command("build").build_base, f"ninja-{abi_tag}"))
        library = build.run()
        in_place = self.inplace or self.editable_mode
        target = ROOT / "kernels" if in_place else Path(self.build_lib, "fastgan_kernels")
        target.mkdir(parents=True, exist_ok=True)
        extension = target / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        extension.unlink(missing_ok=True)  # a failed build must not leave an earlier one in place
        self.built = [target / "_build.json"]
        if library:
            shutil.copyfile(ROOT / library, extension)
            self.built.append(extension)
        (target / "_build.json").write_text(json.dumps(build.record, indent=1) + "\n")
        for part in ("cpu", "cuda"):
            done = build.record[part]
            print(f"{part} kernels: {'built' if done['built'] else 'left out'}. {done['reason']}", flush=True)

    def get_outputs(self):
        return [str(path) for path in getattr(self, "built", [])]

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return [str(CSRC / path) for path in sources("*/*")]


class BuildPython(build_py):
    """Starts from an empty folder, since a module deleted after the last build must not go into a wheel."""

    def run(self):
        for package in ("fastgan", "fastgan_kernels"):
            shutil.rmtree(Path(self.build_lib, package), ignore_errors=True)
        super().run()


setup(
    packages=[*find_packages(include=["fastgan", "fastgan.*"]), "fastgan_kernels", "fastgan_kernels.triton"],
    package_dir={"fastgan_kernels": "kernels"},
    ext_modules=[Extension("fastgan_kernels._C", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPython},
)
