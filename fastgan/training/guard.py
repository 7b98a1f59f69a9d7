"""Non-finite gradients: leaving weights as they are, scaling the loss for fp16, and ending a run that has diverged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fastgan.errors import UserError

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2000  # without an overflow, after which the scale is doubled
LIMIT = 20  # steps in a row without an update: they take the scale from 2^16 to 2^-4
LIMIT_AT_THE_END = 3
LARGEST = 2.0**60  # of a weight: products of larger ones are infinite in fp32
ENOUGH_STEPS = 100  # to judge by the share of skipped ones: the first steps in fp16 search for the scale


class GradientGuard(nn.Module):
    """Skips a network's update where a gradient is NaN or infinite; for fp16 it is also the gradient scaler.

    The scale grows while nothing overflows, and is halved where something does (Micikevicius et al. 2018, section 3.2).
    Everything is computed on the device, from buffers, and nothing waits for it.

    Attributes:
        found_inf: 0-dim fp32, 1 if a gradient of the last step was not finite. `fastgan.training.adam.Adam` and torch's
            fused optimizers read it.
        streak: 0-dim fp32, number of skipped steps in a row.
    """

    def __init__(self):
        super().__init__()
        self.scaled = False
        self.register_buffer("scale", torch.zeros((), dtype=torch.float32))  # 0: not set yet
        self.register_buffer("growth", torch.zeros((), dtype=torch.int32))
        self.register_buffer("streak", torch.zeros((), dtype=torch.float32))
        self.register_buffer("found_inf", torch.zeros((), dtype=torch.float32), persistent=False)

    def begin(self, scaled: bool) -> None:
        """Call once before the first step. scaled: whether networks compute in fp16."""
        self.scaled = scaled
        if not scaled:
            self.scale.fill_(0.0)
        elif self.scale == 0:  # a resumed run has a scale
            self.scale.fill_(FIRST_SCALE)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss * self.scale if self.scaled else loss

    @torch.no_grad()
    def unscale_and_check(self, parameters: Iterable[nn.Parameter]) -> None:
        """Unscale all gradients in place, set `found_inf` and `streak`, and update the scale."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.found_inf.zero_()
        if gradients:
            inverse = 1 / self.scale if self.scaled else torch.ones_like(self.scale)
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.found_inf, inverse)
        self.streak.add_(1).mul_(self.found_inf)
        if self.scaled:
            torch._amp_update_scale_(self.scale, self.growth, self.found_inf, 2.0, 0.5, GROWTH_STEPS)


def zero_gradients_if(found_inf: Tensor, gradients: Sequence[Tensor]) -> None:
    """Set all gradients to 0, also NaN, if `found_inf` (0-dim fp32) is 1; in few multi-tensor kernels.

    A product with 0 would keep NaN. So their bits are multiplied, as whole numbers: zeros are the number 0.
    """
    if gradients:
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[gradients[0].element_size()]
        torch._foreach_mul_([gradient.view(bits) for gradient in gradients], (1 - found_inf).to(bits))


class Diverged(UserError):
    """Raised when weights are not finite, or will not change any more. Such a state must not be saved."""


def require_progress(skipped: dict[str, int], limit: int, means: dict[str, float], images: int, saved: str) -> None:
    """Raise Diverged if the updates of a network were skipped in the last `limit` steps.

    Args:
        skipped: number of skipped steps in a row, by network.
        limit: number of them that ends the run.
        means: of logged values; the message names those that are not finite.
        images: shown so far.
        saved: where the last checkpoint is, for the message.
    """
    for network, steps in skipped.items():
        if steps >= limit:
            broken = ", ".join(name for name, value in means.items() if not math.isfinite(value))
            raise Diverged(
                f"training has diverged: gradients of the {network} were not finite in {steps} steps in a row, up to "
                f"{images:,} images{f' (nor was {broken})' * bool(broken)}; these steps were skipped, and {saved}; "
                "try a lower --lr-g and --lr-d or a higher --r1-gamma"
            )


def require_finite(tensors: Mapping[str, Tensor], saved: str) -> None:
    """Raise Diverged, naming the tensor, if a number in a state is NaN, infinite or nearly so. Such a state must not
    overwrite a good checkpoint.

    tensors: of a checkpoint, by name. Buffers and EMAs may be the only ones: no gradient passes through them.
    """
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            by_device.setdefault(tensor.device, {})[name] = tensor
    broken = []
    for there in by_device.values():
        largest = torch._foreach_norm(list(there.values()), math.inf)  # NaN if one number is
        for name, value in zip(there, torch.stack([each.double() for each in largest]).tolist(), strict=True):
            if not value < (math.inf if name.startswith("optimizer") else LARGEST):
                broken.append(name)
    if broken:
        more = f" and {len(broken) - 1} more tensors are" if len(broken) > 1 else " is"
        raise Diverged(
            f"training has diverged: {broken[0]}{more} not finite; {saved}; "
            "try a lower --lr-g and --lr-d or a higher --r1-gamma"
        )


class SkippedShare:
    """Share of the updates of each network that were skipped since the last reading."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._steps, self._skipped = 0, {"g": 0.0, "d": 0.0}

    def add(self, steps: int, means: Mapping[str, float]) -> None:
        """Add `steps` steps. means: of logged values, among them `skipped_g` and `skipped_d`."""
        self._steps += steps
        for name in self._skipped:
            self._skipped[name] += steps * means.get(f"skipped_{name}", 0.0)

    def require_less_than_half(self, least: int, saved: str) -> None:
        """Raise UserError if a network missed half of its updates, and begin anew; nothing in less than `least` steps.

        saved: where the checkpoint is, for the message. Weights are finite, so it may be saved.
        """
        if self._steps < least:
            return
        steps, skipped = self._steps, self._skipped
        self._begin()
        for name, network in (("g", "generator"), ("d", "discriminator")):
            if 2 * skipped[name] >= steps:
                raise UserError(
                    f"training hardly learns: gradients of the {network} were not finite in {skipped[name]:.0f} of the "
                    f"last {steps} steps, which were skipped; {saved}; try a lower --lr-g and --lr-d or a higher "
                    "--r1-gamma"
                )
