"""What fine-tuning gains on real data: tiny models from scratch, and fine-tuned whole and by LoRA from a pretraining on the same text.

    python benchmarks/finetuning.py                                    every task, three seeds or eight: about an hour of one core
    python benchmarks/finetuning.py --tasks entities --seeds 1         a look
    python benchmarks/finetuning.py --data FOLDER --work FOLDER        other data of the same layout; where runs are kept

Text of the held-out sides is in no pretraining. Runs that are finished in the work folder are not run again. Prints a Markdown table and
writes it with all figures to benchmarks/results/ after every run. The exit code is 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import examples, records  # noqa: E402
from benchmarks.examples import Examples  # noqa: E402
from benchmarks.running import trained  # noqa: E402

SCRATCH, FULL, LORA = "from scratch", "fine-tuned", "LoRA"
WAYS = (SCRATCH, FULL, LORA)
LEAST_SHARE = 0.95  # of the score of full training that LoRA is to reach
Figures = dict[str, float]


@dataclass(frozen=True)
class Base:
    """A model that is pretrained once. reads: sets whose training text it sees. general: whether it sees text beyond them. budget: of the
    pretraining alone. then: a second pretraining, on clozes that are made of the same text."""

    task: str
    reads: tuple[Callable[[Path], Examples], ...]
    general: bool
    model: tuple[str, ...]
    vocabulary: int
    budget: tuple[str, ...]
    then: tuple[str, ...] = ()

    def texts(self, data: Path) -> list[str]:
        """What it reads."""
        return [text for read in self.reads for text in read(data).texts] + (examples.plain_text(data) if self.general else [])


@dataclass(frozen=True)
class Task:
    """words: of every run of the task; rates: peak learning rate by way; best: the metric's largest value; seeds: how many are asked for
    where few labels make runs differ."""

    read: Callable[[Path], Examples]
    base: str
    metric: str
    words: tuple[str, ...]
    rates: dict[str, str]
    best: float = 1.0
    seeds: int = 3


_SMALL = ("model.layers=3", "model.hidden=128", "model.heads=4")
_ENGLISH = Base(
    "mlm",
    (examples.entities, examples.genres, examples.questions),
    True,
    # Every layer sees all: a question is to be compared with all of its text.
    ("model=modernbert_tiny", "model.global_every=1", "model.layers=4", "model.hidden=128", "model.heads=4"),
    4096,
    ("sequence_length=128", "global_batch=16", "steps=2000", "optim.lr=3e-3"),
)
BASES = {
    "english": _ENGLISH,
    "english, then clozes": replace(
        _ENGLISH, then=("task=question_answering", "sequence_length=256", "global_batch=16", "steps=3000", "optim.lr=2e-3")
    ),
    "chinese": Base(
        "mlm",
        (examples.poems,),
        False,
        ("model=modernbert_tiny", "model.window=32", *_SMALL),
        4096,
        ("sequence_length=128", "global_batch=16", "steps=1000", "optim.lr=3e-3"),
    ),
    "decoder": Base(
        "clm",
        (examples.meanings,),
        False,
        ("model=llama_tiny", "model.kv_heads=4", *_SMALL),
        2048,
        ("sequence_length=128", "global_batch=16", "steps=500", "optim.lr=3e-3"),
    ),
}
TASKS = {
    "entities": Task(
        examples.entities,
        "english",
        "f1",
        ("task=token_classification", "sequence_length=128", "global_batch=32", "epochs=5"),
        {SCRATCH: "2e-3", FULL: "5e-4", LORA: "6e-3"},
    ),
    "parts of speech": Task(
        examples.parts_of_speech,
        "english",
        "accuracy",
        ("task=token_classification", "sequence_length=128", "global_batch=16", "epochs=4"),
        {SCRATCH: "2e-3", FULL: "1e-3", LORA: "4e-3"},
    ),
    "genres": Task(
        examples.genres,
        "english",
        "accuracy",
        ("task=classification", "sequence_length=512", "global_batch=8", "epochs=10"),
        {SCRATCH: "1e-3", FULL: "1e-3", LORA: "3e-3"},
        seeds=8,
    ),
    "poems": Task(
        examples.poems,
        "chinese",
        "accuracy",
        ("task=classification", "sequence_length=128", "global_batch=8", "epochs=15"),
        {SCRATCH: "1e-3", FULL: "1e-3", LORA: "4e-3"},
        seeds=8,
    ),
    "questions": Task(
        examples.questions,
        "english, then clozes",
        "f1",
        ("task=question_answering", "sequence_length=320", "global_batch=8", "epochs=3"),
        {SCRATCH: "1e-3", FULL: "1e-3", LORA: "3e-3"},
        best=100.0,
    ),
    "sentences from meanings": Task(
        examples.meanings,
        "decoder",
        "bleu",
        ("task=seq2seq", "task.max_target_length=64", "sequence_length=192", "global_batch=16", "epochs=10"),
        {SCRATCH: "3e-3", FULL: "1e-3", LORA: "4e-3"},
        best=100.0,
    ),
}
EVERY_RUN = ("schedule=linear", "schedule.warmup=0.1", "optim.weight_decay=0.01")
ADAPTER = ("adapter=lora", "adapter.rank=16", "adapter.alpha=32", "adapter.targets=all")


def named(work: Path, name: str, words: tuple[str, ...]) -> Path:
    """The folder of a run: another one for other words."""
    return work / f"{name.replace(' ', '-')}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:8]}"


def pretrained(name: str, data: Path, work: Path) -> Path:
    """The folder of a pretrained model."""
    base = BASES[name]
    texts = base.texts(data)
    path = work / f"{'-'.join(read.__name__ for read in base.reads)}.txt"
    path.write_text("\n\n".join(texts), encoding="utf-8")
    words = (*base.model, f"task={base.task}", f"tokenizer.vocab_size={base.vocabulary}", *base.budget,
             "data=text", "data.document=blank_line", f"data.path={path}", "data.held_out=0.02")  # fmt: skip
    folder = named(work, base.task, words)
    trained(folder, *words)
    if base.then:
        start, clozes = folder / "model", examples.clozes(texts)
        # What it learns is measured on clozes too, the last ones.
        made = Examples(clozes[:-100], clozes[-100:], [], form="squad").write(work / "clozes")
        words = (*starting(start), *base.then, *made, *EVERY_RUN)
        folder = named(work, "clozes", (*words, folder.name))
        trained(folder, *words)
    return folder / "model"


def starting(pretrained: Path, anew: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Words of a run that goes on from a model. anew: of one that starts from scratch, with the same tokenizer."""
    return *(anew or ("model=pretrained", f"model.path={pretrained}")), "tokenizer=pretrained", f"tokenizer.path={pretrained}"


def run(name: str, way: str, seed: int, data: Path, work: Path) -> Figures:
    """One run of a task: its figures."""
    task = TASKS[name]
    start = pretrained(task.base, data, work)
    found = task.read(data).write(work / name.replace(" ", "-"))
    words = (*starting(start, BASES[task.base].model if way == SCRATCH else ()), *task.words, *found, *EVERY_RUN,
             *(ADAPTER if way == LORA else ()), f"optim.lr={task.rates[way]}", f"seed={seed}")  # fmt: skip
    summary = trained(named(work, f"{name} {way} {seed}", words), *words)
    metrics = {key: value / task.best for key, value in summary.items() if key.removeprefix("baseline_") == task.metric}
    return {**metrics, "eval_loss": summary["eval_loss"], "cpu_seconds": summary["cpu_seconds"]}


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with the half-width of its 95 % interval, by Student's t; infinite for one seed."""

    mean: float
    half: float

    @staticmethod
    def of(values: list[float]) -> Interval:
        from scipy import stats

        half = math.inf
        if len(values) > 1:
            half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        return Interval(statistics.mean(values), half)

    @property
    def low(self) -> float:
        return self.mean - self.half

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.half:.1f}" if math.isfinite(self.half) else "")


def judged(name: str, cells: dict[str, dict[int, Figures]], guesses: Figures) -> dict[str, Any]:
    """A line of the table. cells: figures by way and seed. guesses: baselines beside that of the run itself."""
    metric = TASKS[name].metric
    baselines = guesses or {"guess of the run": cells[SCRATCH][0][f"baseline_{metric}"]}
    scores = {way: [figures[metric] for figures in cells[way].values()] for way in WAYS}
    gains_by_seed = [one - two for one, two in zip(scores[FULL], scores[SCRATCH], strict=True)]
    gains = Interval.of(gains_by_seed)
    share = statistics.mean(scores[LORA]) / statistics.mean(scores[FULL])
    best = max(baselines.values())
    return {
        "metric": metric,
        "runs": len(gains_by_seed),
        "baselines": baselines,
        **{way: vars(Interval.of(values)) | {"shown": str(Interval.of(values)), "seeds": values} for way, values in scores.items()},
        "gain": vars(gains) | {"shown": str(gains)},
        "share": share,
        "goals": {
            "over scratch": gains.low > 0,
            "LoRA": share >= LEAST_SHARE,
            "over baseline": Interval.of(scores[FULL]).low > best and Interval.of(scores[LORA]).low > best,
        },
        "cpu_seconds": statistics.mean(figures["cpu_seconds"] for way in WAYS for figures in cells[way].values()),
    }


def markdown(lines: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, line in lines.items():
        guesses = ", ".join(f"{guess} {100 * value:.1f}" for guess, value in line["baselines"].items())
        missed = [goal for goal, met in line["goals"].items() if not met]
        rows.append([name, line["metric"], str(line["runs"]), guesses, *(line[way]["shown"] for way in WAYS), line["gain"]["shown"],
                     f"{100 * line['share']:.1f} %", "all" if not missed else f"missed: {', '.join(missed)}"])  # fmt: skip
    head = ["task", "metric", "seeds", "baselines", *WAYS, "gain over scratch", "LoRA ÷ full", "goals met"]
    bases = "; ".join(f"{name}: {' '.join((*base.model, *base.budget, *base.then))}" for name, base in BASES.items())
    about = [f"{name} ({' '.join(task.words)}; rates {', '.join(f'{way} {rate}' for way, rate in task.rates.items())})"
             for name, task in TASKS.items() if name in lines]  # fmt: skip
    return "\n\n".join(
        [
            "# Fine-tuning on real data",
            "Held-out scores × 100: mean over seeds ± half of the 95 % interval of the mean (Student's t; the gain is by seed). "
            "Seeds change the order of the examples and the first values of what is new; every task starts from one pretraining, whose "
            "text is that of the training sides: of the set, or for English of three sets and WikiText-2. Goals: the interval of the gain "
            "lies above 0; LoRA reaches 95 % of full fine-tuning; the intervals of both lie above the best baseline. Made by "
            "`python benchmarks/finetuning.py`.",
            records.table(head, rows),
            f"Pretrainings: {bases}. Tasks: {'; '.join(about)}. LoRA: {' '.join(ADAPTER)}. One thread, fp32.",
            f"{records.hardware()}, commit {records.commit()}, "
            + ", ".join(f"{name} {version}" for name, version in records.versions("peft", "seqeval", "scikit-learn").items()),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=examples.data_folder())
    parser.add_argument("--work", type=Path, default=Path("runs/finetuning"), help="folder of the runs")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=None, help="of every task; default: 3, of those with few labels 8")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: benchmarks/results")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    names = given.tasks.split(",")
    cells: dict[str, dict[str, dict[int, Figures]]] = {name: {way: {} for way in WAYS} for name in names}
    text = ""
    seeds = {name: given.seeds or TASKS[name].seeds for name in names}
    for seed in range(max(seeds.values())):
        for name in (name for name in names if seed < seeds[name]):
            for way in WAYS:
                cells[name][way][seed] = run(name, way, seed, given.data, work)
                figure = cells[name][way][seed][TASKS[name].metric]
                print(f"{name}, {way}, seed {seed}: {TASKS[name].metric} {figure:.4f}", file=sys.stderr, flush=True)
        lines = {name: judged(name, cells[name], TASKS[name].read(given.data).baselines) for name in names}
        text = markdown(lines)
        path = records.write("finetuning", text, {"tasks": lines}, given.out)
    print(text, f"\nwritten to {path}", sep="\n")
    return 0 if all(all(line["goals"].values()) for line in lines.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
