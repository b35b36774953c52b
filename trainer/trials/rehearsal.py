"""A run that is killed again and again, held against the same run left alone: no sample lost or repeated, the same weights.

Every kill is a SIGKILL of the whole job, as when a machine is lost; the next launch goes on from what lies on the disk, where asked for
under another strategy and on another number of processes. At the same placement the weights must be equal to the last bit on a CPU; at
others they may be five times as far apart as two uninterrupted runs under two of these placements are, which is measured.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from trainer.choices import ConfigError, find
from trainer.config import Config, dump
from trainer.run import RunDir
from trainer.tracking import jsonl
from trainer.trials.killing import KILLS, PLAN, Moment, Plan, plans
from trainer.trials.launching import Killed, here
from trainer.trials.outcomes import Distance, distance, final, samples, write_json
from trainer.trials.parity import TIMES, WEIGHTS

# Of the kills so many fall inside a save, between the last shard and COMMIT, and in a first step, at the least.
SHARES = {"inside a save": 0.3, "between the last shard and COMMIT": 0.1, "in a first step": 0.1}
# Checkpoints of a rehearsal: this many over a run at least.
_SAVES = 20


class Place(NamedTuple):
    """A strategy on a number of processes."""

    strategy: str
    world: int

    def __str__(self) -> str:
        return f"{self.strategy} × {self.world}"


@dataclass
class Verdict:
    """What came of it. lost, repeated: rows by step. floor: of two uninterrupted runs at two placements; None at one placement."""

    steps: int
    kills: list[dict[str, Any]]
    places: list[Place]
    lost: dict[int, list[int]]
    repeated: dict[int, list[int]]
    weights: Distance
    floor: Distance | None
    seconds: dict[str, float]
    steps_again: int
    unfinished: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Kills by where they fell."""
        moments = [kill["moment"] for kill in self.kills]
        saves = moments.count(Moment.save) + moments.count(Moment.commit)
        return dict(zip(SHARES, (saves, moments.count(Moment.commit), moments.count(Moment.first_step)), strict=True))

    @property
    def allowed(self) -> float:
        """How far the weights may be apart."""
        return max(WEIGHTS, TIMES * self.floor.whole) if self.floor else 0.0

    @property
    def problems(self) -> list[str]:
        """What is wrong, in sentences; none where nothing was lost."""
        found = list(self.unfinished)
        for word, rows in (("lost", self.lost), ("repeated", self.repeated)):
            if rows:
                step = min(rows)
                found.append(f"{sum(map(len, rows.values())):,} samples {word}, first at step {step:,}: rows {rows[step][:5]}")
        if not self.weights.whole <= self.allowed:
            told = f"the final weights are {self.weights.whole:.1e} apart, {self.allowed:.1e} allowed"
            found.append(f"{told}; most of all {self.weights.furthest} ({self.weights.at_furthest:.1e})")
        return found


def rehearse(config: Config, kills: int, places: list[Place], seed: int, say: Callable[[str], None]) -> Verdict:
    """Train alone, train killed, compare. Raises ConfigError where this cannot be rehearsed, before anything is started."""
    folder = Path(config.output_dir)
    configs = {place: _placed(config, place) for place in places}
    first = places[0]
    for name in ("killed", "floor", "alone"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / KILLS).unlink(missing_ok=True)
    seconds = {}
    say(f"alone: {first} …")
    seconds["alone"] = _launch(configs[first], folder / "alone")
    alone = RunDir(folder / "alone")
    floor = None
    if len(places) > 1:
        say(f"noise floor: {places[-1]} alone …")
        _launch(configs[places[-1]], folder / "floor")
        floor = distance(final(alone), final(RunDir(folder / "floor")))
    begun = time.monotonic()
    used = _killed(configs, folder / "killed", _plans(alone, kills, seed), seed, say)
    seconds["killed"] = time.monotonic() - begun
    killed = RunDir(folder / "killed")
    noted = jsonl.read(folder / KILLS)
    lost, repeated = balance(samples(alone), samples(killed))
    apart = distance(final(alone), final(killed))
    steps = max(samples(alone))
    verdict = Verdict(steps, noted, used, lost, repeated, apart, floor, seconds, _again(killed))
    verdict.unfinished = _unfinished(verdict, kills)
    return verdict


def _placed(config: Config, place: Place) -> Config:
    """The run at a place, with its samples noted and saved often. Raises ConfigError where it cannot run there."""
    strategy: Any = config.strategy if config.strategy.name == place.strategy else find("strategy", place.strategy)()
    off = type(config.tracking.wandb).off  # type: ignore[attr-defined]
    tracking = dataclasses.replace(config.tracking, wandb=off, ledger=True)  # type: ignore[call-arg]
    save_every = min(config.save_every, max(1, (config.steps or config.save_every * _SAVES) // _SAVES))
    placed = dataclasses.replace(config, strategy=strategy, tracking=tracking, save_every=save_every)
    launcher = here(placed, Killed)
    if launcher.processes is not None or strategy.processes is None:
        launcher = dataclasses.replace(launcher, processes=place.world)
    placed = dataclasses.replace(placed, launcher=launcher)
    if launcher.ready(placed) != place.world:
        raise ConfigError(f"worlds: strategy={place.strategy} runs on {strategy.processes} process alone, not on {place.world}")
    return placed


def _plans(alone: RunDir, kills: int, seed: int) -> list[Plan]:
    """Kills that fit the steps and the saves of this run."""
    lines = [line for line in jsonl.read(alone / jsonl.METRICS) if line.get("interval_seconds")]
    step_seconds = median(line["interval_seconds"] / line["interval_steps"] for line in lines)
    saves = [event["stall_seconds"] + event["background_seconds"] for event in alone.events("checkpoint")]
    steps = max(samples(alone))
    return plans(kills, steps, steps // len(saves), seed, step_seconds, median(saves))


def _killed(configs: dict[Place, Config], path: Path, kills: list[Plan], seed: int, say: Callable[[str], None]) -> list[Place]:
    """Launch and kill, then launch once more and leave alone. Returns where each launch was placed."""
    draw, used = random.Random(seed), []
    order = list(configs)
    for number, plan in enumerate([*kills, None]):
        # The last launch ends where the run alone did.
        place = draw.choice(order) if plan is not None else order[0]
        used.append(place)
        _launch(configs[place], path, plan)
        line = next((line for line in reversed(jsonl.read(path.parent / KILLS))), None)
        if plan is not None and line is not None and line["kill"] == plan.number:
            say(f"kill {plan.number} of {len(kills)}: {place}, step {line['step']:,}, {Moment(line['moment']).name.replace('_', ' ')}")
        elif plan is not None:
            say(f"kill {plan.number} of {len(kills)}: {place}: the run ended before it was due")
        if number and RunDir(path).summary is not None:
            break
    return used


def _launch(config: Config, path: Path, plan: Plan | None = None) -> float:
    """One launch to its end or to its kill. Returns its seconds. Raises ConfigError where it failed by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frozen = path.with_suffix(".yaml")
    frozen.write_text(dump(dataclasses.replace(config, output_dir=str(path))), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != PLAN} | ({PLAN: plan.text()} if plan else {})
    begun = time.monotonic()
    log = path.with_suffix(".log")
    with log.open("ab") as file:
        command = [sys.executable, "-m", "trainer.trials.attempt", str(frozen)]
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, check=False).returncode
    run = RunDir(path)
    while run.held:  # by a process of the job that the kernel has not yet taken away
        time.sleep(0.01)
    if code not in (0, -9):
        raise ConfigError(f"the run ended by itself with exit code {code}; {log} says why")
    return time.monotonic() - begun


def balance(alone: dict[int, list[int]], killed: dict[int, list[int]]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """By step: rows that the killed run has not consumed there and should have, and those that it should not have."""
    lost: dict[int, list[int]] = {}
    repeated: dict[int, list[int]] = {}
    for step in sorted(alone.keys() | killed.keys()):
        wanted, had = list(alone.get(step, [])), list(killed.get(step, []))
        for row in list(wanted):
            if row in had:
                wanted.remove(row)
                had.remove(row)
        if wanted:
            lost[step] = wanted
        if had:
            repeated[step] = had
    return lost, repeated


def _again(killed: RunDir) -> int:
    """Steps that were computed more than once, each time counted."""
    lines = jsonl.read(killed / "ledger" / "rank-00000.jsonl")
    return len(lines) - len({line["step"] for line in lines})


def _unfinished(verdict: Verdict, kills: int) -> list[str]:
    found = []
    if len(verdict.kills) < kills:
        found.append(f"{len(verdict.kills)} kills of {kills} happened; more steps give room for more (steps=…)")
    for what, share in SHARES.items():
        if verdict.counts[what] < int(share * kills):
            found.append(f"{verdict.counts[what]} kills fell {what}, {int(share * kills)} were due")
    return found


def text(verdict: Verdict) -> str:
    """The verdict for people."""
    counts = ", ".join(f"{count} {what}" for what, count in verdict.counts.items())
    places = ", ".join(f"{place} ({verdict.places.count(place)})" for place in dict.fromkeys(verdict.places))
    lost, repeated = (sum(map(len, rows.values())) for rows in (verdict.lost, verdict.repeated))
    equal = "equal to the last bit" if verdict.weights.equal else f"{verdict.weights.whole:.1e} apart (relative L2)"
    floor = f"; two runs left alone at two of these placements: {verdict.floor.whole:.1e}" if verdict.floor else ""
    took = " alone, ".join(f"{verdict.seconds[key]:.0f}" for key in ("alone", "killed")) + " killed"
    lines = [
        f"{len(verdict.kills)} kills over {verdict.steps:,} steps: {counts}",
        f"launches: {places}",
        f"samples: {lost:,} lost, {repeated:,} repeated",
        f"weights: {equal}{floor}",
        f"seconds: {took}; {verdict.steps_again:,} steps computed again",
        *(f"WRONG: {problem}" for problem in verdict.problems),
        "nothing was lost" if not verdict.problems else "not as it should be",
    ]
    return "\n".join(lines) + "\n"


def write(verdict: Verdict, config: Config) -> None:
    """rehearsal.txt and rehearsal.json beside the runs."""
    folder = Path(config.output_dir)
    (folder / "rehearsal.txt").write_text(text(verdict))
    facts = {"good": not verdict.problems, "problems": verdict.problems, "steps": verdict.steps, "kills": verdict.kills}
    facts |= {"counts": verdict.counts, "lost": verdict.lost, "repeated": verdict.repeated, "seconds": verdict.seconds}
    facts |= {"weights_apart": verdict.weights.whole, "floor": verdict.floor.whole if verdict.floor else None}
    facts |= {"steps_again": verdict.steps_again, "places": list(map(str, verdict.places))}
    write_json(folder / "rehearsal.json", facts)
