"""More processes: how much of N times one process is reached, by cells that differ in their number alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.bench.cells import Cell
from trainer.bench.results import RATE, Spread, spread, values

# What changes with the number of processes by itself is no difference: under `single` there is one, where `ddp` has several.
_PLACE = ("processes",)


@dataclass(frozen=True)
class Point:
    """A cell beside the one with the fewest processes. efficiency: (rate ÷ its rate) ÷ (processes ÷ its processes), repeat by repeat."""

    cell: Cell
    base: Cell
    efficiency: Spread


def curves(cells: Sequence[Cell]) -> list[list[Point]]:
    """A curve for each group of cells that differ in the number of processes alone, in ascending order, where there are two or more."""
    groups: dict[tuple[tuple[str, str], ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        if values(cell, RATE):
            groups[tuple((key, value) for key, value in cell.settings.items() if key not in _PLACE)].append(cell)
    found = []
    for group in groups.values():
        ordered = sorted(group, key=lambda cell: cell.world)
        if len(ordered) > 1:
            found.append([_point(cell, ordered[0]) for cell in ordered])
    return found


def _point(cell: Cell, base: Cell) -> Point:
    times = cell.world / base.world
    # Repeats of one round were measured one after the other: what the machine did meanwhile is in both.
    pairs = zip(values(cell, RATE), values(base, RATE), strict=False)
    efficiency = spread([rate / (times * of_base) for rate, of_base in pairs])
    assert efficiency is not None, "cells without figures are left out"
    return Point(cell, base, efficiency)
