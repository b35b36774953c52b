"""Optimizers: which parameters form which group, and what updates them.

A group carries `base_lr`; a step runs at base_lr × the schedule's factor. The classes themselves live where torch may be imported
(`torch.optim`, `trainer.optimizers`), so that composing a configuration stays fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.choices import Choice, ConfigError, choice, identity, placement, require_at_least, require_positive, require_share
from trainer.parameter_groups import Own, check_decay, decaying, layer_factors, owners

if TYPE_CHECKING:
    import torch
    from torch import nn

Named = Iterable[tuple[str, "nn.Parameter"]]
Groups = list[dict[str, Any]]

# Parameters of these modules are tables or classifiers, not maps between hidden states: Muon leaves them to AdamW.
_TABLES = ("embed", "wte", "wpe", "lm_head", "decoder", "predictions", "seq_relationship", "classifier", "score")


@dataclass
class Average:
    """A moving average of the weights."""

    decay: float | None = identity(None, help="keep a moving average of the weights, e.g. 0.999; null: none")
    evaluate: bool = placement(True, help="evaluations and model/ are of the averages; false: of the trained weights")

    @property
    def shown(self) -> bool:
        """Whether evaluations and model/ are of averages."""
        return self.decay is not None and self.evaluate


@dataclass
class Optim(Choice, group="optim"):
    """What updates the parameters."""

    lr: float = identity(6e-4, help="peak learning rate")
    weight_decay: float = identity(0.1, help="decay of the parameters that `decay` names, decoupled from the gradient")
    decay: Any = identity(
        "matrices", help="what decays: matrices | all | no_norm_bias | no_norm_bias_embedding, or a list of patterns of names"
    )
    layer_decay: float = identity(1.0, help="rate of a block as a share of that of the block above it; embeddings have the lowest")
    groups: list[Own] = identity(
        default_factory=list, help="parameters with a rate or a decay of their own: [{pattern, lr | factor, weight_decay}, …]"
    )
    freeze: list[str] = identity(default_factory=list, help="parameters that stay as they are: patterns of their names")
    max_norm: float | None = identity(1.0, help="clip gradients to this global norm; null: never")
    ema: Average = identity(default_factory=Average)

    def check(self) -> None:
        require_positive(self, "lr", "layer_decay")
        require_positive(self, "max_norm", optional=True)
        require_at_least(self, 0, "weight_decay")
        require_share(self, "layer_decay", whole=True)
        check_decay(self.decay)
        for number, own in enumerate(self.groups):
            own.check(f"optim.groups[{number}]")
        if self.ema.decay is not None and not 0 <= self.ema.decay < 1:
            raise ConfigError(f"optim.ema.decay: {self.ema.decay}; allowed: from 0 to below 1, e.g. 0.999, or null for no average")

    def build(self, named_parameters: Named) -> torch.optim.Optimizer:
        """The optimizer over those of these parameters that are not frozen, its groups' rates in `base_lr`."""
        optimizer = self.optimizer(self.grouped([(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]))
        if self.ema.decay is not None:
            from trainer.averaging import keep_average

            keep_average(optimizer, self.ema.decay)
        return optimizer

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        """What updates these groups. It must read `found_inf` and `grad_scale` on the device, as torch's fused optimizers do."""
        raise NotImplementedError

    def grouped(self, named: list[tuple[str, nn.Parameter]]) -> Groups:
        """Parameters that share a kind, a decay and a rate, in the model's order; none is empty (DeepSpeed cannot flatten none)."""
        decays = decaying(named, self.decay)
        factors = layer_factors([name for name, _ in named], self.layer_decay)
        own = owners([name for name, _ in named], self.groups)
        members: dict[tuple[str, bool, float, int | None], list[nn.Parameter]] = {}
        for name, parameter in named:
            key = self.kind(name, parameter), name in decays, factors[name], own.get(name)
            members.setdefault(key, []).append(parameter)
        return [self._group(*key) | {"params": parameters} for key, parameters in members.items()]

    def _group(self, kind: str, decayed: bool, factor: float, own: int | None) -> dict[str, Any]:
        """Rate and decay of a group. own: which of `groups` it belongs to, which has the last word."""
        given = self.groups[own] if own is not None else Own()
        decay = (self.weight_decay if decayed else 0.0) if given.weight_decay is None else given.weight_decay
        rates = self.group_of(kind, factor * given.factor)
        if given.lr is not None:
            rates |= {"lr": given.lr, "base_lr": given.lr}
        return rates | {"weight_decay": decay, "decays": decay > 0 if given.weight_decay is not None else decayed}

    def kind(self, name: str, parameter: nn.Parameter) -> str:
        """How a parameter is updated, where an optimizer has several ways."""
        return ""

    def group_of(self, kind: str, factor: float) -> dict[str, Any]:
        """The rate of a group and what else its kind reads. factor: of its block."""
        return {"lr": self.lr * factor, "base_lr": self.lr * factor}


@choice
class AdamW(Optim):
    """AdamW, fused (Loshchilov & Hutter, https://arxiv.org/abs/1711.05101)."""

    name: str = "adamw"
    beta1: float = identity(0.9, help="decay of the first moment")
    beta2: float = identity(0.95, help="decay of the second moment")
    eps: float = identity(1e-8, help="added to the root of the second moment")

    def check(self) -> None:
        super().check()
        require_positive(self, "eps")
        require_share(self, "beta1", "beta2")

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        from torch.optim import AdamW as Fused

        return Fused(groups, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)


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

    def kind(self, name: str, parameter: nn.Parameter) -> str:
        return "muon" if is_hidden_matrix(name, parameter) else "adamw"

    def group_of(self, kind: str, factor: float) -> dict[str, Any]:
        if kind == "adamw":
            return {"kind": kind, "betas": (self.beta1, self.beta2), "eps": self.eps} | super().group_of(kind, factor)
        rate = (self.lr if self.matrix_lr is None else self.matrix_lr) * factor
        return {"kind": kind, "momentum": self.momentum, "iterations": self.iterations, "lr": rate, "base_lr": rate}

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        from trainer.optimizers.muon import Muon as Mixed

        return Mixed(groups)


@choice
class Lion(Optim):
    """Lion: the sign of a momentum; one moment instead of two (Chen et al. 2023, https://arxiv.org/abs/2302.06675)."""

    name: str = "lion"
    # A step is as large as the rate in every element: about a sixth of AdamW's rate, and as much more decay.
    lr: float = identity(1e-4, help="peak learning rate")
    weight_decay: float = identity(0.6, help="decay of the parameters that `decay` names, decoupled from the gradient")
    beta1: float = identity(0.9, help="weight of the momentum in the step")
    beta2: float = identity(0.99, help="decay of the momentum")

    def check(self) -> None:
        super().check()
        require_share(self, "beta1", "beta2")

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        from trainer.optimizers.lion import Lion as Signs

        return Signs({**group, "betas": (self.beta1, self.beta2)} for group in groups)


@choice
class Lamb(AdamW):
    """LAMB: AdamW's step, scaled in each tensor to the tensor's norm; for large batches (You et al. 2019, https://arxiv.org/abs/1904.00962)."""

    name: str = "lamb"
    lr: float = identity(2e-3, help="peak learning rate")
    weight_decay: float = identity(0.01, help="decay of the parameters that `decay` names; only those are scaled by their norms")
    beta2: float = identity(0.999, help="decay of the second moment")
    eps: float = identity(1e-6, help="added to the root of the second moment")

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        from trainer.optimizers.lamb import Lamb as Layerwise

        return Layerwise({**group, "betas": (self.beta1, self.beta2), "eps": self.eps} for group in groups)


@choice
class Adafactor(Optim):
    """Adafactor: of a matrix a row and a column of state, no first moment (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235)."""

    name: str = "adafactor"
    lr: float = identity(1e-2, help="peak learning rate, as a share of a tensor's root mean square")
    weight_decay: float = identity(0.0, help="decay of the parameters that `decay` names, decoupled from the gradient")
    decay_power: float = identity(0.8, help="the second moment's decay at update t is 1 − t^−decay_power")
    clip_threshold: float = identity(1.0, help="most root mean square of an update before it is scaled")
    least_scale: float = identity(1e-3, help="root mean square that a tensor is taken to have at least")

    def check(self) -> None:
        super().check()
        require_positive(self, "decay_power", "clip_threshold", "least_scale")

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        from trainer.optimizers.adafactor import Adafactor as Factored

        own = {key: getattr(self, key) for key in ("decay_power", "clip_threshold", "least_scale")}
        return Factored({**group, **own} for group in groups)


@choice
class SGD(Optim):
    """Stochastic gradient descent with momentum; its decay is added to the gradient."""

    name: str = "sgd"
    lr: float = identity(0.1, help="peak learning rate")
    weight_decay: float = identity(0.0, help="decay of the parameters that `decay` names, added to the gradient")
    momentum: float = identity(0.9, help="decay of the momentum; 0: none")
    nesterov: bool = identity(False, help="Nesterov's momentum")

    def check(self) -> None:
        super().check()
        require_share(self, "momentum")
        if self.nesterov and not self.momentum:
            raise ConfigError("optim.nesterov: true needs a momentum; set optim.momentum=0.9, or optim.nesterov=false")

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        from trainer.optimizers.sgd import SGD as Descent

        return Descent({**group, "momentum": self.momentum, "nesterov": self.nesterov} for group in groups)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter maps hidden states to hidden states: a matrix that is neither a table nor a classifier."""
    return parameter.ndim == 2 and not any(table in name for table in _TABLES)
