"""A module that strategies wrap, for texts that belong together: their embeddings, and the loss of each pair among all of a global batch.

InfoNCE (van den Oord et al. 2018): every anchor is to find its own text among those of all ranks. Each rank computes the loss of the whole
global batch from its own embeddings and copies of the others', so that the gradient of its own embeddings is whole, and no gradient needs
to cross over; of the value it returns its own pairs' share.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from trainer.models.examples import ExampleModule
from trainer.models.padded import Unpacked
from trainer.tasks import Batch

# What a pair has place for: its anchor, the text that belongs to it, and one that does not.
PLACES = 3
_NONE = -1


class EmbeddingModule(ExampleModule):
    """Normalized embeddings `[texts, width]`. pooling: mean, first or last of a text's tokens; pairs: the most that a rank has of a global
    batch; None where it is not trained."""

    def __init__(self, model: PreTrainedModel, pooling: str, temperature: float, pairs: int | None = None):
        super().__init__(model)
        self.pooling, self.temperature, self.pairs = pooling, temperature, pairs

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        embeddings = self.embeddings(batch).index_select(0, batch.inputs["pair_index"])
        if not self.training:
            told = {"embeddings": embeddings, "sizes": batch.inputs["pair_sizes"]}
            # What a pair's loss is depends on all others: it is a figure of the whole set.
            return {"pairs": embeddings.new_zeros(()), **told}
        with torch.autocast(embeddings.device.type, enabled=False):
            return {"pairs": self.loss(embeddings, batch.inputs["pair_places"], batch.inputs["pair_keys"])}

    def embeddings(self, batch: Batch) -> Tensor:
        """Of every text, in order: `[texts, width]`, of length 1."""
        outputs: Any = self.outputs(batch)
        hidden = outputs.last_hidden_state.float()
        return embedded(hidden, Unpacked.of(batch.lengths, hidden.device).real, self.pooling)

    def loss(self, embeddings: Tensor, places: Tensor, keys: Tensor) -> Tensor:
        """The sum over this rank's pairs; its gradient is that of the sum over all ranks' pairs.

        places: of each text, pair × PLACES + what it is of it; keys: equal for equal texts.
        """
        assert self.pairs is not None, "built to predict"
        size = self.pairs * PLACES
        mine = embeddings.new_zeros(size, embeddings.shape[-1]).index_copy(0, places, embeddings)
        named = keys.new_full((size,), _NONE).index_copy(0, places, keys)
        rank = dist.get_rank() if dist.is_initialized() else 0
        everything = gathered(mine)
        everything[rank] = mine
        texts, names = (torch.cat(parts).unflatten(0, (-1, PLACES)) for parts in (everything, gathered(named)))
        losses = pair_losses(texts, names, self.temperature)
        own = losses.unflatten(0, (-1, self.pairs))[rank].sum()
        whole = losses.sum()
        return whole + (own - whole).detach()


def embedded(hidden: Tensor, real: Tensor, pooling: str) -> Tensor:
    """Of each text's tokens one vector of length 1. hidden: `[texts, longest, width]`; real: which places hold a token `[texts, longest]`,
    those of a text from its first place on."""
    if pooling == "mean":
        pooled = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    elif pooling == "first":
        pooled = hidden[:, 0]
    else:
        last = (real.sum(1) - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        pooled = hidden.gather(1, last)[:, 0]
    return F.normalize(pooled, dim=-1)


def gathered(tensor: Tensor) -> list[Tensor]:
    """The same of every rank, without gradients."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.detach())
    return found


def pair_losses(texts: Tensor, names: Tensor, temperature: float) -> Tensor:
    """Of every pair the cross-entropy of its text among all texts but anchors, 0 of places without a pair. texts: `[pairs, PLACES, width]`;
    names: `[pairs, PLACES]`, equal for equal texts, negative where there is none.

    A text that is the pair's own once more, or belongs to an equal anchor, is no wrong answer, and is left out.
    """
    count = len(texts)
    candidates, called = texts[:, 1:].transpose(0, 1).flatten(0, 1), names[:, 1:].T.flatten()
    logits = texts[:, 0] @ candidates.T / temperature
    anchors, own = names[:, 0], names[:, 1]
    out = (called < 0)[None] | (called[None] == own[:, None])
    same_anchor = anchors[:, None] == anchors[None]
    out[:, :count] |= same_anchor
    # A pair's own text stays, in a place without a pair too, where the loss is dropped.
    target = torch.arange(count, device=texts.device)
    out = out & (torch.arange(len(candidates), device=texts.device)[None] != target[:, None])
    return F.cross_entropy(logits.masked_fill(out, float("-inf")), target, reduction="none") * (anchors >= 0)
