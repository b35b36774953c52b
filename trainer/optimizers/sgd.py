"""Stochastic gradient descent with momentum, as torch's; torch's fused one takes no tensors that are cut over the ranks (DTensor)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.optimizers.on_device import Group, OnDevice, local


class SGD(OnDevice):
    """Groups with `lr`, `weight_decay` (added to the gradient), `momentum`, `nesterov`. Elementwise. State: `momentum`, unless it is 0."""

    def update(self, group: Group, parameters: list[Tensor], applied: Tensor | float) -> None:
        gradients, values = self.gradients(parameters), [local(parameter) for parameter in parameters]
        momentum = group["momentum"]
        # g ← g + λ θ
        torch._foreach_add_(gradients, values, alpha=group["weight_decay"])
        directions: list[Tensor] | tuple[Tensor, ...] = gradients
        if momentum:
            # b ← μ b + g, written as a change of b; the step is b, or with Nesterov g + μ b.
            buffers = self.kept(parameters, "momentum")
            changes = torch._foreach_mul(buffers, momentum - 1)
            torch._foreach_add_(changes, gradients)
            torch._foreach_mul_(changes, applied)
            torch._foreach_add_(buffers, changes)
            directions = torch._foreach_add(gradients, buffers, alpha=momentum) if group["nesterov"] else buffers
        torch._foreach_sub_(values, torch._foreach_mul(directions, applied * group["lr"]))
