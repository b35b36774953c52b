"""Two benches: for each cell that both have, how many times as fast the second is, within an interval that knows the noise of the repeats.

Welch's t on the logarithms of the rates: repeats are independent launches, their spread is that of a ratio, and the two benches need not be
equally noisy. Of several cells all intervals hold together at 95 % (Bonferroni), else one in twenty would be called something by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from trainer.bench.cells import BASIC, UNKNOWN, Cell, State
from trainer.bench.conditions import differences
from trainer.bench.results import FIGURES, RATE, Results, values
from trainer.choices import ConfigError, nearest

CONFIDENCE = 0.95
THRESHOLD = 0.03


class Verdict(str, Enum):
    """What the interval says."""

    faster = "faster"
    slower = "slower"
    same = "no difference"
    unknown = "too few repeats"


@dataclass(frozen=True)
class Ratio:
    """Second ÷ first: geometric mean, and the interval that holds it with the confidence asked for. low, high: None of fewer than 2."""

    ratio: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Verdict:
        if self.low is None or self.high is None:
            return Verdict.unknown
        return Verdict.faster if self.low > 1 else Verdict.slower if self.high < 1 else Verdict.same


def ratio_of(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Ratio:
    """Compare rates of independent repeats. Raises ValueError where one has none."""
    import numpy as np
    from scipy import stats

    logs = [np.log(np.asarray(each, dtype=float)) for each in (first, second)]
    if not all(len(each) for each in logs):
        raise ValueError("nothing to compare")
    middle = float(logs[1].mean() - logs[0].mean())
    if min(map(len, logs)) < 2:
        return Ratio(math.exp(middle), None, None)
    parts = [float(each.var(ddof=1)) / len(each) for each in logs]
    variance = sum(parts)
    if variance == 0:  # without any noise the interval is a point
        return Ratio(math.exp(middle), math.exp(middle), math.exp(middle))
    # Welch's and Satterthwaite's degrees of freedom.
    freedom = variance**2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, logs, strict=True))
    reach = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(variance)
    return Ratio(math.exp(middle), math.exp(middle - reach), math.exp(min(700.0, middle + reach)))


@dataclass(frozen=True)
class Pair:
    """A cell of both. regression: slower, and by more than the threshold."""

    label: str
    first: Cell
    second: Cell
    ratio: Ratio
    regression: bool


@dataclass(frozen=True)
class Lost:
    """A cell of both that the first measured and the second did not."""

    label: str
    reason: str


@dataclass
class Comparison:
    """pairs: of the cells that both have figures of. lost: of those that only the first could measure. alone: what one has not, in words.

    warnings: what else differs between the two.
    """

    first: Results
    second: Results
    threshold: float
    figure: str = RATE
    pairs: list[Pair] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def regressions(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.regression]

    @property
    def judged(self) -> list[Pair]:
        """The pairs that a verdict could be given of."""
        return [pair for pair in self.pairs if pair.ratio.verdict is not Verdict.unknown]

    @property
    def passes(self) -> bool:
        """Whether nothing got slower, nothing was lost, and anything at all can be said."""
        return bool(self.judged) and not self.regressions and not self.lost


def compare(first: Results, second: Results, threshold: float = THRESHOLD, figure: str = RATE) -> Comparison:
    """Match cells and compare them. Raises ConfigError where no cell is in both, for a threshold that is no share, or another figure."""
    if figure not in FIGURES:
        raise ConfigError(f"figure: {figure}; allowed: {', '.join(FIGURES)}{nearest(figure, FIGURES)}")
    if not 0 <= threshold < 1:
        raise ConfigError(f"threshold: {threshold}; allowed: a share from 0 to below 1, e.g. threshold=0.03")
    both, lost, alone = _matched(first, second, figure)
    if not both and not lost:
        raise ConfigError(f"{first.name} and {second.name} have no cell in common; {'; '.join(alone)}")
    found = Comparison(first, second, threshold, figure, lost=lost, alone=alone, warnings=_warnings(first, second, both))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(both))
    for one, other in both:
        ratio = ratio_of(values(one, figure), values(other, figure), confidence)
        worse = ratio.verdict is Verdict.slower and ratio.ratio < 1 - threshold
        found.pairs.append(Pair(other.label, one, other, ratio, worse))
    return found


def _matched(first: Results, second: Results, figure: str) -> tuple[list[tuple[Cell, Cell]], list[Lost], list[str]]:
    """Cells by their settings; what is common to all cells of a bench counts too, for another may vary it."""
    apart = _varying_in_both(first, second)
    known = {_key(cell, apart): cell for cell in first.cells if values(cell, figure)}
    both, lost, alone = [], [], []
    for cell in second.cells:
        # What was refused early is not known in every setting.
        keys = [key for key in known if _alike(key, _key(cell, apart))]
        for other in [known.pop(key) for key in keys]:
            if values(cell, figure) and (_ends(cell) or not _ends(other)):
                both.append((other, cell))
            else:
                lost.append(Lost(other.label, _why(cell, figure)))
        if not keys and values(cell, figure):
            alone.append(f"only in the second: {cell.label}")
    return both, lost, alone + [f"only in the first: {cell.label}" for cell in known.values()]


def _ends(cell: Cell) -> bool:
    """Whether nothing kept a cell from its last repeat."""
    return cell.state in (State.measured, State.pending)


def _why(cell: Cell, figure: str) -> str:
    """Why there is no figure of a cell."""
    if not _ends(cell):
        return f"{cell.state.value}: {cell.reason}"
    return f"no {figure.replace('_', ' ')} of it" if cell.repeats else "not measured yet"


def _varying_in_both(first: Results, second: Results) -> list[str]:
    """The basic settings, and what varies within either; what all of one share, and all of the other share otherwise, is told instead."""
    found = list(BASIC)
    for results in (first, second):
        for key in dict.fromkeys(key for cell in results.cells for key in cell.settings):
            if key not in found and len({cell.settings.get(key) for cell in results.cells}) > 1:
                found.append(key)
    return found


def _key(cell: Cell, keys: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(cell.settings.get(key) for key in keys)


def _alike(one: Sequence[str | None], other: Sequence[str | None]) -> bool:
    return all(mine == theirs or UNKNOWN in (mine, theirs) for mine, theirs in zip(one, other, strict=True))


def _warnings(first: Results, second: Results, both: Sequence[tuple[Cell, Cell]]) -> list[str]:
    found = differences(first.conditions, second.conditions)
    plans = (("steps", first.plan.steps, second.plan.steps), ("warmup", first.plan.warmup, second.plan.warmup))
    found += [f"{key}: {one}, {other}" for key, one, other in plans if one != other]
    if first.plan.scaling is not second.plan.scaling:
        found.append(f"scaling: {first.plan.scaling.value}, {second.plan.scaling.value}")
    for one, other in both:
        for key in dict.fromkeys([*one.settings, *other.settings]):
            if one.settings.get(key) != other.settings.get(key):
                found.append(f"{key}: {one.settings.get(key, 'not given')}, {other.settings.get(key, 'not given')}")
        if one.micro_batch != other.micro_batch:
            found.append(f"micro-batch of {other.label}: {one.micro_batch}, {other.micro_batch}")
    return list(dict.fromkeys(found))
