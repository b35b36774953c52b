"""Documents side by side, padded to the longest: for models whose documents would see each other in one packed row.

A batch arrives packed, as for every model; its lengths are known on the host, so unpacking it waits for no device.
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
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.models.front import in_front
from trainer.models.head import logits_at
from trainer.models.packed import send
from trainer.tasks import Batch

# torch's attention with a mask that is always made: transformers' own looks whether it could be left out, and waits for the device.
NAME = "padded"
AttentionInterface.register(NAME, sdpa_attention_forward)


def _mask(*inputs: Any, **named: Any) -> Tensor | None:
    return sdpa_mask(*inputs, **named | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


AttentionMaskInterface.register(NAME, _mask)


@dataclass(frozen=True)
class Padded:
    """A batch `[documents, longest]` with a mask; positions are the model's own affair. pad: the id that fills up."""

    pad: int = 0

    def logits(self, model: nn.Module, inputs: Mapping[str, Tensor], lengths: tuple[int, ...], rows: Tensor | None) -> Tensor:
        """Logits `[rows, vocabulary]` at rows of the packed tokens, or at all of them."""
        front = in_front(model, inputs, lengths)
        ids, rows = front.inputs["input_ids"][0], front.rows(rows)
        unpacked = Unpacked.of(front.lengths, ids.device)
        home = unpacked.home if rows is None else unpacked.home.index_select(0, rows)
        return logits_at(model, home, input_ids=unpacked.rows(ids, self.pad), attention_mask=unpacked.real.long())


@dataclass(frozen=True)
class Pairs:
    """What an encoder reads and what a decoder writes of each document, side by side. start: what the decoder begins with."""

    pad: int
    start: int

    def logits(self, model: nn.Module, batch: Batch, rows: Tensor | None) -> Tensor:
        """Logits `[rows, vocabulary]` at rows of the packed tokens that the decoder writes, or at all of them."""
        front = in_front(model, batch.inputs, batch.lengths)
        read, written = front.inputs["input_ids"][0], batch.inputs["decoder_ids"][0]
        source, target = (Unpacked.of(lengths, read.device) for lengths in (front.lengths, batch.decoded))
        # Each token is predicted from those before it; what stands behind the end of a document is seen by none of its tokens.
        before = F.pad(target.rows(written, self.pad)[:, :-1], (1, 0), value=self.start)
        home = target.home if rows is None else target.home.index_select(0, rows)
        ids, real = source.rows(read, self.pad), source.real.long()
        return logits_at(model, home, input_ids=ids, attention_mask=real, decoder_input_ids=before)


@dataclass(frozen=True)
class Unpacked:
    """Where packed tokens lie in padded rows. source: packed token of each place `[documents, longest]`; real: which places hold one,
    of that shape; home: place of each packed token in the flattened rows `[tokens]`."""

    source: Tensor
    real: Tensor
    home: Tensor

    @staticmethod
    @lru_cache(maxsize=64)
    def of(lengths: tuple[int, ...], device: torch.device) -> Unpacked:
        """Made on the host once a batch, and copied without waiting."""
        sizes = np.array(lengths)
        places = np.arange(sizes.max())
        real = places < sizes[:, None]
        starts = np.cumsum(sizes) - sizes
        put = partial(send, device=device)
        return Unpacked(put(np.where(real, starts[:, None] + places, 0)), put(real), put(np.flatnonzero(real)))

    def rows(self, tokens: Tensor, pad: int) -> Tensor:
        """Packed values `[tokens]` as padded rows `[documents, longest]`."""
        return tokens.index_select(0, self.source.flatten()).view(self.source.shape).masked_fill(~self.real, pad)
