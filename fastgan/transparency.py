"""Transparent images as networks and measurements judge them: premultiplied, so that only what is seen counts.

Images of 4 channels are RGBA with straight alpha, as in a PNG file: a colour says nothing about its coverage. Where
alpha is 0 the colour is arbitrary, and averages of pixels mix it into visible ones. In premultiplied form (Porter and
Duff 1984, "Compositing Digital Images", section 3) colours are multiplied by coverage: all transparent pixels are
equal, and averages are those of what is seen. A discriminator of straight images would have the generator learn the
colours that data happen to have under transparency.

Most pixels are transparent or opaque: at an end of alpha's range, which a generator of unlimited values cannot meet
exactly. Alpha beyond its range looks as at the end; so a discriminator sees a tenth only of what is beyond. Then alpha
may lie past the end, where its errors hardly count, and there is a gradient back.
"""

import torch
from torch import Tensor

BEYOND = 0.1  # slope of alpha outside of its range


def premultiplied(images: Tensor) -> Tensor:
    """Images [N, C, H, W] of range [-1, 1] with 4 channels in premultiplied form; others as they are.

    Colours become (rgb + 1) * coverage - 1, where coverage is (alpha + 1) / 2 within 0 and 1. Alpha stays, but a tenth
    of what is outside of -1 to 1. Differentiable any number of times; the memory format stays.
    """
    if images.shape[1] != 4:
        return images
    alpha = images[:, 3:]
    within = alpha.clamp(-1, 1)
    is_alpha = torch.arange(4, device=images.device).view(4, 1, 1) == 3
    return torch.where(is_alpha, within + BEYOND * (alpha - within), (images + 1) * (within + 1) / 2 - 1)
