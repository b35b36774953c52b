"""Modules that the strategies wrap: a transformers model, the head on target rows only, and the sum of losses by term.

In evaluation mode a forward also returns the sums that metrics need. Nothing of a model is called outside the wrapped module's forward:
a head called beside it would train unsynchronised.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.models.packed import use_packed_attention
from trainer.tasks import Batch


def loss_sum(logits: Tensor, targets: Tensor, vocabulary_size: int) -> Tensor:
    """Cross-entropy summed over targets. logits: `[targets, padded vocabulary]`, the padding left out; targets: `[targets]`."""
    return F.cross_entropy(logits[:, :vocabulary_size].float(), targets, reduction="sum")


class CausalModule(nn.Module):
    """A causal language model over packed rows: every position has a target."""

    def __init__(self, model: PreTrainedModel, vocabulary_size: int):
        super().__init__()
        use_packed_attention(model)
        self.model = model
        self.vocabulary_size = vocabulary_size

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        inputs = batch.inputs
        hidden = self.model.base_model(
            input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False, doc_lens=batch.lengths
        ).last_hidden_state[0]
        if batch.targets["clm"] != hidden.shape[0]:
            hidden = hidden.index_select(0, inputs["clm_index"])
        head = self.model.get_output_embeddings()
        return {"clm": loss_sum(head(hidden), inputs["clm_targets"], self.vocabulary_size)}


class PretrainingModule(nn.Module):
    """BERT's two objectives over packed pairs: the vocabulary head on masked rows only, the next-sentence head on each pair's first row."""

    def __init__(self, model: PreTrainedModel, vocabulary_size: int):
        super().__init__()
        use_packed_attention(model)
        self.model = model
        self.vocabulary_size = vocabulary_size

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        masked, relation = self._logits(batch)
        inputs = batch.inputs
        sums = {
            "mlm": loss_sum(masked, inputs["mlm_targets"], self.vocabulary_size),
            "nsp": loss_sum(relation, inputs["nsp_targets"], 2),
        }
        if not self.training:
            sums["mlm_right"] = (masked[:, : self.vocabulary_size].argmax(-1) == inputs["mlm_targets"]).sum()
            sums["nsp_right"] = (relation.argmax(-1) == inputs["nsp_targets"]).sum()
        return sums

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = batch.inputs
        bert: Any = self.model.base_model
        heads: Any = self.model.cls
        hidden = bert(
            input_ids=inputs["input_ids"],
            token_type_ids=inputs["token_type_ids"],
            position_ids=inputs["position_ids"],
            doc_lens=batch.lengths,
        ).last_hidden_state[0]
        masked = heads.predictions(hidden.index_select(0, inputs["mlm_index"]))
        # The stock pooler sees only a row's first token; here every pair's first token is one.
        pooled = bert.pooler(hidden.index_select(0, inputs["nsp_index"]).unsqueeze(1))
        return masked, heads.seq_relationship(pooled)
