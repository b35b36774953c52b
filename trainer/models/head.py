"""The vocabulary head on chosen rows only, whatever the head of a model does; and what it may give in place of logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

# By transformers' model_type: models whose logits are what their last linear layer gives, nothing scaled, capped or added.
LINEAR = frozenset(
    {"gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2"}
    | {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "modernbert", "t5", "mt5"}
)


def logits_at(model: Any, rows: Tensor | None, **inputs: Any) -> Tensor:
    """Logits `[rows, vocabulary]` at rows of a model's flattened tokens; None: at all of them.

    The model's own forward runs, so a head may transform, scale or cap as it likes; but what its body hands to it is cut to the rows,
    because the head is the most expensive layer of a small model, and a masked model scores few tokens.
    """
    body = model.get_decoder() if model.config.is_encoder_decoder else model.base_model
    cut = False

    def keep(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal cut
        cut = True
        assert rows is not None
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1).index_select(0, rows).unsqueeze(0)
        return output

    hook = body.register_forward_hook(keep) if rows is not None and body is not model else None
    try:
        logits: Tensor = model(**inputs, **without_cache(type(model).forward)).logits.flatten(0, 1)
    finally:
        if hook is not None:
            hook.remove()
    return logits if rows is None or cut else logits.index_select(0, rows)


def last_linear(model: Any) -> nn.Linear | None:
    """The layer whose outputs a model's logits are; None where something may follow it, or where it is more than a product."""
    linear = model.get_output_embeddings() if model.config.model_type in LINEAR and model.base_model is not model else None
    return linear if isinstance(linear, nn.Linear) and type(linear).forward is nn.Linear.forward else None


@contextmanager
def answering(linear: nn.Linear, answer: Callable[[Tensor], dict[str, Tensor]]) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
    """Inside, a model's last linear layer gives sums over its rows in place of logits; what is yielded reads them off the model's output.

    answer: hidden states `[rows, width]` → scalars by name. It runs within the layer's own forward: a strategy that gathers parameters
    for the modules that own them has the weight there, and again in backward.
    """
    names: list[str] = []

    def forward(hidden: Tensor) -> Tensor:
        sums = answer(hidden.flatten(0, -2))
        names[:] = sums
        return torch.stack([value.float() for value in sums.values()]).unsqueeze(0)

    linear.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield lambda output: dict(zip(names, output.flatten().unbind(), strict=True))
    finally:
        del linear.forward


@lru_cache(maxsize=16)
def without_cache(forward: Callable[..., Any]) -> dict[str, bool]:
    """What keeps a model from building a cache of keys and values, which only generation reads."""
    return {"use_cache": False} if "use_cache" in inspect.signature(forward).parameters else {}
