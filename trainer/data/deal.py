"""The deal of a step: which rank computes which rows in which micro-batch.

The global batch is the unit. Every rank computes the whole deal from the row lengths, without communication, and so knows the
number of targets of the whole global batch before its first backward. Row counts differ by at most one between ranks, every rank has
the same number of micro-batches (a collective of one rank must meet one of every other), and the cost of a size that does not divide
is a micro-batch that carries no targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Deal:
    """hands[rank][micro-batch] = indices into the step's rows; an empty hand is filled with a target-free row by the loader."""

    hands: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def micro_batches(self) -> int:
        return len(self.hands[0])


def deal(lengths: NDArray[np.integer], ranks: int, micro_batch: int) -> Deal:
    """Deal rows of the given lengths (tokens) to ranks, at most `micro_batch` rows at a time.

    Rows are dealt longest first, each to the rank with the fewest tokens among those that may still take one, so that no rank waits
    for another; the same rule spreads a rank's rows over its micro-batches.
    """
    count = len(lengths)
    hands = _spread(np.arange(count), np.asarray(lengths, dtype=np.int64), ranks)
    micro_batches = max(1, math.ceil(math.ceil(count / ranks) / micro_batch))
    dealt = []
    for hand in hands:
        parts = _spread(hand, np.asarray(lengths, dtype=np.int64)[hand], micro_batches)
        dealt.append(tuple(tuple(int(row) for row in np.sort(part)) for part in parts))
    return Deal(tuple(dealt))


def _spread(rows: NDArray[np.int64], lengths: NDArray[np.int64], parts: int) -> list[NDArray[np.int64]]:
    """Part rows into `parts` hands whose counts differ by at most one and whose token sums are close."""
    if parts == 1:
        return [rows]
    if len(rows) == 0 or lengths.min() == lengths.max():
        # Equal rows: contiguous hands, which also keeps neighbours in the table together.
        return list(np.array_split(rows, parts))
    # Rounds of one row each, longest rows first; in a round the emptiest hand takes the longest row. A round that is not full is the
    # last one and holds the shortest rows, so counts differ by at most one.
    order = np.argsort(-lengths, kind="stable")
    sums = np.zeros(parts, dtype=np.int64)
    hands: list[list[int]] = [[] for _ in range(parts)]
    for begin in range(0, len(rows), parts):
        chosen = order[begin : begin + parts]
        takers = np.argsort(sums, kind="stable")[: len(chosen)]
        sums[takers] += lengths[chosen]
        for taker, index in zip(takers, chosen, strict=True):
            hands[taker].append(int(rows[index]))
    return [np.array(hand, dtype=np.int64) for hand in hands]


def describe(global_batch: int, ranks: int, micro_batch: int) -> str | None:
    """The warning for a global batch that does not divide: the equation, its cost, the nearest sizes that do. None where it does."""
    rows = math.ceil(global_batch / ranks)
    micro_batches = math.ceil(rows / micro_batch)
    slots = ranks * micro_batches
    if global_batch % ranks == 0 and rows % micro_batches == 0:
        return None
    unit = ranks * min(micro_batch, rows)
    below, above = global_batch // unit * unit, -(-global_batch // unit) * unit
    nearest = " or ".join(str(size) for size in sorted({below, above}) if size > 0)
    idle = 1 - global_batch / (slots * math.ceil(global_batch / slots))
    return (
        f"global_batch={global_batch} does not divide: {ranks} ranks × {micro_batches} micro-batches of at most {micro_batch} rows have "
        f"uneven counts; the result is the same, up to {idle:.0%} of the devices' time idles. Sizes that divide: {nearest}"
    )
