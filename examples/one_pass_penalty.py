"""The critic of wgan_gp_critic.py once more, and its gradient penalty taken in one pass instead of by double backward.

    python examples/one_pass_penalty.py [--batch 16] [--channels 32] [--size 64]

fastgan.losses follows a critic's forward pass, and where all of it is known to be piecewise linear, replays it instead
of differentiating its backward pass; any other critic is differentiated twice, as ever.
"""

from torch import Tensor, nn
from wgan_gp_critic import main

from fastgan.losses import critic_with_grad_norm, one_centered_penalty


def one_pass_penalty(critic: nn.Module, images: Tensor) -> Tensor:
    _, squares = critic_with_grad_norm(critic, images)
    return one_centered_penalty(squares)


if __name__ == "__main__":
    main("A WGAN-GP critic before and after fastgan's layers and penalty.", {"and its penalty": one_pass_penalty})
