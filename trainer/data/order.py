"""The order of samples: a bijection of the rows for every pass, in constant time and memory.

Position p of a run is row `permute(seed, p // N, p % N)` of a table of N rows. So the data state of a checkpoint is one integer, a seek
is free, and the order knows nothing of ranks. In a mixture a position is first the turn of a source, for the so-manieth time, in closed
form too; that count is a position in the order of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.apportioning import turns, turns_before
from trainer.streams import hash_array, mix

_ROUNDS = 4
_BLOCK = (64, 2048)  # smallest and largest number of positions that are drawn at once


def permute(seed: int, epoch: int, positions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Rows at positions of one pass over `size` rows: a Feistel network on the next power of four, cycle-walked into range.

    Luby and Rackoff (1988) for the network, Black and Rogaway (2002) for the walk: fewer than four rounds of it on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = [mix(seed, "order", epoch, number) for number in range(_ROUNDS)]

    def network(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> np.uint64(half), values & mask
        for key in keys:
            left, right = right, left ^ (hash_array(key, right) & mask)
        return (left << np.uint64(half)) | right

    values = network(positions.astype(np.uint64))
    outside = values >= size
    while outside.any():
        values[outside] = network(values[outside])
        outside = values >= size
    return values.astype(np.int64)


class Ordering(Protocol):
    """Position → row and pass, of one table or of a mixture."""

    def at(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and passes of the positions [start, stop)."""

    def passes(self, position: int) -> dict[str, float]:
        """How often each source has been gone through before a position, by its name; a single table is ""."""


@dataclass(frozen=True)
class Order:
    """Position → (row, pass) over a table of `size` rows. shuffle=False: as the table has them (evaluation)."""

    seed: int
    size: int
    shuffle: bool = True

    def at(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and passes of the positions [start, stop)."""
        if not self.shuffle:
            positions = np.arange(start, stop, dtype=np.int64)
            return positions % self.size, positions // self.size
        # A small table has small blocks, so that a block does not hold many passes.
        length = max(_BLOCK[0], min(_BLOCK[1], self.size))
        first, last = start // length, max(start, stop - 1) // length
        blocks = [_block(self.seed, self.size, number, length) for number in range(first, last + 1)]
        inside = slice(start - first * length, stop - first * length)
        rows, epochs = blocks[0] if len(blocks) == 1 else (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return rows[inside], epochs[inside]

    def passes(self, position: int) -> dict[str, float]:
        return {"": position / self.size}


class MixedOrder:
    """Position → (row, pass) over several tables that follow each other: each has its share of the positions, and an order of its own.

    shares: of each source by name, in whole parts; it has that part of the positions, within one after any number (apportioning.py).
    orders: of each source, over its own rows. starts: the number of its first row.
    """

    def __init__(self, shares: Mapping[str, int], orders: Mapping[str, Ordering], starts: Sequence[int]):
        self.names, self.shares, self.starts = list(shares), np.array(list(shares.values()), np.int64), starts
        self.orders = [orders[name] for name in self.names]
        self.table = turns(self.shares.tolist())
        self.before = turns_before(self.table, len(self.names))

    def turns(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Of each position in [start, stop): whose turn it is, and how many turns that source has had before."""
        periods, places = np.divmod(np.arange(start, stop, dtype=np.int64), len(self.table))
        sources = self.table[places]
        return sources, periods * self.shares[sources] + self.before[places]

    def at(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        sources, counts = self.turns(start, stop)
        rows, epochs = np.empty_like(counts), np.empty_like(counts)
        for source in np.unique(sources):
            own = sources == source
            # Its turns are consecutive: a stretch of its own order.
            first = int(counts[own][0])
            found, epochs[own] = self.orders[source].at(first, first + int(own.sum()))
            rows[own] = found + self.starts[source]
        return rows, epochs

    def passes(self, position: int) -> dict[str, float]:
        period, place = divmod(position, len(self.table))
        counts = period * self.shares + np.bincount(self.table[:place], minlength=len(self.shares))
        return {
            f"{name}.{inner}".removesuffix("."): share
            for name, order, count in zip(self.names, self.orders, counts.tolist(), strict=True)
            for inner, share in order.passes(count).items()
        }


# A mixture draws from the blocks of all its sources at once.
@lru_cache(maxsize=256)
def _block(seed: int, size: int, number: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and passes at the positions of a block: drawn together, because the few of a step would cost nearly as much as all of them."""
    positions = np.arange(number * length, (number + 1) * length, dtype=np.int64)
    epochs, places = positions // size, positions % size
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        rows[inside] = permute(seed, int(epoch), places[inside], size)
    # Every caller is given views of these.
    rows.flags.writeable = epochs.flags.writeable = False
    return rows, epochs
