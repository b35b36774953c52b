"""BERT's pretraining: masked tokens, and whether the second half of a pair follows the first (Devlin et al. 2018)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainer.choices import choice
from trainer.streams import mix
from trainer.tasks import Pick
from trainer.tasks.masking import Draft, Ints, Masking

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
    sequences: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids", "position_ids")

    def rows(self, corpus: Corpus, split: str, sequence_length: int, seed: int, writer: RowWriter) -> None:
        from trainer.data.packing import pack_pairs

        pack_pairs(corpus.documents(split), corpus.sentences(split), sequence_length, self.probability, mix(seed, "pairs", split), writer)

    def row(self, split: Split, pick: Pick) -> dict[str, Ints]:
        """One row: its pairs `[CLS] A [SEP] B [SEP]`."""
        special = split.special
        assert special.cls is not None and special.sep is not None, "prepare refuses a tokenizer without them"
        pieces = split.rows.pieces(pick.row)
        draft = Draft(pieces[:, 1] + pieces[:, 3] + 3, self.whole_word)
        types = np.zeros(len(draft.tokens), np.int64)
        at = 0
        for a_start, a_length, b_start, b_length, _is_next in pieces.tolist():
            middle, end = at + 1 + a_length, at + a_length + b_length + 2
            draft.tokens[at], draft.tokens[middle], draft.tokens[end] = special.cls, special.sep, special.sep
            draft.put(at + 1, split, a_start, a_length)
            draft.put(middle + 1, split, b_start, b_length)
            types[middle + 1 : end + 1] = 1
            at = end + 1
        return self.masked_row(split, pick, draft) | {
            "token_type_ids": types,
            "nsp_index": np.cumsum(draft.lengths) - draft.lengths,
            # 0: B follows A, as in BertForPreTraining.
            "nsp_targets": 1 - pieces[:, 4],
        }

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        from trainer.models.heads import PretrainingModule

        vocabulary = corpus.vocabulary
        return PretrainingModule(config.model.build(self.objective, vocabulary, config.sequence_length), vocabulary.size, self.regularized)

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
