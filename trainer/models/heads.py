"""Modules that the strategies wrap: a transformers model, the head on target rows only, and the sum of losses by term.

In evaluation mode a forward also returns the sums that metrics need. Nothing of a model is called outside the wrapped module's forward:
a head called beside it would train unsynchronised.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from trainer.models.headed import Headed
from trainer.models.layout import layout_of, pairs_of
from trainer.models.packed import use_packed_attention
from trainer.tasks import Batch


def loss_sum(logits: Tensor, targets: Tensor, vocabulary_size: int) -> Tensor:
    """Cross-entropy summed over targets. logits: `[targets, padded vocabulary]`, the padding left out; targets: `[targets]`."""
    return F.cross_entropy(logits[:, :vocabulary_size].float(), targets, reduction="sum")


def vocabulary_sums(term: str, logits: Tensor, targets: Tensor, vocabulary_size: int, regularized: bool) -> dict[str, Tensor]:
    """Sums over targets: the cross-entropy, under the name `term`, and with `regularized` what `trainer.tasks.regularizing` weighs."""
    if not regularized:
        return {term: loss_sum(logits, targets, vocabulary_size)}
    logits = logits[:, :vocabulary_size].float()
    normalizers = logits.logsumexp(dim=-1)
    return {
        term: (normalizers - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)).sum(),
        f"{term}_smoothing": (normalizers - logits.mean(dim=-1)).sum(),
        f"{term}_z": normalizers.square().sum(),
    }


class LanguageModule(Headed):
    """A language model over packed rows. notice: a line for people on how documents are kept apart; empty where that is known.

    regularized: in training the sums for label smoothing and z-loss are wanted too.
    """

    causal: ClassVar[bool]

    def __init__(self, model: PreTrainedModel, vocabulary_size: int, regularized: bool = False):
        super().__init__()
        self.regularized = regularized
        self.layout, self.notice = layout_of(model, self.causal)
        self.model = model
        self.vocabulary_size = vocabulary_size

    def logits(self, batch: Batch, rows: Tensor | None) -> Tensor:
        """`[rows, padded vocabulary]` at rows of the packed tokens, or at all of them."""
        return self.layout.logits(self.model, batch.inputs, batch.lengths, rows)


class CausalModule(LanguageModule):
    """A causal language model: every position has a target."""

    causal = True

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        everywhere = batch.targets["clm"] == batch.inputs["input_ids"].shape[1]
        return {"clm": self.logits(batch, None if everywhere else batch.inputs["clm_index"])}

    def sums(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        regularized = self.regularized and self.training
        return vocabulary_sums("clm", heads["clm"], batch.inputs["clm_targets"], self.vocabulary_size, regularized)


class MaskedModule(LanguageModule):
    """A masked language model: the vocabulary head on masked rows only."""

    causal = False

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        return {"mlm": self.logits(batch, batch.inputs["mlm_index"])}

    def sums(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        logits, targets = heads["mlm"], batch.inputs["mlm_targets"]
        sums = vocabulary_sums("mlm", logits, targets, self.vocabulary_size, self.regularized and self.training)
        if not self.training:
            sums["mlm_right"] = (logits[:, : self.vocabulary_size].argmax(-1) == targets).sum()
        return sums


class DenoisingModule(Headed):
    """An encoder–decoder model: every token that the decoder writes is a target. notice, regularized: as LanguageModule has them."""

    def __init__(self, model: PreTrainedModel, vocabulary_size: int, regularized: bool = False):
        super().__init__()
        self.regularized = regularized
        self.layout, self.notice = pairs_of(model)
        self.model = model
        self.vocabulary_size = vocabulary_size

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        return {"denoising": self.layout.logits(self.model, batch, batch.inputs.get("denoising_index"))}

    def sums(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        logits, targets = heads["denoising"], batch.inputs["denoising_targets"]
        sums = vocabulary_sums("denoising", logits, targets, self.vocabulary_size, self.regularized and self.training)
        if not self.training:
            sums["denoising_right"] = (logits[:, : self.vocabulary_size].argmax(-1) == targets).sum()
        return sums


class PretrainingModule(Headed):
    """BERT's two objectives over packed pairs: the vocabulary head on masked rows only, the next-sentence head on each pair's first row."""

    def __init__(self, model: PreTrainedModel, vocabulary_size: int, regularized: bool = False):
        super().__init__()
        self.regularized = regularized
        use_packed_attention(model)
        self.model = model
        self.vocabulary_size = vocabulary_size

    def sums(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        masked, relation, inputs = heads["mlm"], heads["nsp"], batch.inputs
        sums = vocabulary_sums("mlm", masked, inputs["mlm_targets"], self.vocabulary_size, self.regularized and self.training)
        sums["nsp"] = loss_sum(relation, inputs["nsp_targets"], 2)
        if not self.training:
            sums["mlm_right"] = (masked[:, : self.vocabulary_size].argmax(-1) == inputs["mlm_targets"]).sum()
            sums["nsp_right"] = (relation.argmax(-1) == inputs["nsp_targets"]).sum()
        return sums

    def heads(self, batch: Batch) -> dict[str, Tensor]:
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
        return {"mlm": masked, "nsp": heads.seq_relationship(pooled)}
