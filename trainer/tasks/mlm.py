"""Masked language modelling without next-sentence prediction (Liu et al. 2019): rows packed full of documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainer.choices import choice
from trainer.tasks import Pick
from trainer.tasks.masking import Draft, Masking

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
    figures: ClassVar[tuple[str, ...]] = ("masked_accuracy",)

    def rows(self, corpus: Corpus, split: str, sequence_length: int, seed: int, writer: RowWriter) -> None:
        from trainer.data.packing import pack_documents

        pack_documents(corpus.documents(split), sequence_length, self.probability, writer)

    def draft(self, split: Split, picks: Sequence[Pick]) -> Draft:
        """Documents, or parts of them, each `[CLS] text [SEP]`."""
        tables = [split.rows.pieces(pick.row) for pick in picks]
        starts, lengths = np.concatenate(tables).T
        draft = Draft(split, np.array([len(pieces) for pieces in tables]), lengths + 2)
        draft.special(draft.starts, split.special.cls)
        draft.text(draft.starts + 1, starts, lengths)
        draft.special(draft.starts + 1 + lengths, split.special.sep)
        return draft

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        from trainer.models import skeleton_of
        from trainer.models.heads import MaskedModule

        return MaskedModule(skeleton_of(config, corpus), corpus.vocabulary.size, self.regularized)

    def metrics(self, sums: dict[str, float], targets: dict[str, int], corpus: Corpus) -> dict[str, Any]:
        return {"masked_accuracy": sums["mlm_right"] / targets["mlm"]}
