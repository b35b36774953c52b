"""Which parameters decay, and at which share of the rate each block learns: read off the parameters' names, for every optimizer alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError, identity, nearest

if TYPE_CHECKING:
    from torch import nn

    Decays = Callable[[str, "nn.Parameter"], bool]

# A block of a stack: h.3. (GPT-2), layer.3. (BERT), layers.3. (Llama, ModernBERT), block.3. (T5), blocks.3.
_BLOCK = re.compile(r"(?:^|\.)(?:h|layers?|blocks?)\.(\d+)\.")
# Parts of names: ln_1, ln_f, attn_norm, LayerNorm, input_layernorm; embeddings, embed_tokens, wte, wpe, shared.
_NORM = re.compile(r"(?:^|_)(?:ln|norm|layernorm|rmsnorm)(?:_|\d|$)")
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$|^shared$|^relative_attention_bias$")


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2


def _is_any(name: str, parameter: nn.Parameter) -> bool:
    return True


def _is_weight(name: str, parameter: nn.Parameter) -> bool:
    *modules, last = name.lower().split(".")
    return not last.endswith("bias") and not any(_NORM.search(part) for part in (*modules, last))


def _is_inner_weight(name: str, parameter: nn.Parameter) -> bool:
    return _is_weight(name, parameter) and not is_embedding(name)


RULES: dict[str, Decays] = {"matrices": _is_matrix, "all": _is_any, "no_norm_bias": _is_weight, "no_norm_bias_embedding": _is_inner_weight}


def is_embedding(name: str) -> bool:
    """Whether a parameter belongs to the tables at the model's entry (with what normalizes them)."""
    return not _BLOCK.search(name) and any(_EMBEDDING.search(part) for part in name.lower().split("."))


def check_decay(decay: object) -> None:
    """Raise ConfigError where `optim.decay` is neither a rule nor a list of patterns."""
    if isinstance(decay, str) and decay in RULES:
        return
    if isinstance(decay, Sequence) and not isinstance(decay, str) and decay and all(isinstance(one, str) for one in decay):
        return
    known = nearest(decay, RULES) if isinstance(decay, str) else ""
    raise ConfigError(
        f"optim.decay: {decay!r}; allowed: {', '.join(RULES)}, or a list of patterns of parameter names, "
        f"e.g. 'optim.decay=[\"*.mlp.*weight\"]'{known}"
    )


def decaying(named: Sequence[tuple[str, nn.Parameter]], decay: str | Sequence[str]) -> set[str]:
    """Names of the parameters that decay. Raises ConfigError for a pattern that matches none of them."""
    if isinstance(decay, str):
        return {name for name, parameter in named if RULES[decay](name, parameter)}
    found: set[str] = set()
    for pattern in decay:
        matched = {name for name, _ in named if fnmatchcase(name, pattern)}
        if not matched:
            some = ", ".join(name for name, _ in named[:3])
            raise ConfigError(f"optim.decay: {pattern!r} matches no parameter; the model has {some} …")
        found |= matched
    return found


@dataclass
class Own:
    """Parameters with a rate or a decay of their own: those whose names one of the patterns matches."""

    pattern: Any = identity(None, help="a pattern of parameter names, or a list of them")
    lr: float | None = identity(None, help="peak learning rate, whatever its layer")
    factor: float = identity(1.0, help="times the rate that these parameters would have")
    weight_decay: float | None = identity(None, help="decay of all of them; default: as optim.decay says")

    @property
    def patterns(self) -> list[str]:
        """Its patterns."""
        return [self.pattern] if isinstance(self.pattern, str) else list(self.pattern or [])

    def check(self, key: str) -> None:
        """Raise ConfigError for values that mean nothing. key: where it stands."""
        if not self.patterns or not all(isinstance(one, str) and one for one in self.patterns):
            raise ConfigError(
                f"{key}.pattern: {self.pattern!r}; allowed: a pattern of parameter names, e.g. '*classifier*', or a list of them"
            )
        if self.lr is not None and (self.lr <= 0 or self.factor != 1.0):
            raise ConfigError(f"{key}.lr: {self.lr} with {key}.factor: {self.factor}; allowed: a rate above 0, or a factor, not both")
        if self.factor <= 0:
            raise ConfigError(f"{key}.factor: {self.factor}; allowed: above 0; what is to stay as it is belongs into optim.freeze")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ConfigError(f"{key}.weight_decay: {self.weight_decay}; allowed: 0 or more, or null")


def owners(names: Sequence[str], groups: Sequence[Own]) -> dict[str, int]:
    """Name → the first of the groups that has it, for those that one has. Raises ConfigError for a pattern that matches nothing."""
    found: dict[str, int] = {}
    for number, own in enumerate(groups):
        for pattern in own.patterns:
            matched = [name for name in names if fnmatchcase(name, pattern)]
            if not matched:
                some = ", ".join(names[:3])
                raise ConfigError(f"optim.groups[{number}].pattern: {pattern!r} matches no parameter that is trained; there are {some} …")
            for name in matched:
                found.setdefault(name, number)
    return found


def layer_factors(names: Sequence[str], layer_decay: float) -> dict[str, float]:
    """Name → its share of the rate: 1 above the blocks, layer_decay^k in the k-th block from the top, once more below them.

    As in https://arxiv.org/abs/2003.10555 and https://arxiv.org/abs/2106.08254. Raises ConfigError where names show no blocks.
    """
    if layer_decay == 1.0:
        return dict.fromkeys(names, 1.0)
    block = {name: int(match[1]) for name in names if (match := _BLOCK.search(name))}
    if not block:
        raise ConfigError(f"optim.layer_decay: {layer_decay}; this model's parameters name no blocks (h.0., layer.0., layers.0.); set 1.0")
    blocks = max(block.values()) + 1
    below = {name: blocks + 1 if is_embedding(name) else 0 for name in names}
    return {name: layer_decay ** (blocks - block[name] if name in block else below[name]) for name in names}


def renumbered(name: str, kept: Sequence[int]) -> str | None:
    """A name as it is where only these blocks are left; None: of one that is not."""
    match = _BLOCK.search(name)
    if match is None:
        return name
    number = int(match[1])
    return f"{name[: match.start(1)]}{list(kept).index(number)}{name[match.end(1) :]}" if number in kept else None
