"""The discriminator of wgan_gp_critic.py once more, and its gradient penalty taken in one pass instead of by double
backward.

    python examples/one_pass_penalty.py [--batch 16] [--channels 32] [--size 64]

fastgan.losses follows a discriminator's forward pass, and where all of it is known to be piecewise linear, replays it
instead of differentiating its backward pass; any other discriminator is differentiated twice, as ever.
"""

from torch import Tensor, nn
from wgan_gp_critic import main

from fastgan.penalties import logits_and_squared_grad, one_centered_penalty


def one_pass_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    _, squares = logits_and_squared_grad(discriminator, images)
    return one_centered_penalty(squares)


if __name__ == "__main__":
    main(
        "A WGAN-GP discriminator before and after fastgan's layers and penalty.", {"and its penalty": one_pass_penalty}
    )
