"""Muon: momentum whose matrices are orthogonalized before they are applied; AdamW for all that is no hidden matrix.

Keller Jordan et al., https://kellerjordan.github.io/posts/muon/; the update is scaled to AdamW's root mean square as in
https://arxiv.org/abs/2502.16982, so one learning rate serves both parts and a transposed weight (GPT-2's Conv1D) is treated alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Coefficients of the quintic iteration, from the post above: steepest at 0, and stable though not convergent to 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
# Root mean square of an AdamW update, as measured in the paper above.
_UPDATE_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Groups of `kind` muon (matrices) or adamw, each with `lr` and `weight_decay` and what its kind reads.

    Like torch's fused optimizers it reads `found_inf` and `grad_scale` on the device, so a step that is not finite changes nothing.
    """

    _step_supports_amp_scaling = True

    def __init__(self, groups: Iterable[dict[str, Any]]):
        super().__init__(list(groups), {})
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                {"muon": self._orthogonal, "adamw": self._adamw}[group["kind"]](group, parameters)

    def _orthogonal(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, members in by_shape.items():
            for member in members:
                if not self.state[member]:
                    self.state[member]["momentum"] = torch.zeros_like(member)
            buffers = [self.state[member]["momentum"] for member in members]
            before = torch.stack(buffers)
            gradient = torch.stack([member.grad for member in members])  # type: ignore[misc]
            if self.grad_scale is not None:
                gradient = gradient / self.grad_scale
            after = before.lerp(gradient, 1 - group["momentum"])
            direction = orthogonalize(gradient.lerp(after, group["momentum"]), group["iterations"])
            update = direction * (_UPDATE_RMS * max(shape) ** 0.5 * group["lr"])
            self._apply(group, members, buffers, after, update)

    def _apply(self, group: dict[str, Any], members: list[Tensor], buffers: list[Tensor], after: Tensor, update: Tensor) -> None:
        for index, (member, buffer) in enumerate(zip(members, buffers, strict=True)):
            new = member * (1 - group["lr"] * group["weight_decay"]) - update[index]
            if self.found_inf is None:
                member.copy_(new)
                buffer.copy_(after[index])
            else:
                # Selected, not multiplied: 0 × NaN would still be NaN.
                keep = self.found_inf > 0
                member.copy_(torch.where(keep, member, new))
                buffer.copy_(torch.where(keep, buffer, after[index]))

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
                self.state[parameter].update(zeros, step=torch.zeros((), device=parameter.device))
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
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
