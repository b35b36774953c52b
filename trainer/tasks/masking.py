"""What tasks that mask tokens share: which are hidden, what stands in their place, and batches of such rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError, identity
from trainer.streams import hash_array, mix_arrays, uniform
from trainer.tasks import Batch, Pick
from trainer.tasks.regularizing import Regularizing

if TYPE_CHECKING:
    from trainer.data.corpus import Corpus, Special, Split

Ints = NDArray[np.int64]

# Of a place that may not be hidden.
_LARGEST = np.uint64((1 << 64) - 1)


@dataclass
class Masking(Regularizing):
    """A task whose `mlm` targets are hidden tokens. Rows are of sentences without separators between documents."""

    probability: float = identity(0.15, help="share of tokens that are targets")
    whole_word: bool = identity(False, help="mask all pieces of a word together")

    vocabulary_term: ClassVar[str] = "mlm"
    sentences: ClassVar[bool] = True
    tokenizer_kind: ClassVar[str] = "wordpiece"

    def check(self) -> None:
        super().check()
        if not 0 < self.probability < 1:
            raise ConfigError(f"task.probability: {self.probability}; a share between 0 and 1, e.g. 0.15")

    def draft(self, split: Split, picks: Sequence[Pick]) -> Draft:
        """Rows as they are before masking."""
        raise NotImplementedError

    def collate(self, split: Split, picks: Sequence[Pick]) -> Batch:
        """All rows of a micro-batch at once: as many calls of NumPy as for one."""
        import torch

        draft, special = self.draft(split, picks), split.special
        keys = mix_arrays(split.seed, "mask", np.array([pick.epoch for pick in picks]), np.array([pick.row for pick in picks]))
        chosen = self.masked(draft, keys, special)
        draft.targets = {"mlm": (chosen, draft.tokens[chosen])} | draft.targets
        inputs = {"input_ids": corrupt(draft, chosen, keys, special)[None]} | {name: of[None] for name, of in draft.sequences.items()}
        # A filler row is computed like any other, since every rank must meet every collective, but nothing of it is scored.
        counted = np.array([pick.counted for pick in picks])
        for term, (index, targets) in draft.targets.items():
            scored = counted[draft.row[index]]
            inputs |= {f"{term}_index": index[scored], f"{term}_targets": targets[scored]}
        return Batch(
            inputs={name: torch.from_numpy(values) for name, values in inputs.items()},
            lengths=tuple(draft.lengths.tolist()),
            targets={term: len(inputs[f"{term}_targets"]) for term in draft.targets},
            tokens=int(draft.row_lengths[counted].sum()),
        )

    def masked(self, draft: Draft, keys: NDArray[np.uint64], special: Special) -> Ints:
        """The masked positions, sorted: in each row exactly max(1, round(probability × those maskable)), the smallest by hash.

        keys: of each row. With whole_word, words are taken by hash until the count is reached, and the last one is cut to meet it.
        """
        maskable = np.add.reduceat(draft.maskable, draft.row_starts, dtype=np.int64)
        counts = np.maximum(1, np.rint(self.probability * maskable)).astype(np.int64)
        if self.whole_word:
            return self._masked_words(draft, keys, counts, special)
        # No two places of a row have the same hash, which is a bijection; that which none may have keeps special tokens out.
        hashes = hash_array(np.repeat(keys, draft.row_lengths), draft.place)
        hashes[~draft.maskable] = _LARGEST
        table = np.full((len(keys), int(draft.row_lengths.max())), _LARGEST)
        table[np.arange(table.shape[1]) < draft.row_lengths[:, None]] = hashes
        # At 0 too: NumPy takes three times as long for a single place.
        table.partition(np.unique([0, *(counts - 1)]), axis=1)
        return np.flatnonzero(hashes <= np.repeat(table[np.arange(len(keys)), counts - 1], draft.row_lengths))

    def _masked_words(self, draft: Draft, keys: NDArray[np.uint64], counts: Ints, special: Special) -> Ints:
        candidates = np.flatnonzero(draft.maskable)
        rows = draft.row[candidates]
        # A piece that does not start a word belongs to the word before it, unless a special token or the end of a sentence is between.
        begins = special.starts_word[draft.tokens[candidates]]
        begins[np.searchsorted(candidates, draft.sentence_starts())] = True
        begins |= np.concatenate([[True], np.diff(candidates) > 1])
        words = np.cumsum(begins, dtype=np.int64)
        firsts = np.searchsorted(rows, np.arange(len(keys)))
        words -= (words[firsts] - 1)[rows]
        order = np.lexsort((candidates, hash_array(keys[rows], words), rows))
        return np.sort(candidates[order[np.arange(len(order)) - firsts[rows] < counts[rows]]])

    def baselines(self, corpus: Corpus) -> dict[str, float]:
        from trainer.data.baselines import neighbour_accuracy

        return {"masked_accuracy_from_neighbour": neighbour_accuracy(corpus)}


class Draft:
    """Rows before masking, one after the other, as arrays over their tokens.

    documents: how many each row has. lengths: of the documents, special tokens included.
    tokens, maskable: what stands at a place, and whether it may be hidden. row, place: in which row that is, and where in it.
    sequences: what else has a value for every token. targets: term → places that are scored, and with what; mlm comes with the masks.
    """

    def __init__(self, split: Split, documents: Ints, lengths: Ints):
        self.split, self.lengths = split, lengths
        self.starts = np.cumsum(lengths) - lengths
        self.row_starts = self.starts[np.cumsum(documents) - documents]
        total = int(lengths.sum())
        self.row_lengths = np.diff(self.row_starts, append=total)
        self.row = np.repeat(np.arange(len(documents)), self.row_lengths)
        everywhere = np.arange(total)
        self.place = everywhere - np.repeat(self.row_starts, self.row_lengths)
        self.tokens, self.maskable = np.empty(total, np.int64), np.ones(total, bool)
        self.sequences: dict[str, Ints] = {"position_ids": everywhere - np.repeat(self.starts, lengths)}
        self.targets: dict[str, tuple[Ints, Ints]] = {}
        self._texts: list[tuple[int, int, int]] = []

    def special(self, places: Ints, token: int | None) -> None:
        """A special token at some places."""
        assert token is not None, "prepare refuses a tokenizer without it"
        self.tokens[places], self.maskable[places] = token, False

    def text(self, places: Ints, starts: Ints, lengths: Ints) -> None:
        """Stretches of the split's tokens at some places. Texts and special tokens fill all of the rows."""
        texts = list(zip(places.tolist(), starts.tolist(), lengths.tolist(), strict=True))
        for place, start, length in texts:
            self.tokens[place : place + length] = self.split.tokens.read(start, length)
        self._texts += texts

    def sentence_starts(self) -> Ints:
        """The places where sentences begin."""
        return np.concatenate([place + self.split.sentence_starts(start, length) for place, start, length in self._texts])


def corrupt(draft: Draft, chosen: Ints, keys: NDArray[np.uint64], special: Special) -> Ints:
    """Of the chosen places 80 % become [MASK], 10 % a random token, 10 % stay. keys: of each row."""
    assert special.mask is not None, "prepare refuses a tokenizer without it"
    rows, places = draft.row[chosen], draft.place[chosen]
    draw = uniform(mix_arrays(keys, "kind")[rows], places)
    replaced = draft.tokens.copy()
    replaced[chosen[draw < 0.8]] = special.mask
    random = np.flatnonzero((draw >= 0.8) & (draw < 0.9))
    drawn = hash_array(mix_arrays(keys, "token")[rows[random]], places[random]) % np.uint64(special.size)
    replaced[chosen[random]] = drawn.astype(np.int64)
    return replaced
