"""Adafactor: second moments of matrices kept as a row and a column (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235).

Algorithms 4 and 5 with the decay of section 7.2 and the relative steps of section 8, whose size is the schedule's; no first moment.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.optimizers.on_device import Group, OnDevice

# ε₁ of the paper: added to squares, so that nothing is divided by 0.
_LEAST_SQUARE = 1e-30


class Adafactor(OnDevice):
    """Groups with `lr`, `decay_power`, `clip_threshold`, `least_scale` and `weight_decay` (decoupled). Statistics are of whole tensors.

    State: `row` and `column` of a parameter with two or more dimensions, `exp_avg_sq` of any other, `step`.
    """

    def update(self, group: Group, parameters: list[Tensor], applied: Tensor | float) -> None:
        gradients, steps = self.gradients(parameters), self.steps(parameters)
        # β̂₂ = 1 − t^−c
        weight = (steps[0] + 1) ** -group["decay_power"]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            second = self._second_moment(parameter, gradient.square().add_(_LEAST_SQUARE), weight, applied)
            # U = G / √V̂, its root mean square cut to d; where nothing has been seen yet, in a dropped first step, V̂ is 0
            update = gradient.mul_(second.clamp_(min=_LEAST_SQUARE).rsqrt_())
            update.div_((rms(update) / group["clip_threshold"]).clamp(min=1.0))
            # θ ← θ − ρ λ θ − ρ max(ε₂, RMS(θ)) U
            size = rms(parameter).clamp(min=group["least_scale"]) * (applied * group["lr"])
            parameter.mul_(1 - applied * (group["lr"] * group["weight_decay"])).sub_(update.mul_(size))
        torch._foreach_add_(steps, applied)

    def _second_moment(self, parameter: Tensor, squares: Tensor, weight: Tensor, applied: Tensor | float) -> Tensor:
        """V̂, of the parameter's shape, after taking in the squares of a gradient."""
        if parameter.ndim < 2:
            return self._taken_in(parameter, "exp_avg_sq", squares, weight, applied).clone()
        row = self._taken_in(parameter, "row", squares.mean(dim=-1), weight, applied)
        column = self._taken_in(parameter, "column", squares.mean(dim=-2), weight, applied)
        # R Cᵀ ⁄ mean R
        return (row / row.mean(dim=-1, keepdim=True).clamp(min=_LEAST_SQUARE)).unsqueeze(-1) * column.unsqueeze(-2)

    def _taken_in(self, parameter: Tensor, kind: str, new: Tensor, weight: Tensor, applied: Tensor | float) -> Tensor:
        if kind not in self.state[parameter]:
            self.state[parameter][kind] = torch.zeros_like(new)
        average: Tensor = self.state[parameter][kind]
        return average.add_((new - average) * (weight * applied))


def rms(tensor: Tensor) -> Tensor:
    """Root mean square, a scalar."""
    return torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5
