"""LAMB: AdamW's direction, as long in each tensor as the tensor's own norm says (You et al. 2019, https://arxiv.org/abs/1904.00962)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.optimizers.on_device import Group, OnDevice


class Lamb(OnDevice):
    """Groups with `lr`, `betas`, `eps`, `weight_decay` and `decays`. Norms are of whole tensors. State: `exp_avg`, `exp_avg_sq`, `step`.

    Tensors that the decay leaves out (norms, biases) take AdamW's step, as in the authors' code: their norms begin at 0.
    """

    def update(self, group: Group, parameters: list[Tensor], applied: Tensor | float) -> None:
        beta1, beta2 = group["betas"]
        gradients, steps = self.gradients(parameters), self.steps(parameters)
        averages, squares = self.kept(parameters, "exp_avg"), self.kept(parameters, "exp_avg_sq")
        now = steps[0] + 1
        # m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², each as a change
        changes = torch._foreach_sub(gradients, averages)
        torch._foreach_mul_(changes, applied * (1 - beta1))
        torch._foreach_add_(averages, changes)
        torch._foreach_mul_(gradients, gradients)
        torch._foreach_sub_(gradients, squares)
        torch._foreach_mul_(gradients, applied * (1 - beta2))
        torch._foreach_add_(squares, gradients)
        torch._foreach_add_(steps, applied)
        # r = m̂ / (√v̂ + ε) + λ θ
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - beta2**now).sqrt())
        torch._foreach_add_(roots, group["eps"])
        directions = torch._foreach_div(averages, 1 - beta1**now)
        torch._foreach_div_(directions, roots)
        torch._foreach_add_(directions, parameters, alpha=group["weight_decay"])
        # θ ← θ − η ‖θ‖ ⁄ ‖r‖ r
        rate = applied * group["lr"]
        if group["decays"]:
            lengths, wanted = (torch.stack(torch._foreach_norm(tensors)) for tensors in (directions, parameters))
            ratios = torch.where((lengths > 0) & (wanted > 0), wanted / lengths, 1.0)
            torch._foreach_mul_(directions, list((ratios * rate).unbind()))
        else:
            torch._foreach_mul_(directions, rate)
        torch._foreach_sub_(parameters, directions)
