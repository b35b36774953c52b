"""Muon: momentum whose matrices are orthogonalized before they are applied; AdamW for all that is no hidden matrix.

Keller Jordan et al., https://kellerjordan.github.io/posts/muon/; the update is scaled to AdamW's root mean square as in
https://arxiv.org/abs/2502.16982, so one learning rate serves both parts and a transposed weight (GPT-2's Conv1D) is treated alike.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw

from trainer.optimizers.on_device import Group, OnDevice

# Coefficients of the quintic iteration, from the post above: steepest at 0, and stable though not convergent to 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
# Root mean square of an AdamW update, as measured in the paper above.
_UPDATE_RMS = 0.2


class Muon(OnDevice):
    """Groups of `kind` muon (matrices) or adamw, each with `lr` and `weight_decay` and what its kind reads.

    Ranks that hold the same each orthogonalize a share of the matrices and exchange the results; momenta are kept by all of them, which
    costs no communication, so a checkpoint is the same whoever computed what.
    """

    def update(self, group: Group, parameters: list[Tensor], applied: Tensor | float) -> None:
        if group["kind"] == "adamw":
            return self._adamw(group, parameters)
        gradients, momenta = self.gradients(parameters), self.kept(parameters, "momentum")
        for momentum, gradient in zip(momenta, gradients, strict=True):
            momentum.add_((gradient - momentum) * (applied * (1 - group["momentum"])))
        shapes = tuple(parameter.shape for parameter in parameters)
        mine = shares(shapes, self.ranks)[self.rank]
        directions = _by_shape([gradients[index].lerp(momenta[index], group["momentum"]) for index in mine], group["iterations"])
        if self.ranks > 1:
            directions = self._exchanged(directions, shapes, parameters[0].device)
        rate = applied * group["lr"]
        for parameter, direction in zip(parameters, directions, strict=True):
            update = direction.to(parameter.dtype) * (_UPDATE_RMS * max(parameter.shape) ** 0.5 * rate)
            parameter.mul_(1 - rate * group["weight_decay"]).sub_(update)

    def _exchanged(self, mine: list[Tensor], shapes: tuple[torch.Size, ...], device: torch.device) -> list[Tensor]:
        """The directions of all matrices, of which this rank has its share."""
        shared = shares(shapes, self.ranks)
        longest = max(sum(shapes[index].numel() for index in share) for share in shared)
        # On a GPU they come out of products in bf16, so nothing is lost on the way.
        sent = torch.zeros(longest, dtype=_product_dtype(device), device=device)
        if mine:
            flat = torch.cat([direction.flatten() for direction in mine])
            sent[: len(flat)] = flat
        received = sent.new_empty(self.ranks * longest)
        dist.all_gather_into_tensor(received, sent)
        found: dict[int, Tensor] = {}
        for share, row in zip(shared, received.split(longest), strict=True):
            start = 0
            for index in share:
                found[index] = row[start : start + shapes[index].numel()].view(shapes[index])
                start += shapes[index].numel()
        return [found[index] for index in range(len(shapes))]

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


@lru_cache(maxsize=64)
def shares(shapes: tuple[torch.Size, ...], ranks: int) -> tuple[tuple[int, ...], ...]:
    """Which matrices each rank orthogonalizes, by number: about the same work for all of them. Every rank finds the same."""
    work = [min(shape) ** 2 * max(shape) for shape in shapes]
    load, found = [0] * ranks, [list[int]() for _ in range(ranks)]
    for index in sorted(range(len(shapes)), key=lambda index: -work[index]):
        rank = load.index(min(load))
        load[rank] += work[index]
        found[rank].append(index)
    return tuple(tuple(sorted(share)) for share in found)


def _by_shape(matrices: list[Tensor], iterations: int) -> list[Tensor]:
    """Each matrix orthogonalized, those of one shape together."""
    members: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        members.setdefault(matrix.shape, []).append(index)
    found: dict[int, Tensor] = {}
    for indices in members.values():
        found.update(zip(indices, orthogonalize(torch.stack([matrices[index] for index in indices]), iterations), strict=True))
    return [found[index] for index in range(len(matrices))]


def _product_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def orthogonalize(matrices: Tensor, iterations: int) -> Tensor:
    """The nearest semi-orthogonal matrices, about: singular values become 0.7 to 1.2. `[count, rows, columns]` → the same shape.

    Products run in bf16 on a GPU, where that is several times faster and enough; in fp32 on a CPU, where it is slower.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    found = matrices if wide else matrices.mT
    # The spectral norm is at most this one.
    found = (found / (torch.linalg.matrix_norm(found, keepdim=True) + 1e-7)).to(_product_dtype(found.device))
    for _ in range(iterations):
        gram = found @ found.mT
        found = _A * found + (_B * gram + _C * gram @ gram) @ found
    return found if wide else found.mT
