"""Lion: the sign of an interpolated momentum (Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.optimizers.on_device import Group, OnDevice, local


class Lion(OnDevice):
    """Groups with `lr`, `betas` and `weight_decay` (decoupled). Elementwise: a rank's rows are enough. State: `exp_avg`."""

    def update(self, group: Group, parameters: list[Tensor], applied: Tensor | float) -> None:
        beta1, beta2 = group["betas"]
        gradients, averages = self.gradients(parameters), self.kept(parameters, "exp_avg")
        values = [local(parameter) for parameter in parameters]
        rate = applied * group["lr"]
        # θ ← θ − η (sign(β₁ m + (1 − β₁) g) + λ θ)
        direction = torch._foreach_lerp(averages, gradients, 1 - beta1)
        torch._foreach_sign_(direction)
        torch._foreach_mul_(direction, rate)
        torch._foreach_mul_(values, 1 - rate * group["weight_decay"])
        torch._foreach_sub_(values, direction)
        # m ← β₂ m + (1 − β₂) g
        torch._foreach_sub_(gradients, averages)
        torch._foreach_mul_(gradients, applied * (1 - beta2))
        torch._foreach_add_(averages, gradients)
