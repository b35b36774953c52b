"""Ours and its peers on the same work, in turns: the same model, first values, rows, batches, precision, optimizer and schedule.

A peer is run as its users run it (benchmarks/peers/). Each loop, ours too, gets the micro-batch that a short search finds fastest for it;
the losses of every step are compared, as speed with another result is none.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.pace import Pace, Ratio, Spread, ratio, spread
from benchmarks.peers import fabric, hugging_face, nanogpt, ours, plain
from benchmarks.peers.work import Work
from trainer import mfu
from trainer.config import Config

OURS, PLAIN = "Shardloom", "by hand"
TRAINER, TRAINER_COMPILED = "transformers.Trainer", "transformers.Trainer, torch_compile"
FABRIC, NANOGPT = "Lightning Fabric", "nanoGPT's train.py"
ON_CPU = (OURS, PLAIN, TRAINER, FABRIC)


Loop = Callable[[Work, Path, int], Pace]


def _ours(work: Work, folder: Path, warm: int) -> Pace:
    return ours.pace(work.config, work.data, folder, warm)


def _plain(work: Work, folder: Path, warm: int) -> Pace:
    return plain.train(work.config, work.build(), plain.loader(work.config, work.items, work.collate), warm)


def _trainer(work: Work, folder: Path, warm: int, **arguments: Any) -> Pace:
    return hugging_face.train(work.config, work.build(), work.items, work.collate, warm, **arguments)


def _fabric(work: Work, folder: Path, warm: int) -> Pace:
    return fabric.train(work.config, work.build(), plain.loader(work.config, work.items, work.collate), warm)


def _nanogpt(work: Work, folder: Path, warm: int) -> Pace:
    return nanogpt.train(work.config, work.data, folder, warm)


LOOPS: dict[str, Loop] = {
    OURS: _ours,
    TRAINER: _trainer,
    PLAIN: _plain,
    FABRIC: _fabric,
    TRAINER_COMPILED: partial(_trainer, torch_compile=True),
    NANOGPT: _nanogpt,
}


def tolerance(config: Config) -> float:
    """How far apart losses of a step may be that say the same: another order of adding up, in bf16 with less than three digits."""
    return 1e-3 if config.precision.autocast is None else 3e-2


def why_not(name: str, config: Config) -> str | None:
    """Why a loop cannot run here; None: it can."""
    if name == NANOGPT:
        return nanogpt.why_not(config)
    if name == FABRIC and find_spec("lightning") is None:
        return "the package lightning is not installed"
    return None


@dataclass
class Contest:
    """What came of it. chosen: micro-batch by loop. paces: of the rounds, by loop. looks: of the search. failed: why a loop is missing."""

    work: Work
    warm: int
    chosen: dict[str, int] = field(default_factory=dict)
    looks: dict[str, list[Pace]] = field(default_factory=dict)
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
        if other in (OURS, NANOGPT):
            return None
        rounds = [*zip(self.looks.get(OURS, [])[:1], self.looks.get(other, [])[:1], strict=False)]
        rounds += zip(self._of(OURS), self._of(other), strict=False) if self.work.config.log_every == 1 else []
        found = [abs(mine - theirs) for one, two in rounds for mine, theirs in zip(one.losses, two.losses, strict=False)]
        return max(found) if found else None

    @property
    def furthest(self) -> float:
        """Of any step of any loop."""
        return max((apart for apart in map(self.apart, self.paces) if apart is not None), default=0.0)

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
    contest, began, longest = Contest(work, warm), time.monotonic(), dict[str, float]()

    def turn(name: str, what: str, work: Work, warm: int) -> Pace | None:
        begun = time.monotonic()
        if begun - began + longest.get(name, 0.0) > seconds:
            if not contest.paces.get(name):
                contest.failed.setdefault(name, f"no time left of {seconds:.0f} s")
            return None
        _clear()
        try:
            pace = LOOPS[name](work, folder / f"{len(list(folder.iterdir()))}", warm)
        except Exception as error:
            traceback.print_exc()
            contest.failed[name] = f"{type(error).__name__}: {error}"[:300]
            return None
        longest[name] = time.monotonic() - begun
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
    """The micro-batch at which a loop is fastest. One that needs compiling takes that of the same loop without."""
    clock = "wall" if torch.cuda.is_available() else "cpu"
    if not look or name == NANOGPT:
        # That one is long to start, and is held against ours at the micro-batch that ours takes.
        contest.chosen[name] = contest.chosen.get(OURS, grid[0])
        return
    simple = name.split(",")[0]
    if simple != name and simple in contest.chosen:
        contest.chosen[name] = contest.chosen[simple]
        return
    best, steps = None, min(look, contest.work.config.steps or look)
    for micro in grid:
        tried = contest.work.with_(micro_batch=micro, steps=steps, log_every=1)
        pace = turn(name, f"search, micro-batch {micro},", tried, 1)
        if pace is None:
            continue
        first = contest.looks.setdefault(name, [pace])[0]
        apart = max(abs(one - two) for one, two in zip(first.losses, pace.losses, strict=True))
        if apart > tolerance(contest.work.config):
            contest.notes.append(f"{name}: not at micro-batch {micro}, as its losses are others than at {grid[0]}, by {apart:.1g}")
            continue
        if best is None or getattr(pace, clock) < best:
            best, contest.chosen[name] = getattr(pace, clock), micro
    if best is not None and not contest.failed.get(name, "").startswith("no time"):
        contest.failed.pop(name, None)  # a size that does not fit is no failure where another does


def _clear() -> None:
    """What the loop before left behind is not this one's work."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(contest: Contest, clocks: Sequence[str] = ("cpu", "wall")) -> str:
    """A line for each loop: rates, how many times as fast ours is, losses."""
    said = {"cpu": "CPU time", "wall": "wall time"}
    head = ["loop", "micro-batch", *(f"real tokens/s of {said[clock]}" for clock in clocks)]
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
                str(contest.chosen[name]),
                *(f"{rate.median:,.0f} ({rate.low:,.0f} – {rate.high:,.0f})" for rate in rates),
                *("" if value is None or name == OURS else f"{value} ×" for value in times),
                "" if apart is None else f"{apart:.1e}",
                *([f"{contest.mfu(name):.1%}"] if peak else []),
            ]
        )
    missing = "".join(f"\n\n{line}" for line in [f"{name}: not measured: {why}" for name, why in contest.failed.items()] + contest.notes)
    return records.table(head + ["MFU"] * peak, rows) + missing


def threads() -> str:
    """How many compute, in words."""
    return f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)} of {len(os.sched_getaffinity(0))} cores"
