"""Formats of exported generators, ONNX and .pt2: how to write a file, and how to run it.

Both hold the weights, and metadata as strings: fastgan (the version), arch, part, height, width, channels, class_names
(a JSON list, in the order of labels), noise and image.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastgan.errors import UserError
from fastgan.export.tracing import FixedNoise, Image, Part, quiet
from fastgan.sampler import Sampler
from fastgan.version import __version__

METADATA = "fastgan.json"  # extra file of a .pt2 that holds the metadata


class Format(NamedTuple):
    """One kind of file."""

    write: Callable[[ExportedProgram, dict[str, str]], bytes]  # with metadata
    open: Callable[[bytes], Callable[..., Tensor]]  # returns a function from named inputs to the output
    runner: str  # name of the software that runs it


def metadata(sampler: Sampler, noise: FixedNoise, image: Image, part: Part = "generator") -> dict[str, str]:
    """Metadata of the file, by name."""
    return {
        "fastgan": __version__,
        "arch": sampler.model.arch,
        "part": part,
        "height": str(sampler.size[0]),
        "width": str(sampler.size[1]),
        "channels": str(sampler.model.channels),
        "class_names": json.dumps(sampler.class_names),
        "noise": noise,
        "image": image,
    }


def require_onnx() -> None:
    """Raises UserError, naming the extra, if a package that ONNX needs is missing."""
    try:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(package)
    except ImportError:
        raise UserError(
            'ONNX needs the extra "export", which is not installed: pip install ".[export]", '
            "or pip install onnx onnxscript onnxruntime; or choose --format torch, which needs nothing more"
        ) from None


def to_onnx(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """An ONNX file of standard operators. Raises UserError if a package is missing."""
    require_onnx()
    from onnxscript import optimizer

    with torch.no_grad(), quiet():
        # Without torch's `optimize`: it removes additions of 0, and takes the 1e-8 of a normalization for 0.
        output = "ws" if metadata["part"] == "mapping" else "image"
        made: Any = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, output_names=[output])
        optimizer.fold_constants(made.model)
        optimizer.remove_unused_nodes(made.model)
    for node in made.model.graph:
        node.metadata_props.clear()  # they name classes and functions
    made.model.metadata_props.update(metadata)
    return made.model_proto.SerializeToString()


def open_onnx(content: bytes) -> Callable[..., Tensor]:
    """A function that runs a file with ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(**inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])

    return run


def to_torch(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """A .pt2 file by `torch.export.save`."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()


def open_torch(content: bytes) -> Callable[..., Tensor]:
    """A function that runs a file with `torch.export.load`."""
    with quiet():
        network = torch.export.load(io.BytesIO(content)).module()

    @torch.no_grad()
    def run(**inputs: Tensor) -> Tensor:
        first, *others = inputs
        return network(inputs[first], **{name: inputs[name] for name in others})

    return run


FORMATS = {"onnx": Format(to_onnx, open_onnx, "ONNX Runtime"), "torch": Format(to_torch, open_torch, "torch.export")}
