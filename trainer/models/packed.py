"""Attention over packed documents: each document attends to itself alone, and nothing is padded.

Registered with transformers' attention interface under the name `packed`. A model is called with `doc_lens=(…)`, the host-side lengths of
the documents that its one row `[1, tokens]` holds; any unknown keyword reaches the attention function in GPT-2, Llama, BERT and
ModernBERT. It is a keyword, not a context variable, because activation checkpointing recomputes after the context is gone.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "packed"


@lru_cache(maxsize=4096)
def _groups(lengths: tuple[int, ...]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Runs of neighbouring documents of one length: (length, starts). Documents of equal length share one kernel call."""
    by_length: dict[int, list[int]] = {}
    start = 0
    for length in lengths:
        by_length.setdefault(length, []).append(start)
        start += length
    return tuple((length, tuple(starts)) for length, starts in by_length.items())


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    doc_lens: Sequence[int] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Block-diagonal attention. query, key, value: `[1, heads, tokens, head]` → `[1, tokens, heads, head]`."""
    if attention_mask is not None or doc_lens is None or query.shape[0] != 1:
        raise ValueError("packed attention takes one row without a mask and doc_lens=…: padding is one more document, not a mask")
    if sum(doc_lens) != query.shape[2]:
        raise ValueError(f"doc_lens sum to {sum(doc_lens)}, but the row has {query.shape[2]} tokens")
    if key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    causal = bool(getattr(module, "is_causal", False))
    rate = dropout if module.training else 0.0
    groups = _groups(tuple(doc_lens))

    if len(groups) == 1:
        (length, starts) = groups[0]
        q, k, v = (_fold(tensor, len(starts), length) for tensor in (query, key, value))
        out = _attend(q, k, v, causal, rate, scaling)
        return _unfold(out), None

    kernel = varlen_kernel() if query.is_cuda and query.dtype in _VARLEN_DTYPES and rate == 0.0 and query.shape[-1] % 8 == 0 else None
    if kernel is not None:
        return kernel(query, key, value, tuple(doc_lens), causal, scaling), None

    # One kernel call for each length. Pieces are put back by one concatenation in document order, which costs one copy; an index_put
    # per group would cost one copy of everything each.
    pieces: dict[int, Tensor] = {}
    split = [t[0].transpose(0, 1).split(list(doc_lens)) for t in (query, key, value)]
    order: dict[int, int] = {}
    start = 0
    for index, length in enumerate(doc_lens):
        order[start] = index
        start += length
    for _length, starts in groups:
        members = [order[start] for start in starts]
        q, k, v = (torch.stack([parts[member] for member in members]).transpose(1, 2) for parts in split)
        out = _attend(q, k, v, causal, rate, scaling).transpose(1, 2)
        for member, piece in zip(members, out.unbind(0), strict=True):
            pieces[member] = piece
    return torch.cat([pieces[index] for index in range(len(doc_lens))]).unsqueeze(0), None


def _fold(tensor: Tensor, documents: int, length: int) -> Tensor:
    """`[1, heads, documents · length, head]` → `[documents, heads, length, head]` as a view."""
    _, heads, _, size = tensor.shape
    return tensor[0].view(heads, documents, length, size).transpose(0, 1)


def _unfold(tensor: Tensor) -> Tensor:
    """`[documents, heads, length, head]` → `[1, documents · length, heads, head]`."""
    documents, heads, length, size = tensor.shape
    return tensor.transpose(1, 2).reshape(1, documents * length, heads, size)


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool, dropout: float, scaling: float | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal, dropout_p=dropout, scale=scaling)


# What torch's kernel for documents of several lengths takes; it has no dropout either, and none for a CPU.
_VARLEN_DTYPES = (torch.bfloat16, torch.float16)


@lru_cache(maxsize=1)
def varlen_kernel() -> Callable[..., Tensor] | None:
    """Attention over documents of several lengths in one call; None where torch has none, or TRAINER_VARLEN=0 says not to use it."""
    if os.environ.get("TRAINER_VARLEN") == "0":
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    # torch 2.10 says is_causal and has no scale; later ones say both by window_size and scale.
    by_window = "window_size" in inspect.signature(varlen_attn).parameters

    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], causal: bool, scaling: float | None) -> Tensor:
        """query, key, value: `[1, heads, tokens, head]` → `[1, tokens, heads, head]`."""
        named: dict[str, Any] = {"window_size": (-1, 0) if causal else (-1, -1), "scale": scaling} if by_window else {"is_causal": causal}
        if not by_window and scaling is not None:
            query = query * (scaling * query.shape[-1] ** 0.5)
        offsets, longest = _offsets(lengths, query.device), max(lengths)
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        out: Tensor = varlen_attn(q, k, v, offsets, offsets, longest, longest, **named)  # type: ignore[assignment]
        return out.unsqueeze(0)

    return attend


@lru_cache(maxsize=64)
def _offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each document starts, and the end: int32 on the device. Made once a batch, not once a layer, and copied without waiting."""
    host = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


AttentionInterface.register(NAME, packed_attention)


def use_packed_attention(model: nn.Module) -> None:
    """Make a transformers model attend through `packed_attention`."""
    model.config._attn_implementation = NAME  # type: ignore[union-attr]
    for part in model.modules():
        config = getattr(part, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = NAME
        # It looks for padding in the ids at every forward, which waits for the device; here nothing is padded.
        if hasattr(part, "warn_if_padding_and_no_attention_mask"):
            part.warn_if_padding_and_no_attention_mask = _no_warning  # type: ignore[assignment]


def _no_warning(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """In place of transformers' own check."""
