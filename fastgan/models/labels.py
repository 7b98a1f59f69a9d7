"""Class labels in networks: one-hot vectors, embeddings, and projection in the discriminator.

Every function raises ValueError if the network has classes and the label is missing.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastgan.layers import EqualizedLinear
from fastgan.ops import pixel_norm
from fastgan.ops.arithmetic import to_arithmetic


def one_hot(label: Tensor | None, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Labels [N] int64 as one-hot vectors [N, num_classes]. Raises RuntimeError on a CPU for one that is no class."""
    # Not F.one_hot, whose checks read the labels in Python: a captured step cannot.
    label = _required(label, num_classes)
    return label.new_zeros(label.shape[0], num_classes, dtype=dtype).scatter(1, label.unsqueeze(1), 1.0)


def embed_label(embed: nn.Embedding, label: Tensor | None) -> Tensor:
    """Embedding [N, width] of labels [N] int64."""
    return embed(_required(label, embed.num_embeddings))


def concat_label(z: Tensor, embed: EqualizedLinear | None, label: Tensor | None) -> Tensor:
    """Normalized latents, and beside them the normalized embedding of labels [N] int64, as in StyleGAN2-ADA.

    z [N, z_dim] to [N, z_dim + width]. `embed` is None in a network without classes, which returns [N, z_dim].
    """
    z = pixel_norm(z)
    return z if embed is None else torch.cat([z, pixel_norm(_embed_one_hot(embed, label))], 1)


def projection_logits(
    x: Tensor, embed: EqualizedLinear | None, label: Tensor | None, layers: Iterable[nn.Module] = ()
) -> Tensor:
    """Logits [N] of a projection discriminator: the inner product of its features with the embedded label.

    Miyato and Koyama 2018, in the form of StyleGAN2-ADA: the embedding is normalized and then passes `layers`. Returns
    fp32 (fp64 for fp64).

    Args:
        x: features [N, width]; [N, 1] without classes.
        embed: None without classes.
        label: [N] int64.
        layers: a mapping network for the embedding.
    """
    x = to_arithmetic(x)
    if embed is None:
        return x.squeeze(1)
    direction = pixel_norm(to_arithmetic(_embed_one_hot(embed, label)))
    for layer in layers:
        direction = layer(direction)
    return (x * to_arithmetic(direction)).sum(1) / math.sqrt(x.shape[1])


def _embed_one_hot(embed: EqualizedLinear, label: Tensor | None) -> Tensor:
    return embed(one_hot(label, embed.weight.shape[1], embed.weight.dtype))


def _required(label: Tensor | None, num_classes: int) -> Tensor:
    if label is None:
        raise ValueError(f"this network has {num_classes} classes: it needs a label [N] for every sample")
    return label
