"""Attention over packed documents: each document attends to itself alone, and nothing is padded.

Registered with transformers' attention interface under the name `packed`. A model is called with `doc_lens=(…)`, the host-side lengths of
the documents that its one row `[1, tokens]` holds; any unknown keyword reaches the attention function of every model that goes through
that interface. It is a keyword, not a context variable, because activation checkpointing recomputes after the context is gone.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "packed"


@lru_cache(maxsize=4096)
def _groups(lengths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The documents of each length."""
    by_length: dict[int, list[int]] = {}
    for document, length in enumerate(lengths):
        by_length.setdefault(length, []).append(document)
    return tuple(map(tuple, by_length.values()))


# What some models add to the scores of attention: a learned bias by distance, a cap, a sink.
_SCORES = ("position_bias", "softcap", "s_aux")


@dataclass(frozen=True)
class Seen:
    """What a token sees of its own document, and of `front` keys that stand in front of it. window: below this distance; None: at any."""

    causal: bool
    window: int | None = None
    front: int = 0


class Numbered(NamedTuple):
    """Lengths of documents that no graph is to depend on: the number by which `trainer.models.opaque` has them. each: the length of all of
    them, where a graph of its own knows it."""

    number: Tensor
    each: int | None = None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    doc_lens: Sequence[int] | Numbered | None = None,
    prefix: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Block-diagonal attention. query, key, value: `[1, heads, tokens, head]` → `[1, tokens, heads, head]`.

    doc_lens: lengths of the documents, or what stands for them in a compiled block.
    sliding_window: tokens i and j of a document see each other where |i − j| is below it; in transformers this keyword means the same
    for causal and for two-sided layers, and None is a layer that sees all. prefix: keys and values of every layer, `[layers × 2, heads,
    count, head]`, that stand in front of each document. Raises ValueError for what a model asks for beyond that.
    """
    if attention_mask is not None or doc_lens is None or query.shape[0] != 1:
        raise ValueError("packed attention takes one row without a mask and doc_lens=…: padding is one more document, not a mask")
    wanted = sorted(name for name in _SCORES if others.get(name) is not None)
    if wanted:
        raise ValueError(f"packed attention has no {', '.join(wanted)}, which this model's layers ask for")
    device = query.device.type
    if torch.is_autocast_enabled(device):
        # What autocast does around attention, for all that is below: rotated queries and keys come in fp32, values do not.
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    # Of this layer.
    front = None if prefix is None else prefix.unflatten(0, (-1, 2))[module.layer_idx].to(key.dtype)  # type: ignore[index]
    if key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        front = None if front is None else front.repeat_interleave(repeats, dim=1)
    causal, rate = bool(getattr(module, "is_causal", False)), dropout if module.training else 0.0
    if isinstance(doc_lens, Numbered):
        if doc_lens.each is not None and not (sliding_window and sliding_window < doc_lens.each):
            return _alike(query, key, value, query.shape[2] // doc_lens.each, doc_lens.each, Seen(causal), rate, scaling, front), None
        return torch.ops.shardloom.packed_attention(query, key, value, doc_lens.number, causal, sliding_window, rate, scaling)[0], None
    for watch in _WATCHES:
        watch(query, key, value)
    return attention(query, key, value, tuple(doc_lens), causal, sliding_window, rate, scaling, front), None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    causal: bool,
    sliding_window: int | None,
    dropout: float,
    scaling: float | None,
    front: Tensor | None,
) -> Tensor:
    """The same, of as many heads of keys as of queries. front: before each document, of this layer, `[2, heads, count, head]`."""
    if sum(lengths) != query.shape[2] or key.shape[2] != query.shape[2]:
        raise ValueError(f"doc_lens sum to {sum(lengths)}, but the row has {query.shape[2]} queries and {key.shape[2]} keys")
    count = 0 if front is None else front.shape[2]
    window = sliding_window if sliding_window and sliding_window < max(lengths) + count else None
    seen = Seen(causal, window, count)
    if len(set(lengths)) == 1 and seen.window is None:
        return _alike(query, key, value, len(lengths), lengths[0], seen, dropout, scaling, front)
    sizes = query.shape[-1] % 8 == 0 and query.shape[-1] == value.shape[-1]
    fits = query.is_cuda and query.dtype in _VARLEN_DTYPES and dropout == 0.0 and sizes and front is None
    kernel = varlen_kernel(seen.window is not None) if fits else None
    if kernel is not None:
        return kernel(query, key, value, lengths, seen, scaling)
    return _by_length(query, key, value, lengths, seen, dropout, scaling, front)


_WATCHES: list[Callable[..., None]] = []


def is_watched() -> bool:
    """Whether someone wants to be told."""
    return bool(_WATCHES)


@contextmanager
def watched(watch: Callable[..., None]) -> Iterator[None]:
    """Inside, every attention tells its queries, keys and values, `[1, heads, tokens, head]` each."""
    _WATCHES.append(watch)
    try:
        yield
    finally:
        _WATCHES.remove(watch)


def _by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    seen: Seen,
    dropout: float,
    scaling: float | None,
    front: Tensor | None,
) -> Tensor:
    """One kernel call for each length: documents of equal length share it.

    Pieces are put back by one concatenation in document order, which costs one copy; an index_put per group would cost one of
    everything each.
    """
    pieces: dict[int, Tensor] = {}
    split = [tensor[0].transpose(0, 1).split(list(lengths)) for tensor in (query, key, value)]
    for members in _groups(lengths):
        q, k, v = (torch.stack([parts[member] for member in members]).transpose(1, 2) for parts in split)
        out = _attend(q, k, v, seen, dropout, scaling, front).transpose(1, 2)
        pieces.update(zip(members, out.unbind(0), strict=True))
    return torch.cat([pieces[index] for index in range(len(lengths))]).unsqueeze(0)


def _alike(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: int,
    length: int,
    seen: Seen,
    dropout: float,
    scaling: float | None,
    front: Tensor | None,
) -> Tensor:
    """Documents of one length, in one kernel call."""
    q, k, v = (_fold(tensor, documents, length) for tensor in (query, key, value))
    return _unfold(_attend(q, k, v, seen, dropout, scaling, front))


def _fold(tensor: Tensor, documents: int, length: int) -> Tensor:
    """`[1, heads, documents · length, head]` → `[documents, heads, length, head]` as a view."""
    _, heads, _, size = tensor.shape
    return tensor[0].view(heads, documents, length, size).transpose(0, 1)


def _unfold(tensor: Tensor) -> Tensor:
    """`[documents, heads, length, head]` → `[1, documents · length, heads, head]`."""
    documents, heads, length, size = tensor.shape
    return tensor.transpose(1, 2).reshape(1, documents * length, heads, size)


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Seen, dropout: float, scaling: float | None, front: Tensor | None) -> Tensor:
    """Attention in documents of one length: `[documents, heads, length, head]`. front: keys and values, `[2, heads, count, head]`."""
    if front is not None:
        key, value = (torch.cat([part.expand(len(query), -1, -1, -1), own], dim=2) for part, own in zip(front, (key, value), strict=True))
    length, size = query.shape[2], key.shape[2]
    if (seen.window is None or size <= seen.window) and not (seen.front and seen.causal):
        return F.scaled_dot_product_attention(query, key, value, is_causal=seen.causal, dropout_p=dropout, scale=scaling)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=_band(length, seen, query.device), dropout_p=dropout, scale=scaling)


@lru_cache(maxsize=64)
def _band(length: int, seen: Seen, device: torch.device) -> Tensor:
    """Which key each query of a document sees: bool `[length, front + length]`."""
    size = seen.front + length
    window = size if seen.window is None else seen.window
    band = torch.ones(size, size, dtype=torch.bool, device=device).triu_(1 - window)
    return band.tril_(0 if seen.causal else window - 1)[seen.front :]


# What torch's kernel for documents of several lengths takes; it has no dropout either, and none for a CPU.
_VARLEN_DTYPES = (torch.bfloat16, torch.float16)


@lru_cache(maxsize=2)
def varlen_kernel(window: bool) -> Callable[..., Tensor] | None:
    """Attention over documents of several lengths in one call, with a window or without.

    None where torch has none, or TRAINER_VARLEN=0 says not to use it.
    """
    if os.environ.get("TRAINER_VARLEN") == "0":
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    # torch 2.10 says is_causal and has neither a window nor a scale; later ones say it by window_size and scale.
    by_window = "window_size" in inspect.signature(varlen_attn).parameters
    if window and not by_window:
        return None

    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], seen: Seen, scaling: float | None) -> Tensor:
        """query, key, value: `[1, heads, tokens, head]` → `[1, tokens, heads, head]`."""
        # To the left and to the right, both ends included; -1: without limit.
        before = -1 if seen.window is None else seen.window - 1
        named: dict[str, Any] = {"window_size": (before, 0 if seen.causal else before), "scale": scaling}
        if not by_window:
            named = {"is_causal": seen.causal}
            query = query if scaling is None else query * (scaling * query.shape[-1] ** 0.5)
        offsets, longest = offsets_of(lengths, query.device), max(lengths)
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        out: Tensor = varlen_attn(q, k, v, offsets, offsets, longest, longest, **named)  # type: ignore[assignment]
        return out.unsqueeze(0)

    return attend


@lru_cache(maxsize=64)
def offsets_of(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each document starts, and the end: int32 on the device. Made once a batch, not once a layer, and copied without waiting."""
    return send(np.array([0, *accumulate(lengths)], dtype=np.int32), device)


def send(values: NDArray[Any], device: torch.device) -> Tensor:
    """Values of the host on a device, without waiting for it."""
    host = torch.from_numpy(values)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


AttentionInterface.register(NAME, packed_attention)


def use_packed_attention(model: nn.Module) -> None:
    """Make a transformers model attend through `packed_attention`."""
    use_attention(model, NAME)
    for part in model.modules():
        # It looks for padding in the ids at every forward, which waits for the device; here nothing is padded.
        if hasattr(part, "warn_if_padding_and_no_attention_mask"):
            part.warn_if_padding_and_no_attention_mask = _no_warning  # type: ignore[assignment]


def use_attention(model: nn.Module, name: str) -> None:
    """Make a transformers model, and the models within it, attend by the function of a name."""
    for part in model.modules():
        config = getattr(part, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = name


def _no_warning(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """In place of transformers' own check."""
