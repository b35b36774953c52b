"""Tokens a second of ours and of its peers on the same work, in turns: a loop written by hand, transformers' Trainer, Lightning Fabric.

    python benchmarks/throughput.py                                     all works, 5 rounds, about nine minutes on two free cores
    python benchmarks/throughput.py --works gpt --rounds 1 --steps 4    a look

gpt       causal, full rows: what is left is the loop and the model's own code
bert      masked, full rows, a vocabulary of BERT's size: the head is computed for masked tokens alone
ragged    the same on texts of lengths from one to all, of which about half a padded batch is padding
tags      fine-tuning on the sentences of WNUT-17, padded by transformers' collator: less than half is padding
genres    fine-tuning on the documents of EWT, likewise: more than half is

The same model, first values, batches, AdamW, clipping, schedule; fp32, dropout 0, one thread each; every loop at the micro-batch that it is
fastest at, of the whole global batch and half of it. nanoGPT's train.py, whose batches are random, takes no part here, but in gpu.sh. Ours
reads its rows within the figures, the others' are read before. CPU time stands before wall time, which other work on the machine changes
more. Prints Markdown and writes it, with every pace, to benchmarks/results/. The exit code is 1 where a goal is missed, or
where a loss of any step is further apart than 1e-3.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import contests, examples, records  # noqa: E402
from benchmarks.contests import Contest  # noqa: E402
from benchmarks.peers.loops import ON_CPU, TRAINER  # noqa: E402
from benchmarks.peers.rows import Cut, one_document_a_row, packed, with_vocabulary  # noqa: E402
from benchmarks.peers.work import Work, fine_tuning, pretraining  # noqa: E402
from trainer import compose  # noqa: E402

SAME = ("strategy=single", "schedule.warmup=0", "log_every=1", "tracking.wandb=off", "precision=fp32")
TEXT = ("data=text", f"data.path={ROOT}/trainer/**/*.py", "tokenizer.vocab_size=4096", "sequence_length=128")
BERT_VOCABULARY = 30528  # 30,522, padded as heads are


@dataclass(frozen=True)
class Kind:
    """words: of its configuration. steps: of a round. goal: how many times as fast as Trainer; None: no goal. vocabulary: of another size
    than the text's own. grid: micro-batches that every loop tries; none: the global batch, without a search."""

    words: tuple[str, ...]
    steps: int
    goal: float | None = None
    cut: Cut = Cut.full
    vocabulary: int | None = None
    read: Callable[[Path], examples.Examples] | None = None
    grid: tuple[int, ...] = ()

    def work(self, folder: Path, data: Path, *words: str) -> Work:
        """Prepared in a folder. words: further overrides."""
        source = self.read(data).write(folder / "examples") if self.read else TEXT
        config = compose(*SAME, *source, *self.words, *words)
        if self.read:
            return fine_tuning(config, packed(config))
        rows = one_document_a_row(config, folder / "rows", self.cut)
        if self.vocabulary:
            rows = with_vocabulary(rows, folder / "corpus", self.vocabulary)
        return pretraining(config, rows)


def tuning(task: str, batch: int) -> tuple[str, ...]:
    return ("model=bert_tiny", "tokenizer.vocab_size=4096", "sequence_length=256", "optim.lr=5e-4", f"task={task}",
            f"global_batch={batch}", f"micro_batch={batch}")  # fmt: skip


MASKED = ("model=bert_tiny", "task=mlm")
KINDS = {
    "gpt": Kind(("model=gpt2_tiny", "global_batch=8", "micro_batch=8"), 6, grid=(8, 4)),
    "bert": Kind((*MASKED, "global_batch=4", "micro_batch=4"), 6, 1.15, vocabulary=BERT_VOCABULARY, grid=(4, 2)),
    "ragged": Kind((*MASKED, "sequence_length=64", "global_batch=16", "micro_batch=16"), 4, 2.0, Cut.half, BERT_VOCABULARY, grid=(16, 8)),
    "tags": Kind(tuning("token_classification", 32), 5, read=examples.entities, grid=(32, 16)),
    "genres": Kind(tuning("classification", 16), 5, 2.0, read=examples.whole_documents, grid=(16, 8)),
}
WARM, LOOK = 1, 3  # steps of a round that are not timed; steps of the search


def met(contest: Contest, goal: float | None) -> bool:
    """Whether the losses are the same, all have run, and ours is as many times as fast as Trainer, of CPU time."""
    times = contest.ratio(TRAINER, "cpu")
    fast = goal is None or (times is not None and times.mean >= goal)
    return fast and not contest.failed and contest.same


def markdown(found: dict[str, Contest], rounds: int) -> str:
    parts = [
        "# Ours and its peers, side by side",
        f"Medians (smallest – largest) and geometric means of paired ratios (95 % interval by Student's t) of {rounds} rounds in turns in "
        f"one process; {contests.threads()}, fp32, dropout 0. The first step of a round is not timed. Every loop trains the same "
        "model from the same values on the same batches, with the same AdamW, clipping and schedule; the losses of every step are "
        f"compared. A search takes {LOOK} steps. Peers' rows are read before, ours within the figures. "
        "Made by `python benchmarks/throughput.py`.",
    ]
    for name, contest in found.items():
        goal, times = KINDS[name].goal, contest.ratio(TRAINER, "cpu")
        config, tokens = contest.work.config, contest.work.tokens(WARM)
        padded = contest.work.padded(WARM)
        said = f"{config.model.name}, {config.task.name}, {tokens:,.0f} real tokens a step, {padded:.0%} padding. {contest.sizes}"
        if goal and times:
            said += f" Goal: {goal} × Trainer; {times.mean:.2f}: {'met' if times.mean >= goal else '**missed**'}."
        parts += [f"## {name}", said, contests.table(contest)]
    closing = ", ".join(f"{name} {version}" for name, version in records.versions("lightning").items())
    return "\n\n".join([*parts, f"{records.hardware()}, commit {records.commit()}, {closing}"])


def contest(name: str, data: Path, rounds: int, steps: int | None, told: Callable[[str], None], *words: str) -> Contest:
    """One kind of work. words: further overrides of its configuration."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as folder:
        work = kind.work(Path(folder), data, f"steps={WARM + (steps or kind.steps)}", *words)
        grid = kind.grid or (work.config.global_batch,)
        look = LOOK if len(grid) > 1 else 0
        said = partial(_say, told, name)
        return contests.hold(work, ON_CPU, grid, Path(folder) / "runs", rounds=rounds, warm=WARM, look=look, told=said)


def _say(told: Callable[[str], None], name: str, text: str) -> None:
    told(f"{name}: {text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--works", default=",".join(KINDS), help="which")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=None, help="timed ones a round; default: by the work")
    parser.add_argument("--data", type=Path, default=examples.data_folder(), help="folder of public data sets")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: benchmarks/results")
    parser.add_argument("words", nargs="*", help="further overrides of the configuration, e.g. model.layers=2")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    told = partial(print, file=sys.stderr, flush=True)
    found: dict[str, Contest] = {}
    for name in given.works.split(","):
        found[name] = contest(name, given.data, given.rounds, given.steps, told, *given.words)
        text = markdown(found, given.rounds)
        path = records.write("throughput", text, {name: one.figures() for name, one in found.items()}, given.out)
    print(text, f"\nwritten to {path}", sep="\n")
    return 0 if all(met(one, KINDS[name].goal) for name, one in found.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
