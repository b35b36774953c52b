"""The scale of the loss under fp16, whose gradients would otherwise fall below its smallest number (https://arxiv.org/abs/1710.03740).

A power of two, halved by a step that is not finite and doubled after so many that are; kept and changed on the device, without a look.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST, _MOST = 2**16, 2**24
_STEPS_TO_DOUBLE = 2000


class LossScale:
    """Dynamic loss scaling. value: scalar on the device, a whole number from 1."""

    def __init__(self, device: torch.device, first: int = _FIRST, steps_to_double: int = _STEPS_TO_DOUBLE):
        self.value = torch.tensor(float(first), device=device)
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.steps_to_double = steps_to_double

    def update(self, applied: Tensor) -> None:
        """After a step. applied: 1, or 0 where a gradient was not finite."""
        run = (self.finite_steps + 1) * applied.long()
        doubles = run >= self.steps_to_double
        self.value.mul_(torch.where(applied > 0, torch.where(doubles, 2.0, 1.0), 0.5)).clamp_(1, _MOST)
        self.finite_steps.copy_(torch.where(doubles, 0, run))

    def scalars(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"loss_scale": int(self.value), "loss_scale_finite_steps": int(self.finite_steps)}

    def load(self, scalars: dict[str, int]) -> None:
        """Go on from a checkpoint; from one that was trained in another precision, as at first."""
        if "loss_scale" in scalars:
            self.value.fill_(scalars["loss_scale"])
            self.finite_steps.fill_(scalars["loss_scale_finite_steps"])
