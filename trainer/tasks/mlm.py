"""Masked language modelling without next-sentence prediction (Liu et al. 2019): rows packed full of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainer.choices import choice
from trainer.tasks import Pick
from trainer.tasks.masking import Draft, Ints, Masking

if TYPE_CHECKING:
    from torch import nn

    from trainer.config import Config
    from trainer.data.corpus import Corpus, Split
    from trainer.data.rows import RowWriter


@choice
class MaskedLM(Masking):
    """Masked language modelling over packed documents (RoBERTa, ModernBERT)."""

    name: str = "mlm"

    terms: ClassVar[dict[str, float]] = {"mlm": 1.0}
    objective: ClassVar[str] = "masked"

    def rows(self, corpus: Corpus, split: str, sequence_length: int, seed: int, writer: RowWriter) -> None:
        from trainer.data.packing import pack_documents

        pack_documents(corpus.documents(split), sequence_length, self.probability, writer)

    def row(self, split: Split, pick: Pick) -> dict[str, Ints]:
        """One row: its documents, or parts of one, each `[CLS] text [SEP]`."""
        special = split.special
        assert special.cls is not None and special.sep is not None, "prepare refuses a tokenizer without them"
        pieces = split.rows.pieces(pick.row)
        draft = Draft(pieces[:, 1] + 2, self.whole_word)
        ends = np.cumsum(draft.lengths)
        draft.tokens[ends - draft.lengths], draft.tokens[ends - 1] = special.cls, special.sep
        for end, (start, length) in zip(ends.tolist(), pieces.tolist(), strict=True):
            draft.put(end - 1 - length, split, start, length)
        return self.masked_row(split, pick, draft)

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        from trainer.models.heads import MaskedModule

        vocabulary = corpus.vocabulary
        return MaskedModule(config.model.build(self.objective, vocabulary, config.sequence_length), vocabulary.size, self.regularized)

    def metrics(self, sums: dict[str, float], targets: dict[str, int], corpus: Corpus) -> dict[str, Any]:
        return {"masked_accuracy": sums["mlm_right"] / targets["mlm"]}
