"""Whose turn it is: the positions of a mixture apportioned to its sources, exactly, in a table that repeats."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

# The longest table: weights of five decimals that add up to one.
LONGEST = 100_000


def whole_parts(weights: Sequence[Fraction]) -> list[int]:
    """The smallest whole numbers that are to each other as the weights are. Their sum is the length of the table."""
    scale = lcm(*(weight.denominator for weight in weights))
    parts = [int(weight * scale) for weight in weights]
    shared = gcd(*parts)
    return [part // shared for part in parts]


def turns(parts: Sequence[int]) -> NDArray[np.int32]:
    """The source of each position of one period, [sum of parts]; the table repeats after it.

    After any number of positions p each source has had p × part ÷ sum turns within 1 − 1/(2k − 2), k sources: the chairman assignment of
    Tijdeman (1980). Of the sources whose next turn would not come too early, the one takes it whose next turn would be too late soonest.
    """
    total, double = sum(parts), max(2, 2 * len(parts) - 2)
    table = np.empty(total, np.int32)

    def earliest(source: int, had: int) -> int:
        # The first p with had + 1 − p × share ≤ 1 − 1/double.
        return -(-total * (double * had + 1) // (double * parts[source]))

    def latest(source: int, had: int) -> int:
        # One more than the last p with p × share − had ≤ 1 − 1/double.
        return total * (double * (had + 1) - 1) // (double * parts[source]) + 1

    had = [0] * len(parts)
    later = [(earliest(source, 0), source) for source in range(len(parts))]
    heapq.heapify(later)
    ready: list[tuple[int, int]] = []
    for position in range(1, total + 1):
        while later and later[0][0] <= position:
            _, source = heapq.heappop(later)
            heapq.heappush(ready, (latest(source, had[source]), source))
        _, source = heapq.heappop(ready)
        table[position - 1] = source
        had[source] += 1
        if had[source] < parts[source]:
            heapq.heappush(later, (earliest(source, had[source]), source))
    return table


def turns_before(table: NDArray[np.int32], sources: int) -> NDArray[np.int64]:
    """How many turns the source of each position has had before it, within the period: [positions]."""
    before = np.empty(len(table), np.int64)
    for source in range(sources):
        own = table == source
        before[own] = np.arange(int(own.sum()))
    return before
