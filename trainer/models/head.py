"""The vocabulary head on chosen rows only, whatever the head of a model does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor, nn


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


@lru_cache(maxsize=16)
def without_cache(forward: Callable[..., Any]) -> dict[str, bool]:
    """What keeps a model from building a cache of keys and values, which only generation reads."""
    return {"use_cache": False} if "use_cache" in inspect.signature(forward).parameters else {}
