"""What is learned in front of every document: virtual tokens at the embedding, or keys and values at the attention of every layer.

Virtual tokens are ids behind the vocabulary: a document with them is a longer document, in a packed row as in a padded one, and nothing
but the embedding knows that their vectors come from an encoder. Keys and values reach `packed_attention` as one more keyword.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.deferred import seeded
from trainer.models.packed import send


def embedding_of(model: Any) -> Any:
    """The table that a document's tokens are looked up in; of an encoder–decoder model, its encoder's."""
    return (model.get_encoder() if model.config.is_encoder_decoder else model).get_input_embeddings()


def put_tokens(model: Any, encoder: nn.Module, count: int) -> None:
    """Let ids behind the rows of a model's embedding mean virtual tokens. encoder: `[count]` numbers → `[count, width]`.

    The embedding changes its class in place: what is tied to its weight, or looks for it, finds it under its name.
    """
    embedding = embedding_of(model)
    embedding.__class__ = _prompted(type(embedding))  # type: ignore[arg-type]
    embedding.front_encoder, embedding.virtual_tokens = encoder, count


@lru_cache
def _prompted(kind: Any) -> Any:
    class Prompted(kind):  # type: ignore[misc]
        """An embedding with virtual tokens behind its rows."""

        def forward(self, input: Tensor) -> Tensor:
            behind = input - self.num_embeddings
            virtual = behind >= 0
            vectors = self.front_encoder(torch.arange(self.virtual_tokens, device=input.device))
            found = super().forward(input.masked_fill(virtual, 0))
            chosen = F.embedding(behind.clamp(min=0), vectors.to(found.dtype))
            return torch.where(virtual.unsqueeze(-1), chosen, found)

    return Prompted


def put_keys(model: Any, encoder: nn.Module, count: int, heads: int) -> None:
    """Let every layer of a model see so many keys and values in front. encoder: `[count]` → `[count, layers × 2 × heads × head]`."""
    model.front_encoder, model.prefix = encoder, (count, heads)


def virtual_tokens(model: Any) -> int:
    """How many virtual tokens stand in front of each document."""
    # A network that is no model of transformers has none.
    return int(getattr(embedding_of(model), "virtual_tokens", 0)) if hasattr(model, "get_input_embeddings") else 0


def prefix_length(model: Any) -> int:
    """How many keys and values every layer sees in front of each document."""
    return int(getattr(model, "prefix", (0,))[0])


def virtual_ids(model: Any) -> range:
    """The ids of the virtual tokens."""
    first = embedding_of(model).num_embeddings
    return range(first, first + virtual_tokens(model))


@dataclass(frozen=True)
class Front:
    """Documents with what stands in front of them. home: where each packed token lies now; None: where it lay. extra: keywords for the
    model's body."""

    inputs: Mapping[str, Tensor]
    lengths: tuple[int, ...]
    home: Tensor | None
    extra: dict[str, Tensor]

    def rows(self, rows: Tensor | None) -> Tensor | None:
        """The places of rows of the packed tokens; of all of them for None, where that is not all that there is."""
        return rows if self.home is None else self.home if rows is None else self.home.index_select(0, rows)


def in_front(model: Any, inputs: Mapping[str, Tensor], lengths: tuple[int, ...]) -> Front:
    """Packed documents `[1, tokens]` as a model is to see them."""
    if count := virtual_tokens(model):
        return _longer(inputs, lengths, virtual_ids(model))
    if count := prefix_length(model):
        moved = {"position_ids": inputs["position_ids"] + count} if "position_ids" in inputs else {}
        return Front({**inputs, **moved}, lengths, None, {"prefix": _keys(model, inputs["input_ids"].device)})
    return Front(inputs, lengths, None, {})


def _keys(model: Any, device: torch.device) -> Tensor:
    """`[layers × 2, heads, count, head]`: of each layer its keys, then its values."""
    count, heads = model.prefix
    flat = model.front_encoder(torch.arange(count, device=device))
    return flat.view(count, 2 * model.config.num_hidden_layers, heads, -1).permute(1, 2, 0, 3)  # type: ignore[no-any-return]


def _longer(inputs: Mapping[str, Tensor], lengths: tuple[int, ...], virtual: range) -> Front:
    ids = inputs["input_ids"]
    places = _Places.of(lengths, virtual, ids.device)
    longer = {"input_ids": torch.cat([ids[0], places.virtual]).index_select(0, places.source)[None], "position_ids": places.positions}
    if "token_type_ids" in inputs:
        types = torch.cat([inputs["token_type_ids"][0], torch.zeros_like(places.virtual)])
        longer["token_type_ids"] = types.index_select(0, places.source)[None]
    return Front({**inputs, **longer}, tuple(length + len(virtual) for length in lengths), places.home, {})


@dataclass(frozen=True)
class _Places:
    """virtual: the ids. source: of each token of the longer row, where it lies in (packed tokens, virtual ones). positions: of the longer
    row `[1, …]`. home: of each packed token, where it lies in the longer row."""

    virtual: Tensor
    source: Tensor
    positions: Tensor
    home: Tensor

    @staticmethod
    @lru_cache(maxsize=64)
    def of(lengths: tuple[int, ...], virtual: range, device: torch.device) -> _Places:
        """Made on the host once a batch, and copied without waiting."""
        count, total = len(virtual), sum(lengths)
        pieces, positions, start = [], [], 0
        for length in lengths:
            pieces += [total + np.arange(count), start + np.arange(length)]
            positions.append(np.arange(count + length))
            start += length
        source = np.concatenate(pieces)
        put = partial(send, device=device)
        return _Places(
            put(np.array(virtual, dtype=np.int64)), put(source), put(np.concatenate(positions)[None]), put(np.flatnonzero(source < total))
        )


def as_peft(model: Any) -> Any:
    """A model for whoever calls it as transformers does: with something in front of its documents, PEFT's own wrapper around it."""
    if not (virtual_tokens(model) or prefix_length(model)):
        return model
    from copy import copy

    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModelForFeatureExtraction

    settings = copy(model.peft_config["default"])
    settings.inference_mode = False
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    # It draws an encoder of its own, and freezes all else.
    with seeded(0):
        kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(settings.task_type, PeftModelForFeatureExtraction)
        wrapped: Any = kind(model, settings)
    wrapped.prompt_encoder["default"] = (model if prefix_length(model) else embedding_of(model)).front_encoder
    for parameter, was in trained.items():
        parameter.requires_grad_(was)
    return wrapped.train(model.training)
