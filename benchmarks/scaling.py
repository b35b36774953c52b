"""Weak scaling of data parallelism on a CPU: two processes over gloo, each pinned to a core of its own, against one pinned to one.

    python benchmarks/scaling.py                                    steps of 1,024 and of 4,096 tokens a process, about eight minutes
    python benchmarks/scaling.py --rows 8 --rounds 1 --steps 3      a look

Every process trains the same GPT on as many tokens a step, by the real loop with reading, clipping and log lines; the threads of a process
stay on its core. In turns: one alone; both alone, side by side, which is what the machine itself allows; both together under ddp. A step of
4,096 tokens is four micro-batches, after which gradients travel once. Prints Markdown tables and writes them to benchmarks/results/. The
exit code is 1 where, in no size of step, two together are 0.95 of twice as fast as one alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import records  # noqa: E402
from benchmarks.pace import Pace, Ratio, ratio, spread  # noqa: E402
from benchmarks.peers import ours  # noqa: E402
from benchmarks.peers.rows import Data, packed  # noqa: E402
from trainer import compose  # noqa: E402
from trainer.choices import find  # noqa: E402
from trainer.config import Config, from_dict, to_dict  # noqa: E402
from trainer.distributed import World  # noqa: E402

GOAL = 0.95
ONE, APART, TOGETHER = "one alone", "both alone, side by side", "both together, ddp"
WARM = 2
WORDS = ("model=gpt2_tiny", "data=text", f"data.path={ROOT}/trainer/**/*.py", "tokenizer.vocab_size=4096", "sequence_length=128",
         "micro_batch=8", "strategy=single", "log_every=10", "tracking.wandb=off")  # fmt: skip


def turn(world: World, tree: dict[str, Any], corpus: str, rows: str, folder: str, together: bool) -> dict[str, float]:
    """On one of the processes: the pace of a round."""
    core = sorted(os.sched_getaffinity(0))[world.rank]
    # Of the process's threads too, those that are there already: gloo's, and those that read ahead inherit it.
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})
    run = Path(folder) / ("both" if together else str(world.rank))
    pace = one_turn(from_dict(tree), world if together else ours.one_process(), Data(Path(corpus), Path(rows)), run)
    return {"wall": pace.wall, "cpu": pace.cpu}


def one_turn(config: Config, world: World, data: Data, run: Path) -> Pace:
    """Train the budget; with as many samples a rank and step on several ranks as on one."""
    if world.size > 1:
        config = dataclasses.replace(config, strategy=find("strategy", "ddp")(), global_batch=config.global_batch * world.size)  # type: ignore[arg-type]
    return ours.pace(config, data, run, WARM, world=world)


def measured(rounds: int, steps: int, *words: str) -> dict[str, list[Pace]]:
    """Paces by way of working; where two work, of the slower one."""
    from tests.distributed import run_distributed

    config = compose(*WORDS, f"steps={WARM + steps}", *words)
    data = packed(config)
    found: dict[str, list[Pace]] = {ONE: [], APART: [], TOGETHER: []}
    ways = list(found)
    for number in range(rounds):
        for way in ways[number % 3 :] + ways[: number % 3]:
            together, size = way == TOGETHER, 1 if way == ONE else 2
            with tempfile.TemporaryDirectory() as folder:
                given = (to_dict(config), str(data.corpus), str(data.rows), folder, together)
                ranks = run_distributed(turn, size, *given, timeout_seconds=600.0, group=together)
            slowest = Pace(**{clock: max(rank[clock] for rank in ranks) for clock in ("wall", "cpu")})
            found[way].append(slowest)
            told = f"{1000 * slowest.wall:.0f} ms wall, {1000 * slowest.cpu:.0f} ms CPU a step"
            print(f"round {number + 1}/{rounds} {way}: {told}", file=sys.stderr, flush=True)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", default="8,32", help="of 128 tokens, of a process and step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=None, help="of a round; default: 10 of 8 rows, fewer of more")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: benchmarks/results")
    parser.add_argument("words", nargs="*", help="further overrides of the configuration, e.g. model.layers=2")
    given = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed")
    found: dict[int, dict[str, list[Pace]]] = {}
    for rows in map(int, given.rows.split(",")):
        steps = given.steps or max(4, 80 // rows)
        found[128 * rows] = measured(given.rounds, steps, f"global_batch={rows}", *given.words)
        text = markdown(found, given.rounds)
        figures = {
            tokens: {way: [dataclasses.asdict(pace) for pace in each] for way, each in paces.items()} for tokens, paces in found.items()
        }
        path = records.write("scaling", text, figures, given.out)
    print(text, f"\nwritten to {path}", sep="\n")
    return 0 if any(of_twice(paces, TOGETHER, "wall").mean >= GOAL for paces in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
