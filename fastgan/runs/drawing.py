"""Drawing images from a trained generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.models import ModelConfig
from fastgan.ops.fixed_weights import FixedWeights, fixed_weights
from fastgan.options import LARGEST_NUMPY_SEED, SeedFormat

LARGEST_BATCH = 64
CACHED = 32 << 20  # bytes of feature maps that a batch may have

Noise = Literal["const", "none", "random"]
Network = TypeVar("Network", bound=nn.Module)


class Unsupported(ValueError):
    """Raised for an option that a generator does not have; the message names architecture and option."""


def architecture(generator: nn.Module) -> str:
    """Family of a generator: the name of the module that defines it."""
    return type(generator).__module__.rpartition(".")[2]


def latents(seeds: Sequence[int], z_dim: int, seed_format: SeedFormat | Tensor = "torch") -> Tensor:
    """One latent for each seed: fp32 [len(seeds), z_dim] on the CPU.

    seed_format: random number generator. "numpy" gives the latents of the official StyleGAN2 scripts,
    `np.random.RandomState(seed).randn(1, z_dim)`. Or the latents themselves, such as projected ones, of which seeds
    are the indices. Raises ValueError for a seed that is too large for numpy.
    """
    if isinstance(seed_format, Tensor):
        return seed_format[list(seeds)]
    if seed_format == "torch":
        return torch.stack([torch.randn(z_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    if seed_format != "numpy":
        raise ValueError(f"seed_format is {seed_format!r}, must be 'torch' or 'numpy'")
    if max(seeds) > LARGEST_NUMPY_SEED:
        raise ValueError(f"seed {max(seeds)} is out of range, must be at most {LARGEST_NUMPY_SEED} for numpy")
    z = np.stack([np.random.RandomState(seed).randn(z_dim) for seed in seeds])
    return torch.from_numpy(z).float()  # as the official networks round z


def arguments(generator: nn.Module, *, truncation: float = 1.0, noise: Noise = "const") -> dict[str, Any]:
    """Keyword arguments for a generator: truncation and noise, where it supports them.

    Raises Unsupported for a value other than the default that it does not support.
    """
    supports: Any = generator.supports
    if truncation != 1 and "truncation" not in supports:
        raise Unsupported(f"{architecture(generator)} has no truncation: psi is {truncation:g}, must be 1")
    if noise != "const" and "noise" not in supports:
        raise Unsupported(f"{architecture(generator)} has no noise: it is {noise!r}, must be 'const'")
    given = {"truncation": truncation, "noise": noise}
    return {name: value for name, value in given.items() if name in supports}


def draw(
    generator: nn.Module, z: Tensor, labels: Tensor | None, *, truncation: float = 1.0, batch: int = 1
) -> np.ndarray:
    """Images of latents z [N, z_dim] and labels [N] int64, as uint8 [N, H, W, C].

    The generator should be in eval mode. It runs in fp32 with constant noise, so a latent always gives the same image:
    bit-identical with `batch` 1; larger batches may round differently. truncation: psi, 1 for none. Raises Unsupported
    if it is not 1 and the generator has no truncation.
    """
    return np.concatenate(
        [to_uint8(part) for part in draw_batches(generator, z, labels, truncation=truncation, batch=batch)]
    )


def draw_tensor(generator: nn.Module, z: Tensor, labels: Tensor | None, *, truncation: float = 1.0) -> Tensor:
    """Like `draw` with `batch` 1, but fp32 [N, C, H, W] of nominal range [-1, 1], on the CPU."""
    return torch.cat([part.float().cpu() for part in draw_batches(generator, z, labels, truncation=truncation)])


def quantized(images: Tensor) -> Tensor:
    """Images clamped to [-1, 1], as uint8 0..255."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def to_uint8(images: Tensor) -> np.ndarray:
    """[..., C, H, W] of range [-1, 1] to uint8 [..., H, W, C]."""
    return quantized(images).movedim(-3, -1).cpu().numpy()


class _Trained(NamedTuple):
    kept: FixedWeights
    batch: int


_trained: WeakKeyDictionary[nn.Module, _Trained] = WeakKeyDictionary()


def trained(generator: Network, model: ModelConfig) -> Network:
    """The generator, marked as one that is not trained any more: `inference` keeps what it computes of weights alone.

    That takes up to five times the memory of the weights. Changed weights are noticed, but for changes through
    `weight.data`.
    """
    if generator not in _trained:
        _trained[generator] = _Trained(FixedWeights(_weights_of(ref(generator))), batch_size(model))
    return generator


def _weights_of(network: ref[nn.Module]) -> Callable[[], Iterator[Tensor]]:
    """A function that returns the weights. A strong reference would keep the key of the dictionary alive."""

    def weights() -> Iterator[Tensor]:
        found = network()
        return iter(()) if found is None else found.parameters()

    return weights


def batch_size(model: ModelConfig) -> int:
    """Number of images to draw at once: a power of two.

    A batch hides the fixed cost of a call, which matters for small images. Its feature maps should stay in the cache,
    which matters for large ones. docs/notes/sampling.md has the measurements.
    """
    height, width = model.feature_size(model.resolutions[-1])
    image = model.features(model.resolutions[-1]) * height * width * 4  # bytes of the last feature maps in fp32
    return min(LARGEST_BATCH, 1 << max(0, (CACHED // image).bit_length() - 1))


def recommended_batch(generator: nn.Module) -> int:
    """`batch_size` of a generator that is `trained`; 1 for others."""
    found = _trained.get(generator)
    return 1 if found is None else found.batch


@contextmanager
def inference(generator: nn.Module) -> Iterator[None]:
    """Calls of the generator within the block compute no gradients, and little of `trained` weights again."""
    found = _trained.get(generator)
    with torch.no_grad(), nullcontext() if found is None else fixed_weights(found.kept):
        yield


def draw_batches(
    generator: nn.Module, z: Tensor, labels: Tensor | None, *, truncation: float = 1.0, batch: int = 1
) -> Iterator[Tensor]:
    """The generator's output in batches, [up to `batch`, C, H, W] on its device; arguments as for `draw`."""
    options = arguments(generator, truncation=truncation)
    device = next(generator.parameters()).device
    for start in range(0, len(z), batch):
        label = None if labels is None else labels[start : start + batch].to(device)
        with inference(generator):
            images = generator(z[start : start + batch].to(device), label, **options)
        yield images
