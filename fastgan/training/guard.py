"""What keeps gradients that are not finite from the weights, without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastgan.errors import UserError

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2000  # without an overflow, after which the scale is doubled
LIMIT = 20  # steps in a row without an update: from the first scale they lead to 2^-4
LIMIT_AT_THE_END = 3


class Guard(nn.Module):
    """Of one network: a step whose gradients have a NaN or an infinity in them leaves its weights as they are.

    For fp16 it also scales the loss, so that small gradients are not lost: up as long as nothing overflows, down where
    it does (Micikevicius et al. 2018, section 3.2). All of it is arithmetic on the device, its state in buffers.

    Attributes:
        found: 0-dim fp32, 1 if the last step's gradients were not finite. What `fastgan.training.adam.Adam` and
            torch's fused optimizers read as `found_inf`.
        streak: 0-dim fp32, so many steps in a row were left out.
    """

    def __init__(self):
        super().__init__()
        self.scaled = False
        self.register_buffer("scale", torch.zeros((), dtype=torch.float32))  # 0: not begun
        self.register_buffer("growth", torch.zeros((), dtype=torch.int32))
        self.register_buffer("streak", torch.zeros((), dtype=torch.float32))
        self.register_buffer("found", torch.zeros((), dtype=torch.float32), persistent=False)

    def begin(self, scaled: bool) -> None:
        """To be called once, before the first step: whether gradients are computed in fp16."""
        self.scaled = scaled
        if not scaled:
            self.scale.fill_(0.0)
        elif self.scale == 0:  # not that of a run that is resumed
            self.scale.fill_(FIRST_SCALE)

    def loss(self, loss: Tensor) -> Tensor:
        """What to differentiate."""
        return loss * self.scale if self.scaled else loss

    @torch.no_grad()
    def check(self, parameters: Iterable[nn.Parameter]) -> None:
        """Looks at all gradients, brings them to their true size, and sees to the next step's scale."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.found.zero_()
        if gradients:
            inverse = 1 / self.scale if self.scaled else torch.ones_like(self.scale)
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.found, inverse)
        self.streak.add_(1).mul_(self.found)
        if self.scaled:
            torch._amp_update_scale_(self.scale, self.growth, self.found, 2.0, 0.5, GROWTH_STEPS)


def require_progress(left_out: dict[str, int], limit: int, means: dict[str, float], images: int, saved: str) -> None:
    """Raise UserError if updates of a network have been left out in the last `limit` steps, or more.

    left_out: steps in a row whose gradients were not finite, by network. means: of what is logged; those that are not
    finite tell why. saved: where the last checkpoint is.
    """
    for network, steps in left_out.items():
        if steps >= limit:
            broken = ", ".join(name for name, value in means.items() if not math.isfinite(value))
            raise UserError(
                f"training has diverged: gradients of the {network} were not finite in {steps} steps in a row, up to "
                f"{images:,} images{f' (nor was {broken})' * bool(broken)}; these steps were left out, and {saved}; "
                "try a lower --lr-g and --lr-d or a higher --r1-gamma"
            )


def require_finite_weights(generator: nn.Module, discriminator: nn.Module, saved: str) -> None:
    """Raise UserError if a weight is NaN or infinite: such a state must not take the place of a good one."""
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        norms = torch.stack(torch._foreach_norm(list(network.parameters())))
        if not norms.isfinite().all():
            raise UserError(
                f"training has diverged: weights of the {name} are not finite; {saved}; "
                "try a lower --lr-g and --lr-d or a higher --r1-gamma"
            )
