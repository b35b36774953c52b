"""Putting layers of PEFT into a model, wherever its parameters are: on the meta device they are written down, and so have first values."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from trainer.choices import ConfigError, nearest

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

# PEFT imports it where it is installed, and it says at every import which kernels a CPU lacks.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# Of families that PEFT has no defaults for: where its authors' defaults for others would be.
_TARGETS = {
    "modernbert": ["Wqkv"], "olmo2": ["q_proj", "v_proj"], "phi3": ["qkv_proj"], "distilbert": ["q_lin", "v_lin"],
    "albert": ["query", "value"], "camembert": ["query", "value"],
}  # fmt: skip


def targets_of(model: PreTrainedModel, targets: Any, known: Mapping[str, Sequence[str]]) -> list[str] | str:
    """The layers to adapt as PEFT takes them. known: its defaults by model_type. Raises ConfigError where the model has no such layer."""
    family = model.config.model_type
    if targets == "all":
        return "all-linear"
    if targets is None:
        if family not in known and family not in _TARGETS:
            raise ConfigError(
                f"adapter.targets: null, but there is no default for a {family}; name layers: {', '.join(layers_of(model))}, or all"
            )
        return list(known.get(family) or _TARGETS[family])
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            layers = layers_of(model)
            allowed = f"all, or of {', '.join(layers)}{nearest(target, layers)}"
            raise ConfigError(f"adapter.targets: {target!r} names no layer of this {family}; allowed: {allowed}")
    return list(targets)


def layers_of(model: nn.Module) -> list[str]:
    """The last names of a model's linear layers."""
    from transformers.pytorch_utils import Conv1D

    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))})


def inject(model: PreTrainedModel, settings: PeftConfig) -> None:
    """Put layers into a model; their parameters alone require gradients then."""
    from peft import inject_adapter_in_model

    _refuse_tied(model, settings)
    with writing(model), warnings.catch_warnings():
        # It mends that by itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        inject_adapter_in_model(settings, model)


@contextlib.contextmanager
def writing(model: nn.Module) -> Iterator[None]:
    """What is made inside lies where the model does; of one without values it is written down how."""
    recording = getattr(model, "recording", None)
    with recording or contextlib.nullcontext(), next(model.parameters()).device:
        yield


def train_beside(model: nn.Module, patterns: Sequence[str] | None, lacking: Collection[str]) -> None:
    """Have parameters of the model itself trained too: what patterns of `adapter.beside` name, or what has no values yet.

    Raises ConfigError for a pattern that matches nothing.
    """
    # By the names that they have without an adapter.
    named = {name.replace(".base_layer.", "."): parameter for name, parameter in model.named_parameters("model")}
    chosen = set(lacking) if patterns is None else set()
    for pattern in patterns or ():
        matched = {name for name in named if fnmatchcase(name, pattern)}
        if not matched:
            raise ConfigError(f"adapter.beside: {pattern!r} matches no parameter; the model has {', '.join(list(named)[:3])} …")
        chosen |= matched
    for name in chosen:
        named[name].requires_grad_(True)


def _refuse_tied(model: PreTrainedModel, settings: Any) -> None:
    """One weight in two layers cannot be changed in one of them."""
    wanted = settings.target_modules
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    for shared in places.values():
        hit = [name for name in shared if not isinstance(wanted, str) and any(f".{name}".endswith(f".{target}") for target in wanted)]
        if len(shared) > 1 and hit:
            raise ConfigError(f"adapter.targets: {hit[0]} shares its weight with {', '.join(set(shared) - set(hit))}; adapt other layers")
