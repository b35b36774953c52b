"""Timing loops against each other: wall and CPU time a step, in turns, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# Student's t: 97.5 % are below it, at 1, 2, 3 … degrees of freedom; beyond the last the interval is a trifle too wide. No package for it,
# as a machine with a GPU may have none.
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
           2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
           2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423)  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """One round of one loop. wall, cpu: seconds a step, or another unit of work (cpu: of all threads of the process). losses: of every
    step, where kept."""

    wall: float
    cpu: float
    losses: list[float] = field(default_factory=list)


class Stopwatch:
    """Wall and CPU time between two moments, the device's work included."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None
        self._ended: tuple[float, float] | None = None

    def begin(self) -> None:
        _wait()
        self._began = (time.perf_counter(), time.process_time())

    def end(self) -> None:
        _wait()
        self._ended = (time.perf_counter(), time.process_time())

    def pace(self, steps: int, losses: list[float] | None = None) -> Pace:
        """steps: those between the two moments."""
        assert self._began is not None and self._ended is not None, "the loop ended before its first marks"
        wall, cpu = (end - begin for begin, end in zip(self._began, self._ended, strict=True))
        return Pace(wall / steps, cpu / steps, losses or [])


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def take_turns(
    loops: Mapping[str, Callable[[], Pace]], rounds: int, told: Callable[[str], None], unit: str = "step"
) -> dict[str, list[Pace]]:
    """Each loop once a round, the first one of a round changing: name → paces by round. unit: what the paces are of."""
    found: dict[str, list[Pace]] = {name: [] for name in loops}
    names = list(loops)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            gc.collect()  # what the loop before left behind is not this one's work
            pace = loops[name]()
            found[name].append(pace)
            told(f"round {number + 1}/{rounds} {name}: {1000 * pace.wall:.3f} ms wall, {1000 * pace.cpu:.3f} ms CPU a {unit}")
    return found


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} – {self.high:.3f})"


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one is as another, over rounds in turns: geometric mean, and the 95 % interval around it by Student's t."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} – {self.high:.3f})" if self.high < math.inf else f"{self.mean:.3f}"

    def figures(self) -> dict[str, float | None]:
        """As JSON takes it: what is infinite is None."""
        return {"mean": self.mean, "low": self.low, "high": self.high if self.high < math.inf else None}


def ratio(ours: list[float], theirs: list[float]) -> Ratio:
    """Of seconds by round. One round has no interval: it reaches from nothing to everything."""
    logs = [math.log(two / one) for one, two in zip(ours, theirs, strict=True)]
    mean, wide = statistics.mean(logs), math.inf
    if len(logs) > 1:
        wide = STUDENT[min(len(logs) - 1, len(STUDENT)) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - wide), math.exp(mean + wide) if wide < math.inf else math.inf)


def spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
