"""`fastgan doctor`: report this installation's hardware and kernels, and the backend of each operation."""

import argparse
import json
import os
import platform
import subprocess
import textwrap
from importlib import metadata

import torch

import fastgan
from fastgan.errors import UserError, command_line, program
from fastgan.runs import precision

try:
    import fastgan_kernels  # noqa: F401
    from fastgan.ops import backends
    from fastgan.ops.fused import OPERATIONS
    from fastgan_kernels import extension

    problem = None
except ModuleNotFoundError as error:
    if error.name != "fastgan_kernels":
        raise
    problem = "fastgan_kernels is not installed: run `pip install .` in the repository"
except UserError as error:  # in FASTGAN_BACKEND
    problem = str(error)


def examine() -> dict:
    """Everything in the report, as plain data, which `--json` prints."""
    gpu = _gpu()
    devices = ["cpu", *(f"cuda:{index}" for index in range(len(gpu["cards"])))]
    return {
        "fastgan": fastgan.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "gpu": gpu,
        "gpu_training": str(precision.GPU_TRAINING),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "extension": {"error": extension.load_error(), "build": extension.build_info()},
        "forced": os.environ.get("FASTGAN_BACKEND"),
        "operations": {
            operation: {device: _choice(operation, device) for device in devices} for operation in OPERATIONS
        },
        "replaces_torch": {name: each.why_not(torch.device("cpu")) for name, each in backends.REPLACEMENTS.items()},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> dict:
    gpu = {"cuda": torch.version.cuda, "driver": _nvidia_driver(), "cards": []}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(index)
        memory = card.total_memory / 2**30
        gpu["cards"].append(f"{card.name}, {memory:.0f} GiB, compute capability {card.major}.{card.minor}")
    return gpu


def _nvidia_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.strip() else None


def _cpu() -> dict:
    module = extension.module()
    if module is None or not module.isas:
        return {"model": _cpu_model(), "features": {}, "compiled_for": [], "in_use": None, "openmp": False}
    return {
        "model": _cpu_model(),
        "features": dict(module.cpu_features()),
        "compiled_for": list(module.isas),
        "in_use": module.cpu_isa(),
        "openmp": bool(module.openmp),
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _choice(operation: str, device: str) -> dict:
    """The backend in use, and the preferred ones that are unavailable, with the reasons."""
    rejected = {}
    for backend, reason in backends.explain(operation, device):
        if reason is None:
            return {"in_use": backend, "not": rejected}
        rejected[backend] = reason
    return {"in_use": None, "not": rejected}


def describe(found: dict) -> str:
    """The report as text."""
    cpu, gpu, built = found["cpu"], found["gpu"], found["extension"]["build"]
    parts = {part: built.get(part, {}) for part in ("cpu", "cuda")}

    cards = gpu["cards"] or [f"none that torch can use ({_why_no_gpu(gpu)})"]
    rows = [
        ("fastgan", f"{found['fastgan']}, Python {found['python']}, {found['platform']}"),
        ("torch", f"{found['torch']} (CUDA {gpu['cuda'] or 'not in this build'})"),
        ("triton", found["triton"] or "not installed"),
        *[("gpu" if index == 0 else "", card) for index, card in enumerate(cards)],
    ]
    if gpu["driver"]:
        rows.append(("driver", gpu["driver"]))
    if gpu["cards"]:
        rows.append(("training", found["gpu_training"]))
    features = [name for name, there in cpu["features"].items() if there]
    rows.append(("cpu", f"{cpu['model']} ({', '.join(features)})" if features else cpu["model"]))
    rows.append(("threads", f"{found['threads']} (OMP_NUM_THREADS sets it)"))

    rows.append(None)
    if built and not any(part["built"] for part in parts.values()):
        rows.append(("extension", "none: neither part could be built, so PyTorch and Triton do the work"))
    else:
        rows.append(("extension", found["extension"]["error"] or "loaded"))
    if built:
        rows.append(("compiler", built["compiler"] or "none"))
        rows.append(("cpu kernels", _describe_cpu(parts["cpu"], cpu)))
        rows.append(("cuda kernels", _describe_cuda(parts["cuda"])))

    rows.append(None)
    for operation, devices in found["operations"].items():
        rows.append((operation, ""))
        for device, choice in devices.items():
            gpu_name = "GPU" if len(gpu["cards"]) == 1 else f"GPU {device.removeprefix('cuda:')}"
            tensors = f"{'CPU' if device == 'cpu' else gpu_name} tensors"
            rows.append((f"  {tensors}", choice["in_use"] or "none: every use is an error"))
            rows += [("", f"not {backend}: {reason}") for backend, reason in choice["not"].items()]
    for part, why_library in found["replaces_torch"].items():
        rows += [(part, ""), ("  CPU tensors", "torch" if why_library else "cpp, where it is faster than torch")]
        rows += [("", f"not cpp: {why_library}")] if why_library else []
    if found["forced"]:
        rows.append(("", f"FASTGAN_BACKEND={found['forced']} is set"))
    return _table(rows)


def _why_no_gpu(gpu: dict) -> str:
    if gpu["cuda"] is None:
        return "this torch is built without CUDA"
    if gpu["driver"] is None:
        return "no NVIDIA card or driver found"
    return f"its CUDA {gpu['cuda']} may be too new for the driver"


def _describe_cpu(part: dict, cpu: dict) -> str:
    if not part.get("built"):
        return f"not built: {part.get('reason')}"
    text = f"{', '.join(part['isas'])}; {'OpenMP' if part['openmp'] else 'no OpenMP'}"
    if cpu["in_use"]:
        text += f"; in use: {cpu['in_use']}"
    return f"{text} ({part['reason']})" if part["reason"] else text


def _describe_cuda(part: dict) -> str:
    if not part.get("built"):
        return f"not built: {part.get('reason')}"
    cards = ", ".join(f"{arch / 10:.1f}" for arch in part["archs"])
    return f"compute capability {cards} and later; {part['nvcc']}"


def _table(rows: list[tuple[str, str] | None]) -> str:
    """Two aligned columns, wrapped; None is an empty line."""
    width = max(len(row[0]) for row in rows if row)
    lines = []
    for row in rows:
        if row is None:
            lines.append("")
            continue
        wrapped = textwrap.wrap(row[1], 100 - width, break_on_hyphens=False) or [""]
        lines += [f"{row[0] if index == 0 else '':{width}}  {text}".rstrip() for index, text in enumerate(wrapped)]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):  # of the standard library: works in an incomplete installation too
    def error(self, message: str):
        raise UserError(f"{message}; {self.prog} --help lists all")


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: this process's own) and return the exit status."""
    parser = _Parser(prog=program("doctor"), description=f"{__doc__.partition(': ')[2].capitalize()}")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(argv)
    if problem:
        raise UserError(problem)
    found = examine()
    print(json.dumps(found, indent=1) if options.json else describe(found))
    return 0
