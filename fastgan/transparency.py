"""Premultiplied alpha, in which discriminators and metrics see transparent images.

Images of 4 channels are RGBA with straight alpha, as in a PNG file: where alpha is 0 the colour is arbitrary, and
averages of pixels mix it into visible ones. Premultiplied (Porter and Duff 1984, "Compositing Digital Images", section
3), all transparent pixels are equal and averages are those of visible colours. With straight alpha, a discriminator
would teach the generator the arbitrary colours too.

Alpha of most pixels is at an end of its range, which a generator without bounds cannot hit exactly. So alpha outside of
the range is pulled to a tenth of its excess: errors there hardly count, and a gradient back remains.
"""

import torch
from torch import Tensor

OUTSIDE_SLOPE = 0.1  # of alpha outside of its range


def premultiplied(images: Tensor) -> Tensor:
    """Premultiply images [N, C, H, W] of range [-1, 1] if they have 4 channels; return others unchanged.

    rgb = (rgb + 1) * coverage - 1 with coverage = clamp((alpha + 1) / 2, 0, 1). Alpha within [-1, 1] stays; of the
    excess, a tenth. Differentiable any number of times; keeps the memory format.
    """
    if images.shape[1] != 4:
        return images
    alpha = images[:, 3:]
    within = alpha.clamp(-1, 1)
    is_alpha = torch.arange(4, device=images.device).view(4, 1, 1) == 3
    return torch.where(is_alpha, within + OUTSIDE_SLOPE * (alpha - within), (images + 1) * (within + 1) / 2 - 1)
