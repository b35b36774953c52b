"""BERT's pretraining: masked tokens, and whether the second half of a pair follows the first (Devlin et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainer.choices import choice
from trainer.streams import mix
from trainer.tasks import Pick
from trainer.tasks.masking import Draft, Masking

if TYPE_CHECKING:
    from torch import nn

    from trainer.config import Config
    from trainer.data.corpus import Corpus, Split
    from trainer.data.rows import RowWriter


@choice
class MaskedLMWithNextSentence(Masking):
    """Masked language modelling with next-sentence prediction (BERT)."""

    name: str = "mlm_nsp"

    terms: ClassVar[dict[str, float]] = {"mlm": 1.0, "nsp": 1.0}
    objective: ClassVar[str] = "pretraining"
    figures: ClassVar[tuple[str, ...]] = ("masked_accuracy", "next_sentence_accuracy")

    def rows(self, corpus: Corpus, split: str, sequence_length: int, seed: int, writer: RowWriter) -> None:
        from trainer.data.packing import pack_pairs

        pack_pairs(corpus.documents(split), corpus.sentences(split), sequence_length, self.probability, mix(seed, "pairs", split), writer)

    def draft(self, split: Split, picks: Sequence[Pick]) -> Draft:
        """Pairs, each `[CLS] A [SEP] B [SEP]`."""
        tables = [split.rows.pieces(pick.row) for pick in picks]
        a_starts, a_lengths, b_starts, b_lengths, is_next = np.concatenate(tables).T
        lengths = a_lengths + b_lengths + 3
        draft = Draft(split, np.array([len(pieces) for pieces in tables]), lengths)
        middles = draft.starts + 1 + a_lengths
        draft.special(draft.starts, split.special.cls)
        draft.text(draft.starts + 1, a_starts, a_lengths)
        draft.special(middles, split.special.sep)
        draft.text(middles + 1, b_starts, b_lengths)
        draft.special(middles + 1 + b_lengths, split.special.sep)
        types = draft.sequences["position_ids"] > np.repeat(a_lengths + 1, lengths)
        draft.sequences = {"token_type_ids": types.astype(np.int64)} | draft.sequences
        # 0: B follows A, as in BertForPreTraining.
        draft.targets["nsp"] = draft.starts, 1 - is_next
        return draft

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        from trainer.models import skeleton_of
        from trainer.models.heads import PretrainingModule

        return PretrainingModule(skeleton_of(config, corpus), corpus.vocabulary.size, self.regularized)

    def metrics(self, sums: dict[str, float], targets: dict[str, int], corpus: Corpus) -> dict[str, Any]:
        nsp = sums["nsp_right"] / targets["nsp"]
        low, high = wilson_interval(nsp, targets["nsp"], z=2.576)
        return {
            "masked_accuracy": sums["mlm_right"] / targets["mlm"],
            "next_sentence_accuracy": nsp,
            "next_sentence_accuracy_low_99": low,
            "next_sentence_accuracy_high_99": high,
        }


def wilson_interval(share: float, count: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share seen in `count` trials (Wilson 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half
