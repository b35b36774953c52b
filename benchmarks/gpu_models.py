"""The models of the GPU benchmark: what is trained at what size, by which loops, and the goals that the figures are held against."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import contests, records
from benchmarks.contests import Contest
from benchmarks.peers.loops import FABRIC, LOOPS, NANOGPT, OURS, PLAIN, TRAINER, TRAINER_COMPILED, why_not
from benchmarks.peers.rows import Cut, one_document_a_row, with_vocabulary
from benchmarks.peers.work import Work, pretraining
from trainer import compose
from trainer.config import Config

ROOT = Path(__file__).resolve().parents[1]
ALL = (OURS, TRAINER, TRAINER_COMPILED, PLAIN, FABRIC)
OF_GPT = (OURS, TRAINER, TRAINER_COMPILED, NANOGPT, PLAIN, FABRIC)
TWO = (OURS, TRAINER)
SAME = ("strategy=single", "schedule.warmup=0", "log_every=10", "tracking.wandb=off")
TOY = ("model.layers=1", "model.hidden=32", "model.heads=2", "data=text", f"data.path={ROOT}/trainer/data/*.py", "tokenizer.vocab_size=512",
       "sequence_length=64", "global_batch=4", "micro_batch=4", "precision=fp32", "log_every=1")  # fmt: skip
GPT = ("data=stdlib", "tokenizer.vocab_size=32768", "sequence_length=1024", "precision=bf16")
BERT = ("data=stdlib", "task=mlm_nsp", "tokenizer.vocab_size=8192", "precision=bf16")
GPT_VOCABULARY, BERT_VOCABULARY = 50304, 30528  # 50,257 and 30,522, padded as heads are
WARM = 4  # steps of a round that are not timed
# Steps that are traced: after the first ones, which compile.
TRACED = "6:8"


@dataclass(frozen=True)
class Row:
    """words: of its configuration. batch: rows a step. grid: micro-batches that every loop tries; one: no search. goal: real tokens a
    second on one H200; mfu: that share of its peak, where it is a goal too. times: how many times as fast as another loop."""

    words: tuple[str, ...]
    batch: int
    grid: tuple[int, ...]
    goal: float | None
    loops: tuple[str, ...] = TWO
    mfu: float | None = None
    times: Mapping[str, float] = field(default_factory=dict)
    cut: Cut = Cut.full
    steps: int = 12
    rounds: int = 2
    profile: bool = False


# In this order: those with all peers, then what has goals of its own.
ROWS = {
    "gpt2-124m": Row(("model=gpt2_small", *GPT), 64, (64, 32), 580e3, OF_GPT, 0.50,
                     {TRAINER: 3.0, TRAINER_COMPILED: 1.5, NANOGPT: 1.4}, rounds=3, profile=True),
    "bert-base-512": Row(("model=bert_base", *BERT, "sequence_length=512"), 128, (128, 64), 750e3, ALL,
                         times={TRAINER: 2.5, TRAINER_COMPILED: 1.5}, rounds=3, profile=True),
    "bert-base-128": Row(("model=bert_base", *BERT, "sequence_length=128"), 512, (512,), 850e3, ALL,
                         times={TRAINER: 2.5, TRAINER_COMPILED: 1.5}),
    "bert-base-512-padded": Row(("model=bert_base", *BERT, "sequence_length=512"), 128, (128,), None,
                                times={TRAINER: 5.0}, cut=Cut.half),
    "gpt2-350m": Row(("model=gpt2_medium", *GPT), 32, (32,), 215e3, mfu=0.53),
    "bert-large-512": Row(("model=bert_large", *BERT, "sequence_length=512"), 64, (64,), 250e3),
    "gpt2-774m": Row(("model=gpt2_large", *GPT), 16, (16,), 105e3, mfu=0.55, steps=8),
    "gpt2-1558m": Row(("model=gpt2_xl", *GPT), 16, (16,), 56e3, mfu=0.58, steps=6, rounds=1),
    "bert-large-128": Row(("model=bert_large", *BERT, "sequence_length=128"), 256, (256,), 275e3),
}  # fmt: skip

Save = Callable[[dict[str, Any]], None]


def measure(name: str, toy: bool, seconds: float, save: Save) -> dict[str, Any]:
    """One row of the table, as a part of gpu.py: what came of it, with how far it was kept while it runs."""
    row, until = ROWS[name], time.monotonic() + seconds
    if toy:
        # No compiler: seconds for each graph on a CPU say nothing about a GPU.
        loops = tuple(loop for loop in row.loops if loop != TRAINER_COMPILED)
        grid = tuple(4 * size // row.batch for size in row.grid[:2])
        row = dataclasses.replace(row, batch=4, grid=grid, loops=loops, steps=2, rounds=1)
    result: dict[str, Any] = {"good": False, "said": "nothing", "figures": {}}

    def keep(contest: Contest) -> None:
        nonlocal result
        result = told(name, row, contest)
        save(result)

    with tempfile.TemporaryDirectory() as folder:
        work = prepared(row, toy, Path(folder))
        look = 4 if len(row.grid) > 1 else 0
        warm = 1 if toy else WARM
        contest = contests.hold(
            work, row.loops, row.grid, Path(folder) / "runs", rounds=row.rounds, warm=warm, look=look,
            told=lambda text: print(f"{name}: {text}", flush=True), save=keep, seconds=0.9 * (until - time.monotonic()),
        )  # fmt: skip
        result = told(name, row, contest)
        if row.profile and contest.paces.get(OURS) and until - time.monotonic() > 2 * contest.took[OURS]:
            save(result)
            result |= profiled(name, contest, Path(folder) / "profile", "2:3" if toy else TRACED)
    return result


def configured(row: Row, toy: bool) -> Config:
    """The configuration of a row."""
    steps = (1 if toy else WARM) + row.steps
    sizes = (f"global_batch={row.batch}", f"micro_batch={row.grid[0]}", f"steps={steps}")
    # With one size nothing is searched, and the losses to compare are those of the rounds.
    logged = ("log_every=1",) if len(row.grid) == 1 else ()
    return compose(*SAME, *row.words, *sizes, *logged, *(TOY if toy else ()))


def prepared(row: Row, toy: bool, folder: Path) -> Work:
    """The rows of one model: of one document, or pair, each."""
    config = configured(row, toy)
    data = one_document_a_row(config, folder / "rows", row.cut)
    if not toy:
        data = with_vocabulary(data, folder / "corpus", GPT_VOCABULARY if config.task.name == "clm" else BERT_VOCABULARY)
    return pretraining(config, data)


def told(name: str, row: Row, contest: Contest) -> dict[str, Any]:
    """A part's result: a sentence, all figures, a table, and the goals beside what was measured."""
    config, tokens = contest.work.config, contest.work.tokens(contest.warm)
    about = (
        f"{tokens:,.0f} real tokens a step, rows of {config.sequence_length}, {contest.work.padded(contest.warm):.0%} padding in peers' "
        f"batches, {config.precision.name}. {contest.sizes}"
    )
    measured = {loop: paces for loop, paces in contest.paces.items() if paces}
    said = ", ".join(f"{loop} {contest.rate(loop, 'wall').median:,.0f} tokens/s" for loop in measured)
    # What is not here cannot be run; whatever is here must have run, and have computed the same.
    absent = [loop for loop in contest.failed if why_not(loop, config) is None and not contest.failed[loop].startswith("no time")]
    good = not absent and OURS in measured and TRAINER in measured and contest.same
    return {
        "good": good,
        "said": said or "nothing",
        "figures": contest.figures(),
        "goals": goals(name, row, contest),
        "table": f"## {name}\n\n{about}\n\n{contests.table(contest, ['wall'])}",
    }


def goals(name: str, row: Row, contest: Contest) -> list[dict[str, Any]]:
    """Each {what, goal, measured, ratio, met}; measured is None where there is no figure."""
    ours = contest.rate(OURS, "wall").median if contest.paces.get(OURS) else None
    found: list[tuple[str, float, float | None]] = []
    if row.goal:
        found.append((f"{name}: real tokens/s", row.goal, ours))
    if row.mfu:
        found.append((f"{name}: MFU", row.mfu, contest.mfu(OURS) if ours else None))
    for other, times in row.times.items():
        ratio = contest.ratio(other, "wall")
        found.append((f"{name}: times as fast as {other}", times, ratio.mean if ratio else None))
    return [
        {
            "what": what,
            "goal": goal,
            "measured": measured,
            "ratio": measured and measured / goal,
            "met": bool(measured and measured >= goal),
        }
        for what, goal, measured in found
    ]


def profiled(name: str, contest: Contest, folder: Path, steps: str) -> dict[str, Any]:
    """The ten most expensive operations of our loop, from a run of its own."""
    config = contest.work.config
    traced: Any = dataclasses.replace(config.profile, steps=steps)  # type: ignore[call-arg]
    last = int(steps.split(":")[1])
    work = contest.work.with_(profile=traced, steps=last, micro_batch=contest.chosen[OURS])
    LOOPS[OURS](work, folder, 1)
    facts = json.loads((folder / "profile" / "operations-rank-0.json").read_text())
    rows = [[each["name"], f"{each['calls']:g}", f"{each['milliseconds']:.3f}", f"{each['share']:.1%}"] for each in facts["operations"]]
    table = records.table(["operation", "calls a step", "ms a step, its own", "share"], rows)
    return {"operations": facts["operations"], "profile": f"## {name}: the most expensive operations of a step\n\n{table}"}
