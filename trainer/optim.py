"""Optimizers: which parameters form which group, and what updates them.

A group carries `base_lr`; a step runs at base_lr × the schedule's factor. The classes themselves live where torch may be imported
(`torch.optim`, `trainer.muon`), so that composing a configuration stays fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.choices import Choice, choice, identity, require_at_least, require_positive, require_share

if TYPE_CHECKING:
    import torch
    from torch import nn

Named = Iterable[tuple[str, "nn.Parameter"]]

# Parameters of these modules are tables or classifiers, not maps between hidden states: Muon leaves them to AdamW.
_TABLES = ("embed", "wte", "wpe", "lm_head", "decoder", "predictions", "seq_relationship", "classifier", "score")


@dataclass
class Optim(Choice, group="optim"):
    """What updates the parameters."""

    max_norm: float | None = identity(1.0, help="clip gradients to this global norm; null: never")

    def build(self, named_parameters: Named) -> torch.optim.Optimizer:
        """The optimizer over these parameters, its groups' rates in `base_lr`."""
        raise NotImplementedError


@choice
class AdamW(Optim):
    """AdamW, fused; weight decay on matrices and embeddings only (Loshchilov & Hutter, https://arxiv.org/abs/1711.05101)."""

    name: str = "adamw"
    lr: float = identity(6e-4, help="peak learning rate")
    beta1: float = identity(0.9, help="decay of the first moment")
    beta2: float = identity(0.95, help="decay of the second moment")
    eps: float = identity(1e-8, help="added to the root of the second moment")
    weight_decay: float = identity(0.1, help="decoupled decay of parameters with two or more dimensions")

    def check(self) -> None:
        require_positive(self, "lr", "eps")
        require_share(self, "beta1", "beta2")
        require_positive(self, "max_norm", optional=True)
        require_at_least(self, 0, "weight_decay")

    def build(self, named_parameters: Named) -> torch.optim.Optimizer:
        from torch.optim import AdamW as Fused

        groups = self.groups(named_parameters)
        return Fused(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)

    def groups(self, named_parameters: Named) -> list[dict[str, Any]]:
        """Decayed and undecayed parameters, in the model's order; an empty group is left out (DeepSpeed cannot flatten none)."""
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for _, parameter in named_parameters:
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
        shared = {"lr": self.lr, "base_lr": self.lr}
        return [
            {"params": members, "weight_decay": decay, **shared}
            for members, decay in ((decayed, self.weight_decay), (plain, 0.0))
            if members
        ]


@choice
class Muon(AdamW):
    """Muon for hidden matrices, AdamW for embeddings, heads, norms and biases (https://kellerjordan.github.io/posts/muon/)."""

    name: str = "muon"
    matrix_lr: float | None = identity(None, help="peak learning rate of the hidden matrices; null: lr")
    momentum: float = identity(0.95, help="Nesterov momentum of the hidden matrices")
    iterations: int = identity(5, help="Newton-Schulz iterations")

    def check(self) -> None:
        super().check()
        require_positive(self, "iterations")
        require_positive(self, "matrix_lr", optional=True)
        require_share(self, "momentum")

    def build(self, named_parameters: Named) -> torch.optim.Optimizer:
        from trainer.muon import Muon as Mixed

        named = list(named_parameters)
        hidden = [parameter for name, parameter in named if is_hidden_matrix(name, parameter)]
        chosen = {id(parameter) for parameter in hidden}
        groups = self.groups((name, parameter) for name, parameter in named if id(parameter) not in chosen)
        for group in groups:
            group.update(kind="adamw", betas=(self.beta1, self.beta2), eps=self.eps)
        if hidden:
            rate = self.lr if self.matrix_lr is None else self.matrix_lr
            matrices: dict[str, Any] = {"params": hidden, "kind": "muon", "lr": rate, "base_lr": rate}
            matrices |= {"momentum": self.momentum, "weight_decay": self.weight_decay, "iterations": self.iterations}
            groups.insert(0, matrices)
        return Mixed(groups)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter maps hidden states to hidden states: a matrix that is neither a table nor a classifier."""
    return parameter.ndim == 2 and not any(table in name for table in _TABLES)
