"""Ours and its peers on the same work, in turns: the same model, first values, rows, batches, precision, optimizer and schedule.

A peer is run as its users run it (benchmarks/peers/). Each loop, ours too, gets the micro-batch that a short search finds fastest for it,
where several are given; which were tried stands in the table. The losses of every step of the search, or of the rounds where nothing is
searched, are compared, as speed with another result is none. nanoGPT's are not: it draws its batches at random.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.pace import Pace, Ratio, Spread, ratio, spread
from benchmarks.peers.loops import LOOPS, NANOGPT, OURS, comparable, why_not
from benchmarks.peers.work import Work
from trainer import mfu
from trainer.config import Config

# Of a contest's time, what may be over before a loop that compiles tries a second size, which is long.
SEARCHING = 0.5


def tolerance(config: Config) -> float:
    """How far apart losses of a step may be that say the same: another order of adding up, in bf16 with less than three digits."""
    return 1e-3 if config.precision.autocast is None else 3e-2


@dataclass
class Contest:
    """What came of it. chosen: micro-batch by loop. looks: of the search, by loop and micro-batch. paces: of the rounds, by loop. took:
    seconds of the latest turn, by loop. failed: why a loop is missing."""

    work: Work
    warm: int
    chosen: dict[str, int] = field(default_factory=dict)
    looks: dict[str, dict[int, Pace]] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    paces: dict[str, list[Pace]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ratio(self, other: str, clock: str) -> Ratio | None:
        """How many times as fast as another ours is, over the rounds that both have."""
        pairs = [(getattr(one, clock), getattr(two, clock)) for one, two in zip(self._of(OURS), self._of(other), strict=False)]
        return ratio([one for one, _ in pairs], [two for _, two in pairs]) if pairs else None

    def rate(self, name: str, clock: str) -> Spread:
        """Real tokens a second."""
        return spread([self.work.tokens(self.warm) / getattr(pace, clock) for pace in self._of(name)])

    def mfu(self, name: str) -> float | None:
        """By wall time; None where the device's peak is not known."""
        peak = mfu.device_peak(torch.device("cuda")) if torch.cuda.is_available() else None
        return self.rate(name, "wall").median * self.work.flops / peak if peak and self.work.flops else None

    def apart(self, other: str) -> float | None:
        """The largest difference of a step's loss from ours; None where its batches are others, or nothing is to be compared."""
        if not comparable(other):
            return None
        mine, theirs = (self.looks.get(name, {}).get(self.chosen.get(name, 0)) for name in (OURS, other))
        rounds = [(mine, theirs)] if mine and theirs else []
        rounds += zip(self._of(OURS), self._of(other), strict=False) if self.work.config.log_every == 1 else []
        found = [abs(loss - other) for one, two in rounds for loss, other in zip(one.losses, two.losses, strict=False)]
        return max(found) if found else None

    @property
    def same(self) -> bool:
        """Whether the losses of all loops that have run are ours; one that could not be compared is not taken for the same."""
        found = [self.apart(name) for name, paces in self.paces.items() if paces and comparable(name)]
        return all(apart is not None and apart <= tolerance(self.work.config) for apart in found)

    @property
    def sizes(self) -> str:
        """How micro-batches were chosen, as a sentence."""
        if self.looks:
            return "Each loop runs at the micro-batch, of those in brackets, at which a short search found it fastest."
        return f"Micro-batch {', '.join(map(str, sorted(set(self.chosen.values()))))} for every loop, without a search."

    def _of(self, name: str) -> list[Pace]:
        return self.paces.get(name, [])

    def figures(self) -> dict[str, Any]:
        """All that was measured, as JSON takes it."""
        found = {}
        for name, paces in self.paces.items():
            if paces:
                times = {clock: self.ratio(name, clock) for clock in ("cpu", "wall")}
                found[name] = {
                    "micro_batch": self.chosen[name],
                    "tried": list(self.looks.get(name, {})),
                    "tokens_per_second": self.rate(name, "wall").median,
                    "mfu": self.mfu(name),
                    "ours_is": {clock: value.figures() for clock, value in times.items() if value and name != OURS},
                    "apart": self.apart(name),
                    "rounds": [dataclasses.asdict(pace) for pace in paces],
                }
        work = {"tokens": self.work.tokens(self.warm), "padded": self.work.padded(self.warm)}
        return {**work, "loops": found, "missing": self.failed, "notes": self.notes}


def hold(
    work: Work,
    names: Sequence[str],
    grid: Sequence[int],
    folder: Path,
    *,
    rounds: int,
    warm: int,
    look: int,
    told: Callable[[str], None],
    save: Callable[[Contest], None] = lambda contest: None,
    seconds: float = float("inf"),
) -> Contest:
    """Search, then rounds. A loop that fails is left out from then on, and so is a turn that would not end within `seconds`.

    grid: micro-batches to choose from. look: steps of the search, whose losses are logged at every step; 0: none, the first is taken.
    save: called after every turn.
    """
    contest, began = Contest(work, warm), time.monotonic()
    took = contest.took

    def turn(name: str, what: str, work: Work, warm: int, share: float = 1.0) -> Pace | None:
        """share: of the time, in which it has to end; None where it would not. A first turn is taken to be as long as any."""
        begun = time.monotonic()
        if begun - began + took.get(name, max(took.values(), default=0.0)) > share * seconds:
            if share == 1.0 and not contest.paces.get(name):
                contest.failed.setdefault(name, f"no time left of {seconds:.0f} s")
            return None
        try:
            with _afresh():
                pace = LOOPS[name](work, folder / f"{len(list(folder.iterdir()))}", warm)
        except Exception as error:
            traceback.print_exc()
            contest.failed[name] = f"{type(error).__name__}: {error}"[:300]
            return None
        took[name] = time.monotonic() - begun
        told(f"{what} {name}: {1000 * pace.wall:.2f} ms wall, {1000 * pace.cpu:.2f} ms CPU a step")
        return pace

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        reason = why_not(name, work.config)
        if reason:
            contest.failed[name] = reason
            continue
        contest.paces[name] = []
        _search(contest, name, grid, look, turn)
    running = list(contest.paces)
    for number in range(rounds):
        first = number % max(1, len(running))
        for name in running[first:] + running[:first]:
            if name not in contest.failed:
                found = turn(name, f"round {number + 1}/{rounds}", work.with_(micro_batch=contest.chosen[name]), warm)
                contest.paces[name] += [found] if found else []
                save(contest)
    return contest


def _search(contest: Contest, name: str, grid: Sequence[int], look: int, turn: Callable[..., Pace | None]) -> None:
    """The micro-batch at which a loop is fastest. A peer that compiles begins with that of the same loop without, in case that there is no
    time for another."""
    clock = "wall" if torch.cuda.is_available() else "cpu"
    simple = name.split(",")[0]
    begin = contest.chosen.get(simple, grid[0])
    if not look or name == NANOGPT:
        # That one is long to start, and is held against ours at the micro-batch that ours takes.
        contest.chosen[name] = contest.chosen.get(OURS, grid[0])
        return
    best, steps, looks = None, min(look, contest.work.config.steps or look), contest.looks.setdefault(name, {})
    for micro in sorted(grid, key=lambda size: size != begin):
        tried = contest.work.with_(micro_batch=micro, steps=steps, log_every=1)
        pace = turn(name, f"search, micro-batch {micro},", tried, 1, SEARCHING if looks and name != simple else 1.0)
        if pace is None:
            continue
        looks[micro] = pace
        first, reference = next(iter(looks.items()))
        apart = max(abs(one - two) for one, two in zip(reference.losses, pace.losses, strict=True))
        if apart > tolerance(contest.work.config):
            contest.notes.append(f"{name}: not at micro-batch {micro}, as its losses are others than at {first}, by {apart:.1g}")
            continue
        if best is None or getattr(pace, clock) < best:
            best, contest.chosen[name] = getattr(pace, clock), micro
    if best is not None and name in contest.failed:
        # A size that does not fit is no failure where another does.
        contest.notes.append(f"{name}: not at every micro-batch: {contest.failed.pop(name)}")


@contextmanager
def _afresh() -> Iterator[None]:
    """For one loop: what the one before left behind is not its work, and what it sets for its process is not for the next. Ours has a
    block that cannot be compiled run as it is; a peer's compiler that fails is to fail."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    settings: Any = torch._dynamo.config
    before = settings.suppress_errors
    try:
        yield
    finally:
        settings.suppress_errors = before


def table(contest: Contest, clocks: Sequence[str] = ("cpu", "wall")) -> str:
    """A line for each loop: rates, how many times as fast ours is, losses."""
    said = {"cpu": "CPU time", "wall": "wall time"}
    head = ["loop", "micro-batch (tried)", *(f"real tokens/s of {said[clock]}" for clock in clocks)]
    head += [f"ours is, by {said[clock]}" for clock in clocks] + ["furthest loss of a step"]
    peak = bool(contest.paces.get(OURS)) and contest.mfu(OURS) is not None
    rows = []
    for name, paces in contest.paces.items():
        if not paces:
            continue
        rates = [contest.rate(name, clock) for clock in clocks]
        times = [contest.ratio(name, clock) for clock in clocks]
        apart = contest.apart(name)
        rows.append(
            [
                name,
                _tried(contest, name),
                *(f"{rate.median:,.0f} ({rate.low:,.0f} – {rate.high:,.0f})" for rate in rates),
                *("" if value is None or name == OURS else f"{value} ×" for value in times),
                "" if name == OURS else "other batches" if name == NANOGPT else "**not compared**" if apart is None else f"{apart:.1e}",
                *([f"{contest.mfu(name):.1%}"] if peak else []),
            ]
        )
    missing = "".join(f"\n\n{line}" for line in [f"{name}: not measured: {why}" for name, why in contest.failed.items()] + contest.notes)
    return records.table(head + ["MFU"] * peak, rows) + missing


def _tried(contest: Contest, name: str) -> str:
    """The micro-batch of a loop, and in brackets what it was chosen from."""
    sizes = ", ".join(map(str, sorted(contest.looks.get(name, {}), reverse=True)))
    return str(contest.chosen[name]) + (f" ({sizes})" if sizes else " (as ours)" if name == NANOGPT else "")


def threads() -> str:
    """How many compute, in words."""
    return f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)} of {len(os.sched_getaffinity(0))} cores"
