"""From documents to rows: where a row's tokens lie in the stream. Reads offsets only, never a token."""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError
from trainer.data.rows import RowWriter
from trainer.streams import hash_array, mix, uniform

Ints = NDArray[np.int64]

_ROWS = 1 << 15
_SENTENCES = 1 << 18
DOCUMENTS = 1 << 16
_WINDOW = 4096
# Devlin et al. 2018 make one pair in ten shorter than it could be, so that the model meets short inputs.
_SHORT = 0.1

log = logging.getLogger(__name__)


def pack_causal(documents: Ints, sequence_length: int, writer: RowWriter) -> None:
    """Cut the stream every `sequence_length` input positions, and there again at documents. A piece is (start, length).

    documents: [D + 1] offsets, the last that of the closing separator. A piece of n positions reads n + 1 tokens: each but the first is
    the target of the one before. So every token of the stream is a target once, the separator that ends a document included.
    """
    writer.offsets = (0,)
    end = int(documents[-1])
    for low in range(0, end, _ROWS * sequence_length):
        high = min(low + _ROWS * sequence_length, end)
        cuts = np.arange(low, high, sequence_length, dtype=np.int64)
        first, last = np.searchsorted(documents, (low, high))
        starts = np.union1d(cuts, np.asarray(documents[first:last]))
        stops = np.append(starts[1:], high)
        pointers = np.append(np.searchsorted(starts, cuts), len(starts))
        lengths = np.diff(np.append(cuts, high))
        writer.append(np.stack([starts, stops - starts], axis=1), np.diff(pointers), lengths, {"clm": lengths})


def pack_pairs(documents: Ints, sentences: Ints, sequence_length: int, probability: float, seed: int, writer: RowWriter) -> None:
    """Pairs `[CLS] A [SEP] B [SEP]` of consecutive sentences, several to a row. A piece is (a_start, a_length, b_start, b_length, is_next).

    documents [D + 1], sentences [S + 1]: offsets, ends included. About half of the pairs have B taken from another document, and their
    own continuation is put back to start the next pair (Devlin et al. 2018). Targets: mlm, the tokens to mask at `probability`; nsp.
    """
    writer.offsets = (0, 2)
    maker = _Pairs(documents, sentences, sequence_length - 3, seed)
    if sequence_length < 8:
        raise ConfigError(f"sequence_length: {sequence_length}; a pair and its three special tokens need at least 8")
    if len(documents) < 3:
        log.warning("only one document: the other half of the pairs takes its second part from elsewhere in the same document")
    for pairs in windows(maker.blocks()):
        order, counts, lengths, masked = _fill(pairs[:, 1] + pairs[:, 3], 3, sequence_length, probability)
        writer.append(pairs[order], counts, lengths, {"mlm": masked, "nsp": counts})


def pack_documents(documents: Ints, sequence_length: int, probability: float, writer: RowWriter) -> None:
    """Documents `[CLS] text [SEP]`, several to a row; a longer one in parts that fill rows. A piece is (start, length).

    documents: [D + 1] offsets, the end included. Targets: mlm, the tokens to mask at `probability`.
    """
    writer.offsets = (0,)
    if sequence_length < 3:
        raise ConfigError(f"sequence_length: {sequence_length}; a text and its two special tokens need at least 3")

    def blocks() -> Iterator[Ints]:
        for low in range(0, len(documents) - 1, DOCUMENTS):
            borders = split_long(np.asarray(documents[low : low + DOCUMENTS + 1]), sequence_length - 2)
            yield np.stack([borders[:-1], np.diff(borders)], axis=1)

    for pieces in windows(blocks()):
        order, counts, lengths, masked = _fill(pieces[:, 1], 2, sequence_length, probability)
        writer.append(pieces[order], counts, lengths, {"mlm": masked})


def windows(blocks: Iterator[Ints]) -> Iterator[Ints]:
    """Pieces that are packed together, so many at a time, however they came in blocks."""
    left: Ints | None = None
    for block in blocks:
        left = block if left is None else np.concatenate([left, block])
        whole = len(left) - len(left) % _WINDOW
        yield from np.split(left[:whole], range(_WINDOW, whole, _WINDOW)) if whole else []
        left = left[whole:]
    if left is not None and len(left):
        yield left


def _fill(texts: Ints, special: int, sequence_length: int, probability: float) -> tuple[Ints, Ints, Ints, Ints]:
    """Rows of pieces with so many tokens of text and `special` ones more: order of the pieces; pieces, tokens and masks of each row."""
    order, counts = best_fit(texts + special, sequence_length)
    maskable = np.add.reduceat(texts[order], np.cumsum(counts) - counts)
    # As the task draws them: a number of targets a row, not a chance a token.
    masked = np.maximum(1, np.rint(probability * maskable)).astype(np.int64)
    return order, counts, maskable + special * counts, masked


def best_fit(sizes: Ints, capacity: int) -> tuple[Ints, Ints]:
    """Best-fit decreasing: the order in which items fill rows, and the items of each row. Every size must fit the capacity."""
    order = np.argsort(-sizes, kind="stable")
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for item, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        position = bisect_left(rooms, size)
        if position < len(rooms):
            room = rooms[position]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[position]
            rows[row].append(item)
        else:
            room, row = capacity, len(rows)
            rows.append([item])
        room -= size
        if room:
            if room not in by_room:
                by_room[room] = []
                insort(rooms, room)
            by_room[room].append(row)
    counts = np.array([len(row) for row in rows], np.int64)
    return np.array([item for row in rows for item in row], np.int64), counts


@dataclass
class _Pairs:
    """Pairs of sentences. All that is drawn for a pair is a function of where it starts, so a block is computed for every possible
    start at once, and then the starts that follow from each other are picked out.
    """

    documents: Ints
    sentences: Ints
    budget: int
    seed: int

    def blocks(self) -> Iterator[Ints]:
        """All pairs in order, some hundred thousand sentences at a time."""
        position, total = 0, len(self.sentences) - 1
        for low in range(0, total, _SENTENCES):
            high = min(low + _SENTENCES, total)
            # A pair reaches no further than its budget, and a sentence has a token at least.
            borders = split_long(np.asarray(self.sentences[low : min(high + self.budget + 3, total + 1)]), self.budget // 3)
            starts = borders[: np.searchsorted(borders, self.sentences[high])]
            pairs, following = self.at(starts, borders)
            index = np.searchsorted(borders, following).tolist()
            picked, at = [], int(np.searchsorted(borders, position))
            while at < len(starts):
                picked.append(at)
                at = index[at]
            position = int(borders[at])
            chosen = pairs[picked]
            yield chosen[chosen[:, 3] > 0]

    def at(self, starts: Ints, borders: Ints) -> tuple[Ints, Ints]:
        """The pair at each start, [n, 5], and where the next pair starts. borders: offsets of sentences, well beyond the last start."""
        document = np.searchsorted(self.documents, starts, side="right") - 1
        stop = np.asarray(self.documents[document + 1])
        first, final = np.searchsorted(borders, starts), np.searchsorted(borders, stop)
        target = np.where(
            uniform(mix(self.seed, "short"), starts) < _SHORT,
            2 + (uniform(mix(self.seed, "target"), starts) * (self.budget - 1)).astype(np.int64),
            self.budget,
        )
        last = np.searchsorted(borders, np.minimum(starts + target, stop), side="right") - 1
        # A sentence is at most a third of the budget long, so two always fit, and a random one beside them.
        last = np.maximum(last, np.minimum(first + 2, final))
        # A single sentence left over at the end of a document could only be followed by a random one, and the halves would be uneven.
        last -= (final - last == 1) & (last - first > 2)
        count = last - first
        follows = (count > 1) & (uniform(mix(self.seed, "next"), starts) < 0.5)
        a_count = np.where(count > 1, 1 + (uniform(mix(self.seed, "cut"), starts) * (count - 1)).astype(np.int64), 1)
        single = ~follows & (final - first - a_count == 1)
        a_count += np.where(single, np.where(a_count > 1, -1, 1), 0)
        middle, end = borders[first + a_count], borders[last]
        a_length = middle - starts
        room = np.maximum(target, end - starts) - a_length
        room = np.where(room > 0, room, self.budget - a_length)
        b_start, b_length = self.elsewhere(starts, document, middle, room)
        follows |= (b_length <= 0) & (count > 1)
        b_start, b_length = np.where(follows, middle, b_start), np.where(follows, end - middle, b_length)
        return np.stack([starts, a_length, b_start, b_length, follows.astype(np.int64)], axis=1), np.where(follows, end, middle)

    def elsewhere(self, starts: Ints, document: Ints, middle: Ints, room: Ints) -> tuple[Ints, Ints]:
        """Where a random second part lies and how long it is, by hash: whole sentences of another document, at most `room` tokens.

        Of a single document, any of its sentences that does not follow the first part.
        """
        others = len(self.documents) - 2
        if others:
            drawn = (hash_array(mix(self.seed, "document"), starts) % np.uint64(others)).astype(np.int64)
            drawn += drawn >= document
        else:
            drawn = document
        low = np.searchsorted(self.sentences, np.asarray(self.documents[drawn]))
        high = np.searchsorted(self.sentences, np.asarray(self.documents[drawn + 1]))
        count = np.maximum(high - low, 1)
        sentence = (uniform(mix(self.seed, "sentence"), starts) * count).astype(np.int64)
        if not others:
            follower = np.searchsorted(self.sentences, middle) - low
            sentence = np.where(sentence == follower, (sentence + max(1, int(count[0]) // 2)) % count, sentence)
        begin = np.asarray(self.sentences[low + sentence])
        fit = np.searchsorted(self.sentences, np.minimum(begin + room, np.asarray(self.documents[drawn + 1])), side="right") - 1
        whole = np.asarray(self.sentences[fit]) - begin
        # A first sentence that is too long is cut.
        longest = np.asarray(self.documents[drawn + 1]) - begin
        return begin, np.where(whole > 0, whole, np.minimum(room, longest))


def split_long(borders: Ints, longest: int) -> Ints:
    """Offsets with further ones between any two that lie more than `longest` apart."""
    pieces = -(-np.diff(borders) // longest)
    origin = np.repeat(borders[:-1], pieces)
    step = np.arange(len(origin)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.append(origin + step * longest, borders[-1])
