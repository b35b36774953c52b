"""Weak scaling of data parallelism on a CPU: two processes over gloo, each pinned to a core of its own, against one pinned to one.

    python benchmarks/scaling.py                                    steps of 1,024 and of 4,096 tokens a process, about eight minutes
    python benchmarks/scaling.py --rows 8 --rounds 1 --steps 3      a look

Every process trains the same GPT on as many tokens a step, by the real loop with reading, clipping and log lines; the threads of a process
stay on its core. In turns of a second or two: one alone; both alone, side by side, which is what the machine itself allows; two others
together under ddp. A step of 4,096 tokens is four micro-batches, after which gradients travel once. Prints Markdown tables and writes them
to benchmarks/results/. The exit code is 1 where, in no size of step, two together are 0.95 of twice as fast as one alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from torch.distributed import TCPStore  # noqa: E402

from benchmarks import records  # noqa: E402
from benchmarks.pace import Pace, Ratio, Stopwatch, ratio, spread  # noqa: E402
from benchmarks.peers import ours  # noqa: E402
from benchmarks.peers.rows import Data, packed  # noqa: E402
from trainer import compose  # noqa: E402
from trainer.choices import find  # noqa: E402
from trainer.config import from_dict, to_dict  # noqa: E402
from trainer.distributed import World  # noqa: E402

GOAL = 0.95
ONE, APART, TOGETHER = WAYS = ["one alone", "both alone, side by side", "both together, ddp"]
# The processes of each, by whether they are together and by rank.
WAYS_OF = {ONE: ["False/0"], APART: ["False/0", "False/1"], TOGETHER: ["True/0", "True/1"]}
PATIENCE = timedelta(seconds=300)
WARM = 2
WORDS = ("model=gpt2_tiny", "data=text", f"data.path={ROOT}/trainer/**/*.py", "tokenizer.vocab_size=4096", "sequence_length=128",
         "micro_batch=8", "strategy=single", "log_every=10", "tracking.wandb=off")  # fmt: skip


class Left(Exception):
    """The loop is left: there are no more turns."""


class Turns:
    """What a process asks before each step: whether its turn is over, and if so, when the next one begins. Its pace goes to the store."""

    def __init__(self, store: TCPStore, name: str):
        self._store, self._name = store, name
        self._number, self._steps, self._last = 0, 0, 0
        self._watch = Stopwatch()

    def before(self, step: int) -> None:
        if step <= self._last:
            return
        if self._steps:
            self._watch.end()
            self._store.set(f"pace/{self._name}/{self._number}", json.dumps(dataclasses.asdict(self._watch.pace(self._steps))))
            self._number += 1
        self._steps = int(self._store.get(f"turn/{self._name}/{self._number}"))
        if not self._steps:
            raise Left
        self._last = step + self._steps - 1
        self._watch.begin()


def held(world: World, tree: dict[str, Any], corpus: str, rows: str, folder: str, port: int, together: bool) -> None:
    """On a process: train in turns, as the store says."""
    core = sorted(os.sched_getaffinity(0))[world.rank]
    # Of the process's threads too, those that are there already: gloo's, and those that read ahead inherit it.
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})
    config, run = from_dict(tree), Path(folder) / ("both" if together else str(world.rank))
    if together:
        config = dataclasses.replace(config, strategy=find("strategy", "ddp")(), global_batch=config.global_batch * world.size)  # type: ignore[arg-type]
    turns = Turns(TCPStore("127.0.0.1", port, is_master=False, timeout=PATIENCE), f"{together}/{world.rank}")
    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent), contextlib.suppress(Left):
        ours.build(config, Data(Path(corpus), Path(rows)), run, turns.before, world if together else ours.one_process()).loop()


def measured(rounds: int, steps: int, *words: str) -> dict[str, list[Pace]]:
    """Paces by way of working; where two work, of the slower one."""
    from tests.distributed import run_distributed

    config = compose(*WORDS, f"steps={2 * (WARM + rounds * steps) + 1}", *words)
    data = packed(config)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    numbers: Counter[str] = Counter()

    def turn(names: list[str], steps: int) -> Pace:
        for name in names:
            server.set(f"turn/{name}/{numbers[name]}", str(steps))
        paces = [json.loads(server.get(f"pace/{name}/{numbers[name]}")) for name in names] if steps else []
        numbers.update(names)
        wall, cpu = (max((float(pace[clock]) for pace in paces), default=0.0) for clock in ("wall", "cpu"))
        return Pace(wall, cpu)

    found: dict[str, list[Pace]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        given = (to_dict(config), str(data.corpus), str(data.rows), folder, server.port)
        for together in (False, True):
            pool.submit(run_distributed, held, 2, *given, together, timeout_seconds=3600.0, group=together)
        for way in WAYS[1:]:
            turn(WAYS_OF[way], WARM)
        for number in range(rounds):
            for way in WAYS[number % 3 :] + WAYS[: number % 3]:
                found[way].append(turn(WAYS_OF[way], steps))
            told = ", ".join(f"{way} {1000 * paces[-1].wall:.0f} ms" for way, paces in found.items())
            print(f"round {number + 1}/{rounds}: {told}", file=sys.stderr, flush=True)
        for way in WAYS[1:]:
            turn(WAYS_OF[way], 0)
    return found


def of_twice(paces: dict[str, list[Pace]], way: str, clock: str, one: str = ONE) -> Ratio:
    """The speed of both over twice that of one, by round: seconds a step of one over those of a step that is twice as large."""
    return ratio([getattr(pace, clock) for pace in paces[way]], [getattr(pace, clock) for pace in paces[one]])


def section(paces: dict[str, list[Pace]], tokens: int) -> str:
    """One size of step. tokens: of a process."""
    rows = []
    for way, found in paces.items():
        times = [of_twice(paces, way, clock) for clock in ("wall", "cpu")]
        walls = spread([1000 * pace.wall for pace in found])
        rows.append([way, f"{walls.median:.1f} ({walls.low:.1f} – {walls.high:.1f})", *("" if way == ONE else str(time) for time in times)])
    measured, both = of_twice(paces, TOGETHER, "wall").mean, of_twice(paces, TOGETHER, "wall", APART)
    return "\n\n".join(
        [
            f"## {tokens:,} tokens a process and step",
            records.table(["", "ms a step, wall", "of twice one alone, wall", "by CPU time of a process"], rows),
            f"Goal: {GOAL} of twice one alone; {measured:.3f}: {'met' if measured >= GOAL else '**missed**'}. "
            f"Of what both alone reach side by side: {both}.",
        ]
    )


def markdown(found: dict[int, dict[str, list[Pace]]], rounds: int) -> str:
    """found: by tokens of a process and step."""
    return "\n\n".join(
        [
            "# Two processes beside one",
            f"GPT-2's shape at 4M parameters, fp32; every process is pinned to one core. {rounds} rounds in turns: median (smallest – "
            "largest), geometric mean of paired ratios (95 % interval). Where both work, the slower one counts. CPU time leaves out what a "
            "process waits for the other. Made by `python benchmarks/scaling.py`.",
            *(section(paces, tokens) for tokens, paces in found.items()),
            f"{records.hardware()}, commit {records.commit()}, "
            + ", ".join(f"{name} {version}" for name, version in records.versions().items()),
        ]
    )


def _figures(paces: dict[str, list[Pace]]) -> dict[str, Any]:
    return {way: [dataclasses.asdict(pace) for pace in found] for way, found in paces.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", default="8,32", help="of 128 tokens, of a process and step")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=None, help="of a turn; default: 4 of 8 rows, fewer of more")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: benchmarks/results")
    parser.add_argument("words", nargs="*", help="further overrides of the configuration, e.g. model.layers=2")
    given = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed")
    found: dict[int, dict[str, list[Pace]]] = {}
    for rows in map(int, given.rows.split(",")):
        steps = given.steps or max(1, 32 // rows)
        found[128 * rows] = measured(given.rounds, steps, f"global_batch={rows}", *given.words)
        text = markdown(found, given.rounds)
        path = records.write("scaling", text, {str(tokens): _figures(paces) for tokens, paces in found.items()}, given.out)
    print(text, f"\nwritten to {path}", sep="\n")
    return 0 if any(of_twice(paces, TOGETHER, "wall").mean >= GOAL for paces in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
