"""Modules that the strategies wrap: a transformers model, the head on target rows only, and the sum of losses by term.

In evaluation mode a forward also returns the sums that metrics need. Nothing of a model is called outside the wrapped module's forward:
a head called beside it would train unsynchronised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from trainer.models.head import answering, last_linear
from trainer.models.headed import Headed
from trainer.models.layout import layout_of, pairs_of
from trainer.models.linear_cross_entropy import Compute, cross_entropy_and_gradient, linear_cross_entropy
from trainer.models.packed import use_packed_attention
from trainer.tasks import Batch

if TYPE_CHECKING:
    from trainer.config import Head


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


class VocabularyModule(Headed):
    """A module one of whose terms is a cross-entropy over the vocabulary, at the targets `<term>_targets` of a batch.

    regularized: in training the sums for label smoothing and z-loss are wanted too. chunk_bytes: logits in fp32 that are held at once
    (`chunk_head`); None: the head gives all of them. cross_entropy: what is computed of a chunk, perhaps compiled.
    """

    term: str
    # Whether an evaluation counts how many targets the model is right about.
    scored: ClassVar[bool] = False

    def __init__(self, vocabulary_size: int, regularized: bool = False):
        super().__init__()
        self.vocabulary_size, self.regularized = vocabulary_size, regularized
        self.chunk_bytes: int | None = None
        self.cross_entropy: Compute = cross_entropy_and_gradient

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        linear = last_linear(self.model) if self.chunk_bytes is not None else None
        if linear is None:
            return super().forward(batch)
        with answering(linear, lambda hidden: self._in_chunks(linear, hidden, batch.inputs[f"{self.term}_targets"])) as sums_in:
            heads = self.heads(batch)
        return sums_in(heads[self.term]) | self.more(heads, batch)

    def sums(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return self._of_logits(heads[self.term], batch.inputs[f"{self.term}_targets"]) | self.more(heads, batch)

    def more(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Sums of other terms, and whatever else an evaluation is to give."""
        return {}

    def _of_logits(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        found = vocabulary_sums(self.term, logits, targets, self.vocabulary_size, self.regularized and self.training)
        if self.scored and not self.training:
            found[f"{self.term}_right"] = (logits[:, : self.vocabulary_size].argmax(-1) == targets).sum()
        return found

    def _in_chunks(self, linear: nn.Linear, hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The same from the head's inputs `[targets, width]`, so many of them at a time."""
        assert self.chunk_bytes is not None
        rows = max(1, self.chunk_bytes // (4 * linear.weight.shape[0]))
        if self.training and not self.regularized:
            return {
                self.term: linear_cross_entropy(hidden, linear.weight, linear.bias, targets, self.vocabulary_size, rows, self.cross_entropy)
            }

        def sums(hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
            return self._of_logits(F.linear(hidden, linear.weight, linear.bias), targets)

        # Several sums, each with a gradient of its own: logits are computed again in backward. Without a gradient this is a plain call.
        chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
        parts = [checkpoint(sums, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def chunk_head(module: nn.Module, options: Head) -> None:
    """Have a module's vocabulary head give its loss in place of logits, where it has one that can be."""
    if isinstance(module, VocabularyModule) and options.chunk_mib is not None:
        module.chunk_bytes = int(options.chunk_mib * 2**20)


class LanguageModule(VocabularyModule):
    """A language model over packed rows. notice: a line for people on how documents are kept apart; empty where that is known."""

    causal: ClassVar[bool]

    def __init__(self, model: PreTrainedModel, vocabulary_size: int, regularized: bool = False):
        super().__init__(vocabulary_size, regularized)
        self.layout, self.notice = layout_of(model, self.causal)
        self.model = model

    def logits(self, batch: Batch, rows: Tensor | None) -> Tensor:
        """`[rows, padded vocabulary]` at rows of the packed tokens, or at all of them."""
        return self.layout.logits(self.model, batch.inputs, batch.lengths, rows)


class CausalModule(LanguageModule):
    """A causal language model: every position has a target."""

    causal = True
    term = "clm"

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        everywhere = batch.targets["clm"] == batch.inputs["input_ids"].shape[1]
        return {"clm": self.logits(batch, None if everywhere else batch.inputs["clm_index"])}


class MaskedModule(LanguageModule):
    """A masked language model: the vocabulary head on masked rows only."""

    causal = False
    term = "mlm"
    scored = True

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        return {"mlm": self.logits(batch, batch.inputs["mlm_index"])}


class DenoisingModule(VocabularyModule):
    """An encoder–decoder model: every token that the decoder writes is a target. notice: as LanguageModule has it."""

    term = "denoising"
    scored = True

    def __init__(self, model: PreTrainedModel, vocabulary_size: int, regularized: bool = False):
        super().__init__(vocabulary_size, regularized)
        self.layout, self.notice = pairs_of(model)
        self.model = model

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        return {"denoising": self.layout.logits(self.model, batch, batch.inputs.get("denoising_index"))}


class PretrainingModule(VocabularyModule):
    """BERT's two objectives over packed pairs: the vocabulary head on masked rows only, the next-sentence head on each pair's first row."""

    term = "mlm"
    scored = True

    def __init__(self, model: PreTrainedModel, vocabulary_size: int, regularized: bool = False):
        super().__init__(vocabulary_size, regularized)
        use_packed_attention(model)
        self.model = model

    def more(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        relation, targets = heads["nsp"], batch.inputs["nsp_targets"]
        sums = {"nsp": loss_sum(relation, targets, 2)}
        if not self.training:
            sums["nsp_right"] = (relation.argmax(-1) == targets).sum()
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
