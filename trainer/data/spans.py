"""Spans to hide in a text, and rows of such texts (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, span corruption).

How many tokens and spans are hidden is a function of a text's length alone, so a row's number of targets stands in the row table; where
they lie is drawn by hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.choices import ConfigError
from trainer.data.packing import DOCUMENTS, Ints, best_fit, windows
from trainer.data.rows import RowWriter
from trainer.streams import hash_array, mix


@dataclass(frozen=True)
class Spans:
    """rate: share of tokens that are hidden. mean: tokens of a span, on average."""

    rate: float
    mean: float

    def counts(self, lengths: Ints) -> tuple[Ints, Ints]:
        """Hidden tokens and spans of texts of these lengths. A token at least stays and one is hidden; of a single one, that one is."""
        hidden = np.clip(np.rint(self.rate * lengths), 1, np.maximum(lengths - 1, 1)).astype(np.int64)
        most = np.maximum(np.minimum(hidden, lengths - hidden), 1)
        return hidden, np.clip(np.rint(hidden / self.mean), 1, most).astype(np.int64)

    def sizes(self, lengths: Ints) -> tuple[Ints, Ints]:
        """Tokens that the encoder reads (text, sentinels, the end) and that the decoder writes (sentinels, hidden tokens, the end)."""
        hidden, spans = self.counts(lengths)
        return lengths - hidden + spans + 1, hidden + spans + 1

    def longest(self, sequence_length: int) -> int:
        """The longest text of which the encoder reads at most `sequence_length` tokens. Raises ConfigError where it could read none."""
        lengths = np.arange(1, int(2 + sequence_length / (1 - self.rate)), dtype=np.int64)
        fitting = lengths[self.sizes(lengths)[0] <= sequence_length]
        if not len(fitting):
            raise ConfigError(f"sequence_length: {sequence_length}; a text with a sentinel and its end needs at least 4")
        return int(fitting.max())

    def draw(self, key: int, length: int) -> tuple[Ints, Ints]:
        """Lengths of what stays before each span and behind the last [spans + 1], and of the spans [spans].

        Between two spans a token stays at least. A text may begin and end with a span; if it always did, as where rows are long and it
        does not matter, short texts would be hidden at the same place each time.
        """
        hidden, spans = (int(count[0]) for count in self.counts(np.array([length])))
        kept = _parts(mix(key, "kept"), length - hidden + 2, spans + 1)
        kept[[0, -1]] -= 1
        return kept, _parts(mix(key, "hidden"), hidden, spans)


def _parts(key: int, total: int, count: int) -> Ints:
    """Cut `total` things into `count` parts of at least one, every way as likely as any other."""
    places = np.argsort(hash_array(key, np.arange(1, total)), kind="stable")[: count - 1] + 1
    return np.diff(np.concatenate([[0], np.sort(places), [total]]))


def pack_spans(documents: Ints, sequence_length: int, spans: Spans, writer: RowWriter) -> None:
    """Documents in parts, several to a row, of which the encoder reads at most `sequence_length` tokens. A piece is (start, length).

    documents: [D + 1] offsets, each that of the separator before a text. Targets: denoising, what the decoder writes.
    """
    longest = spans.longest(sequence_length)

    def blocks() -> Iterator[Ints]:
        for low in range(0, len(documents) - 1, DOCUMENTS):
            borders = np.asarray(documents[low : low + DOCUMENTS + 1])
            lengths = np.diff(borders) - 1
            parts = -(-lengths // longest)
            inside = (np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)) * longest
            yield np.stack([np.repeat(borders[:-1] + 1, parts) + inside, np.minimum(longest, np.repeat(lengths, parts) - inside)], axis=1)

    for pieces in windows(blocks()):
        read, written = spans.sizes(pieces[:, 1])
        order, counts = best_fit(read, sequence_length)
        starts = np.cumsum(counts) - counts
        lengths, targets = (np.add.reduceat(sizes[order], starts) for sizes in (read, written))
        writer.append(pieces[order], counts, lengths, {"denoising": targets})
