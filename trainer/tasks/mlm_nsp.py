"""BERT's pretraining: masked tokens, and whether the second half of a pair follows the first (Devlin et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError, choice, identity
from trainer.streams import hash_array, mix, uniform
from trainer.tasks import Batch, Pick, Task

if TYPE_CHECKING:
    from torch import nn

    from trainer.config import Config
    from trainer.data.corpus import Corpus, Special, Split
    from trainer.data.rows import RowWriter


@choice
class MaskedLMWithNextSentence(Task):
    """Masked language modelling with next-sentence prediction (BERT)."""

    name: str = "mlm_nsp"
    probability: float = identity(0.15, help="share of tokens that are targets")
    whole_word: bool = identity(False, help="mask all pieces of a word together")

    terms: ClassVar[dict[str, float]] = {"mlm": 1.0, "nsp": 1.0}
    objective: ClassVar[str] = "pretraining"
    sentences: ClassVar[bool] = True
    tokenizer_kind: ClassVar[str] = "wordpiece"

    def check(self) -> None:
        if not 0 < self.probability < 1:
            raise ConfigError(f"task.probability: {self.probability}; a share between 0 and 1, e.g. 0.15")

    def rows(self, corpus: Corpus, split: str, sequence_length: int, seed: int, writer: RowWriter) -> None:
        from trainer.data.packing import pack_pairs

        pack_pairs(corpus.documents(split), corpus.sentences(split), sequence_length, self.probability, mix(seed, "pairs", split), writer)

    def collate(self, split: Split, picks: Sequence[Pick]) -> Batch:
        import torch

        parts = [self._row(split, pick) for pick in picks]
        starts = np.cumsum([0, *(len(part["input_ids"]) for part in parts)])
        tensors = {
            name: torch.from_numpy(np.concatenate([part[name] for part in parts])[None])
            for name in ("input_ids", "token_type_ids", "position_ids")
        }
        targets = {}
        for term in self.terms:
            # A filler row is computed like any other, since every rank must meet every collective, but nothing of it is scored.
            counted = [(part, start) for part, start, pick in zip(parts, starts, picks, strict=False) if pick.counted]
            empty = np.empty(0, dtype=np.int64)
            tensors[f"{term}_index"] = torch.from_numpy(
                np.concatenate([empty, *(part[f"{term}_index"] + start for part, start in counted)])
            )
            tensors[f"{term}_targets"] = torch.from_numpy(np.concatenate([empty, *(part[f"{term}_targets"] for part, _ in counted)]))
            targets[term] = len(tensors[f"{term}_targets"])
        lengths = tuple(length for part in parts for length in part["lengths"].tolist())
        tokens = sum(len(part["input_ids"]) for part, pick in zip(parts, picks, strict=True) if pick.counted)
        return Batch(tensors, lengths, targets, tokens)

    def _row(self, split: Split, pick: Pick) -> dict[str, NDArray[np.int64]]:
        """One row: its pairs `[CLS] A [SEP] B [SEP]`, masked."""
        special = split.special
        assert special.cls is not None and special.sep is not None, "prepare refuses a tokenizer without them"
        pieces = split.rows.pieces(pick.row)
        sizes = pieces[:, 1] + pieces[:, 3] + 3
        tokens = np.empty(int(sizes.sum()), np.int64)
        maskable = np.ones(len(tokens), bool)
        types = np.zeros(len(tokens), np.int64)
        at = 0
        for a_start, a_length, b_start, b_length, _is_next in pieces.tolist():
            middle, end = at + 1 + a_length, at + a_length + b_length + 2
            tokens[at], tokens[middle], tokens[end] = special.cls, special.sep, special.sep
            tokens[at + 1 : middle] = split.tokens.read(a_start, a_length)
            tokens[middle + 1 : end] = split.tokens.read(b_start, b_length)
            types[middle + 1 : end + 1] = 1
            maskable[[at, middle, end]] = False
            at = end + 1
        candidates = np.flatnonzero(maskable)
        key = mix(split.seed, "mask", pick.epoch, pick.row)
        chosen = self.masked(tokens, candidates, key, special)
        return {
            "input_ids": corrupt(tokens, chosen, key, special),
            "token_type_ids": types,
            "position_ids": np.concatenate([np.arange(length, dtype=np.int64) for length in sizes.tolist()]),
            "lengths": sizes,
            "mlm_index": chosen,
            "mlm_targets": tokens[chosen],
            "nsp_index": np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64),
            # 0: B follows A, as in BertForPreTraining.
            "nsp_targets": 1 - pieces[:, 4].astype(np.int64),
        }

    def masked(self, tokens: NDArray[np.int64], candidates: NDArray[np.int64], key: int, special: Special) -> NDArray[np.int64]:
        """The masked positions, sorted: exactly max(1, round(probability × candidates)) of them, the smallest by hash.

        With whole_word, words are taken by hash until the count is reached, and the last one is cut to meet it.
        """
        count = max(1, round(self.probability * len(candidates)))
        if not self.whole_word:
            ranks = hash_array(key, candidates)
            return np.sort(candidates[np.argsort(ranks, kind="stable")[:count]])
        # A piece that does not start a word belongs to the word before it, unless a special token stands between.
        begins = special.starts_word[tokens[candidates]] | np.concatenate([[True], np.diff(candidates) > 1])
        words = np.cumsum(begins)
        order = np.lexsort((candidates, hash_array(key, words)))
        return np.sort(candidates[order[:count]])

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        from trainer.models.heads import PretrainingModule

        vocabulary = corpus.vocabulary
        return PretrainingModule(config.model.build(self.objective, vocabulary, config.sequence_length), vocabulary.size)

    def metrics(self, sums: dict[str, float], targets: dict[str, int], corpus: Corpus) -> dict[str, Any]:
        nsp = sums["nsp_right"] / targets["nsp"]
        low, high = wilson_interval(nsp, targets["nsp"], z=2.576)
        return {
            "masked_accuracy": sums["mlm_right"] / targets["mlm"],
            "next_sentence_accuracy": nsp,
            "next_sentence_accuracy_low_99": low,
            "next_sentence_accuracy_high_99": high,
        }

    def baselines(self, corpus: Corpus) -> dict[str, float]:
        from trainer.data.baselines import neighbour_accuracy

        return {"masked_accuracy_from_neighbour": neighbour_accuracy(corpus)}


def corrupt(tokens: NDArray[np.int64], chosen: NDArray[np.int64], key: int, special: Special) -> NDArray[np.int64]:
    """Of the chosen positions 80 % become [MASK], 10 % a random token, 10 % stay."""
    assert special.mask is not None, "prepare refuses a tokenizer without it"
    draw = uniform(mix(key, "kind"), chosen)
    replaced = tokens.copy()
    replaced[chosen[draw < 0.8]] = special.mask
    random = chosen[(draw >= 0.8) & (draw < 0.9)]
    replaced[random] = (hash_array(mix(key, "token"), random) % np.uint64(special.size)).astype(np.int64)
    return replaced


def wilson_interval(share: float, count: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share seen in `count` trials (Wilson 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half
