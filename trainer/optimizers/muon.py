"""Muon: momentum whose matrices are orthogonalized before they are applied; AdamW for all that is no hidden matrix.

Keller Jordan et al., https://kellerjordan.github.io/posts/muon/; the update is scaled to AdamW's root mean square as in
https://arxiv.org/abs/2502.16982, so one learning rate serves both parts and a transposed weight (GPT-2's Conv1D) is treated alike.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from trainer.optimizers.on_device import Group, OnDevice

# Coefficients of the quintic iteration, from the post above: steepest at 0, and stable though not convergent to 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
# Root mean square of an AdamW update, as measured in the paper above.
_UPDATE_RMS = 0.2


class Muon(OnDevice):
    """Groups of `kind` muon (matrices) or adamw, each with `lr` and `weight_decay` and what its kind reads."""

    def update(self, group: Group, parameters: list[Tensor], applied: Tensor | float) -> None:
        if group["kind"] == "adamw":
            return self._adamw(group, parameters)
        gradients, momenta = self.gradients(parameters), self.kept(parameters, "momentum")
        by_shape: dict[torch.Size, list[int]] = {}
        for index, parameter in enumerate(parameters):
            by_shape.setdefault(parameter.shape, []).append(index)
        for shape, indices in by_shape.items():
            before = torch.stack([momenta[index] for index in indices])
            gradient = torch.stack([gradients[index] for index in indices])
            after = before.lerp(gradient, 1 - group["momentum"])
            direction = orthogonalize(gradient.lerp(after, group["momentum"]), group["iterations"])
            rate = applied * group["lr"]
            updates = direction * (_UPDATE_RMS * max(shape) ** 0.5 * rate)
            changes = (after - before) * applied
            for index, change, update in zip(indices, changes, updates, strict=True):
                momenta[index].add_(change)
                parameters[index].mul_(1 - rate * group["weight_decay"]).sub_(update)

    def _adamw(self, group: Group, parameters: list[Tensor]) -> None:
        averages, squares = self.kept(parameters, "exp_avg"), self.kept(parameters, "exp_avg_sq")
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            averages,
            squares,
            [],
            self.steps(parameters),
            fused=True,
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: Tensor, iterations: int) -> Tensor:
    """The nearest semi-orthogonal matrices, about: singular values become 0.7 to 1.2. `[count, rows, columns]` → the same.

    Products run in bf16 on a GPU, where that is several times faster and enough; in fp32 on a CPU, where it is slower.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    found = matrices if wide else matrices.mT
    # The spectral norm is at most this one.
    found = found / (torch.linalg.matrix_norm(found, keepdim=True) + 1e-7)
    if found.is_cuda:
        found = found.bfloat16()
    for _ in range(iterations):
        gram = found @ found.mT
        found = _A * found + (_B * gram + _C * gram @ gram) @ found
    return (found if wide else found.mT).to(matrices.dtype)
