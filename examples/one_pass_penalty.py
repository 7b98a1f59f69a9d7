"""The discriminator of wgan_gp_discriminator.py, with its gradient penalty in one pass instead of double backward.

    python examples/one_pass_penalty.py [--batch 16] [--channels 32] [--size 64]

fastgan.penalties records a discriminator's forward pass. If all of it is piecewise linear, it is replayed instead of
differentiating the backward pass; any other discriminator uses double backward.
"""

from torch import Tensor, nn
from wgan_gp_discriminator import main

from fastgan.penalties import logits_and_squared_grad, one_centered_penalty


def one_pass_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    _, squares = logits_and_squared_grad(discriminator, images)
    return one_centered_penalty(squares)


if __name__ == "__main__":
    main(
        "A WGAN-GP discriminator before and after fastgan's layers and penalty.", {"and its penalty": one_pass_penalty}
    )
