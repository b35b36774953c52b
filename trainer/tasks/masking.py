"""What tasks that mask tokens share: which are hidden, what stands in their place, and batches of such rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError, identity
from trainer.streams import hash_array, mix, uniform
from trainer.tasks import Batch, Pick
from trainer.tasks.regularizing import Regularizing

if TYPE_CHECKING:
    from trainer.data.corpus import Corpus, Special, Split

Ints = NDArray[np.int64]


@dataclass
class Masking(Regularizing):
    """A task whose `mlm` targets are hidden tokens. Rows are of sentences without separators between documents."""

    probability: float = identity(0.15, help="share of tokens that are targets")
    whole_word: bool = identity(False, help="mask all pieces of a word together")

    vocabulary_term: ClassVar[str] = "mlm"
    sentences: ClassVar[bool] = True
    tokenizer_kind: ClassVar[str] = "wordpiece"
    # What of a row has a value for every token.
    sequences: ClassVar[tuple[str, ...]] = ("input_ids", "position_ids")

    def check(self) -> None:
        super().check()
        if not 0 < self.probability < 1:
            raise ConfigError(f"task.probability: {self.probability}; a share between 0 and 1, e.g. 0.15")

    def row(self, split: Split, pick: Pick) -> dict[str, Ints]:
        """One row, masked: `sequences`, `lengths` of its documents, and `index` and `targets` of each term."""
        raise NotImplementedError

    def collate(self, split: Split, picks: Sequence[Pick]) -> Batch:
        import torch

        parts = [self.row(split, pick) for pick in picks]
        starts = np.cumsum([0, *(len(part["input_ids"]) for part in parts)])
        tensors = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])[None]) for name in self.sequences}
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

    def masked_row(self, split: Split, pick: Pick, draft: Draft) -> dict[str, Ints]:
        """What `row` returns for the term `mlm`: the masks of a sample in one pass, and positions that start with every document."""
        special, tokens = split.special, draft.tokens
        candidates = np.flatnonzero(draft.maskable)
        key = mix(split.seed, "mask", pick.epoch, pick.row)
        chosen = self.masked(draft, candidates, key, special)
        return {
            "input_ids": corrupt(tokens, chosen, key, special),
            "position_ids": np.concatenate([np.arange(length, dtype=np.int64) for length in draft.lengths.tolist()]),
            "lengths": draft.lengths,
            "mlm_index": chosen,
            "mlm_targets": tokens[chosen],
        }

    def masked(self, draft: Draft, candidates: Ints, key: int, special: Special) -> Ints:
        """The masked positions, sorted: exactly max(1, round(probability × candidates)) of them, the smallest by hash.

        With whole_word, words are taken by hash until the count is reached, and the last one is cut to meet it.
        """
        count = max(1, round(self.probability * len(candidates)))
        if not self.whole_word:
            ranks = hash_array(key, candidates)
            return np.sort(candidates[np.argsort(ranks, kind="stable")[:count]])
        # A piece that does not start a word belongs to the word before it, unless a special token or the end of a sentence is between.
        begins = special.starts_word[draft.tokens[candidates]] | draft.begins[candidates]
        begins |= np.concatenate([[True], np.diff(candidates) > 1])
        words = np.cumsum(begins, dtype=np.int64)
        order = np.lexsort((candidates, hash_array(key, words)))
        return np.sort(candidates[order[:count]])

    def baselines(self, corpus: Corpus) -> dict[str, float]:
        from trainer.data.baselines import neighbour_accuracy

        return {"masked_accuracy_from_neighbour": neighbour_accuracy(corpus)}


class Draft:
    """A row before masking: its tokens, and which of them may be hidden.

    lengths: of its documents, special tokens included. words: note where words begin beside what pieces look like: with each sentence.
    """

    def __init__(self, lengths: Ints, words: bool):
        self.lengths, self.words = lengths, words
        total = int(lengths.sum())
        self.tokens = np.zeros(total, np.int64)
        self.maskable = np.zeros(total, bool)
        self.begins = np.zeros(total, bool)

    def put(self, at: int, split: Split, start: int, length: int) -> None:
        """Text of the split at a place of the row."""
        self.tokens[at : at + length] = split.tokens.read(start, length)
        self.maskable[at : at + length] = True
        if self.words:
            self.begins[at + split.sentence_starts(start, length)] = True


def corrupt(tokens: Ints, chosen: Ints, key: int, special: Special) -> Ints:
    """Of the chosen positions 80 % become [MASK], 10 % a random token, 10 % stay."""
    assert special.mask is not None, "prepare refuses a tokenizer without it"
    draw = uniform(mix(key, "kind"), chosen)
    replaced = tokens.copy()
    replaced[chosen[draw < 0.8]] = special.mask
    random = chosen[(draw >= 0.8) & (draw < 0.9)]
    replaced[random] = (hash_array(mix(key, "token"), random) % np.uint64(special.size)).astype(np.int64)
    return replaced
