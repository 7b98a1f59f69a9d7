"""How a class label enters networks of equalised learning rate: joined to the latent, or projected upon by the
discriminator.

`embed` is None in a network without classes, which looks at no label; with classes, ValueError is raised if it is
missing.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.layers import EqualizedLinear
from fastgan.ops import pixel_norm
from fastgan.ops.arithmetic import to_arithmetic


def concat_label(z: Tensor, embed: EqualizedLinear | None, label: Tensor | None) -> Tensor:
    """Latents [N, z_dim] of mean square one, and beside them the embedding of labels [N] int64, normalised likewise."""
    z = pixel_norm(z)
    return z if embed is None else torch.cat([z, pixel_norm(_embedded(embed, label))], 1)


def projection_logits(
    x: Tensor, embed: EqualizedLinear | None, label: Tensor | None, layers: Iterable[nn.Module] = ()
) -> Tensor:
    """A discriminator's result [N, width] to logits [N], in fp32 at least: the inner product with the label's
    direction.

    That is what `layers` make of its embedding. Miyato and Koyama 2018, in the form of StyleGAN2-ADA. Without classes
    the width is 1.
    """
    x = to_arithmetic(x)
    if embed is None:
        return x.squeeze(1)
    direction = pixel_norm(to_arithmetic(_embedded(embed, label)))
    for layer in layers:
        direction = layer(direction)
    return (x * to_arithmetic(direction)).sum(1) / math.sqrt(x.shape[1])


def _embedded(embed: EqualizedLinear, label: Tensor | None) -> Tensor:
    num_classes = embed.weight.shape[1]
    if label is None:
        raise ValueError(f"this network has {num_classes} classes: it needs a label [N] for every sample")
    return embed(F.one_hot(label, num_classes).to(embed.weight.dtype))
