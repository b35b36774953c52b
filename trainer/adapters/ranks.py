"""Which ranks of AdaLoRA matter: kept as more kinds of an optimizer's state, so that they are saved and read like a moment.

    s = |w ∂L/∂w|      S ← b₁ S + (1 − b₁) s      U ← b₂ U + (1 − b₂) |s − S|      of an element: S U

The score of a rank is that of its Λ, plus the means of those of its row of A and its column of B. Whatever decides lies on the device, and
is the same on every rank of a replicated run, whose gradients are. https://arxiv.org/abs/2303.10512
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from trainer.adapters import Budget

IMPORTANCE, UNCERTAINTY, KEPT = "importance", "uncertainty", "kept"
Named = Sequence[tuple[str, nn.Parameter]]


def without_counts(model: nn.Module) -> None:
    """Have PEFT's layers keep the rank that they divide by as a number: as a parameter that is never trained, it has no first values."""
    from peft.tuners.adalora.layer import AdaLoraLayer

    for module in model.modules():
        if isinstance(module, AdaLoraLayer):
            ranks = {adapter: float(rank) for adapter, rank in module.r.items()}
            del module.ranknum
            module.__dict__["ranknum"] = ranks


def watch(optimizer: torch.optim.Optimizer, named: Named, sensitivity: float, uncertainty: float, weight: float) -> None:
    """From now on every step of an optimizer updates the importance of what it updates, in applied steps only.

    weight: of the gradient of orthogonality, which is added to that of the loss as it is used, as decoupled weight decay is.
    """
    matrices = [parameter for name, parameter in named if _part(name) in ("lora_A", "lora_B")]
    values = [parameter for name, parameter in named if _part(name) == "lora_E"]

    @torch.no_grad()
    def before_step(stepped: Any, args: Any, kwargs: Any) -> None:
        scale, dropped = getattr(stepped, "grad_scale", None), getattr(stepped, "found_inf", None)
        if KEPT not in stepped.state[values[0]]:
            return
        for parameter, more in zip(matrices, orthogonality(matrices), strict=True):
            parameter.grad.add_(more * (weight if scale is None else weight * scale))  # type: ignore[union-attr]
        for parameter in (*matrices, *values):
            state, gradient = stepped.state[parameter], parameter.grad
            assert gradient is not None
            score = (parameter * (gradient if scale is None else gradient / scale)).abs()
            mean = state[IMPORTANCE].lerp(score, 1 - sensitivity)
            spread = state[UNCERTAINTY].lerp((score - mean).abs(), 1 - uncertainty)
            for kind, new in ((IMPORTANCE, mean), (UNCERTAINTY, spread)):
                # What is not finite is not multiplied away.
                state[kind].copy_(new if dropped is None else torch.where(dropped > 0, state[kind], new))

    @torch.no_grad()
    def after_step(stepped: Any, args: Any, kwargs: Any) -> None:
        # Not before the first one: an optimizer looks whether there is any state, to see whether it has begun.
        if KEPT in stepped.state[values[0]]:
            return
        for parameter in (*matrices, *values):
            stepped.state[parameter] |= {kind: torch.zeros_like(parameter) for kind in (IMPORTANCE, UNCERTAINTY)}
        for parameter in values:
            stepped.state[parameter][KEPT] = torch.ones_like(parameter)

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_step_post_hook(after_step)


def orthogonality(matrices: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
    """The gradient of the mean of ‖M Mᵀ − I‖ over A and the transposed B of all layers: the shorter side is the rank."""
    with torch.enable_grad():
        flat = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
        apart = [torch.linalg.norm(one @ one.T - torch.eye(len(one), device=one.device)) for one in flat]
        return torch.autograd.grad(torch.stack(apart).mean(), matrices)


@torch.no_grad()
def allocate(optimizer: torch.optim.Optimizer, named: Named, budget: Budget) -> None:
    """Zero the Λ of ranks that are not among the most important ones, over all layers; of a settled budget, of those that went before."""
    layers: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in named:
        if _part(name) in ("lora_A", "lora_B", "lora_E"):
            owner, _, part = name.rpartition(".")[0].rpartition(".")
            layers.setdefault(owner, {})[part] = parameter
    values = [layer["lora_E"] for layer in layers.values()]
    if not budget.settled:
        scores = torch.cat([_scores(optimizer, layer) for layer in layers.values()])
        best = scores.topk(int(budget.ranks * len(values) + 1e-6)).indices
        kept = torch.zeros_like(scores).scatter_(0, best, 1.0).split([len(value) for value in values])
        for value, mask in zip(values, kept, strict=True):
            optimizer.state[value][KEPT].copy_(mask.unsqueeze(1))
    for value in values:
        value.mul_(optimizer.state[value][KEPT])


def _scores(optimizer: torch.optim.Optimizer, layer: dict[str, nn.Parameter]) -> Tensor:
    """Of each rank of a layer: `[rank]`."""
    of = {part: optimizer.state[parameter][IMPORTANCE] * optimizer.state[parameter][UNCERTAINTY] for part, parameter in layer.items()}
    return of["lora_E"].squeeze(1) + of["lora_A"].mean(dim=1) + of["lora_B"].mean(dim=0)


def _part(name: str) -> str:
    """`lora_A` of `….lora_A.default`."""
    return name.rpartition(".")[0].rpartition(".")[2]
