"""Real tokens a second on examples of different lengths: our fine-tuning loop and transformers' Trainer with its own collator, in turns.

    python benchmarks/ragged.py                            7 rounds of 30 steps each
    python benchmarks/ragged.py --steps 10 --rounds 2      a look

Both train the same model from the same values on the same batches of examples: AdamW with the same settings, fp32, dropout 0. Trainer pads
a batch to its longest example; ours computes on the tokens that there are. CPU time stands before wall time, which other work on the
machine changes more. Prints a Markdown table and writes it with all paces to benchmarks/results/. The exit code is 1 where ours computes
fewer than twice as many real tokens of CPU time, or where the loss of a step differs by more than 1e-4.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import examples, records  # noqa: E402
from benchmarks.examples import Examples  # noqa: E402
from benchmarks.pace import Pace, Spread, spread, take_turns  # noqa: E402
from benchmarks.peers import hugging_face, labelled, ours  # noqa: E402
from benchmarks.peers.rows import packed  # noqa: E402
from trainer import compose  # noqa: E402

OURS, TRAINER = "Shardloom", "transformers.Trainer"
GOAL, TOLERANCE = 2.0, 1e-4
WARM = 3  # steps that are not timed
SAME = ("model=bert_tiny", "tokenizer.vocab_size=4096", "sequence_length=256", "strategy=single",
        "schedule.warmup=0", "log_every=1", "tracking.wandb=off", "optim.lr=5e-4")  # fmt: skip


# What is read, the task, and examples of a batch.
SETS: dict[str, tuple[Callable[[Path], Examples], str, int]] = {
    "tagging sentences of WNUT-17, 32 at a time": (examples.entities, "task=token_classification", 32),
    "genre of documents of EWT, 16 at a time": (examples.whole_documents, "task=classification", 16),
    "tagging sentences of EWT, 32 at a time": (examples.parts_of_speech, "task=token_classification", 32),
}


@dataclass(frozen=True)
class Contest:
    """padded: share of Trainer's tokens that are padding. tokens: real ones a step. paces: by loop and round, with losses."""

    padded: float
    tokens: float
    paces: dict[str, list[Pace]]

    @property
    def apart(self) -> float:
        """The largest difference of a step's losses."""
        rounds = zip(self.paces[OURS], self.paces[TRAINER], strict=True)
        return max(abs(mine - theirs) for one, two in rounds for mine, theirs in zip(one.losses, two.losses, strict=True))

    def ratio(self, clock: str) -> Spread:
        """How many times as fast ours is, by round."""
        return spread([getattr(two, clock) / getattr(one, clock) for one, two in zip(self.paces[OURS], self.paces[TRAINER], strict=True)])

    def speed(self, name: str, clock: str) -> Spread:
        """Thousand real tokens a second."""
        return spread([self.tokens / getattr(pace, clock) / 1000 for pace in self.paces[name]])


def contest(name: str, data: Path, steps: int, rounds: int, told: Callable[[str], None]) -> Contest:
    """Both loops in turns."""
    read, task, batch = SETS[name]
    with tempfile.TemporaryDirectory() as folder:
        sizes = (f"global_batch={batch}", f"micro_batch={batch}", f"steps={steps}")
        words = (*SAME, task, *sizes, *read(data).write(Path(folder)))
        config = compose(*words)
        rows = packed(config)
        dataset, collate = labelled.InOurOrder(config, rows), labelled.collator(config, rows)
        lengths = [dataset.lengths[start : start + config.global_batch] for start in range(0, len(dataset), config.global_batch)]
        timed = lengths[WARM:]
        numbers = count()
        loops: dict[str, Callable[[], Pace]] = {
            OURS: lambda: ours.pace(config, rows, Path(folder) / f"run-{next(numbers)}", warm=WARM),
            TRAINER: lambda: hugging_face.train(config, labelled.first_model(config, rows), dataset, collate, warm=WARM),  # type: ignore[arg-type]
        }
        paces = take_turns(loops, rounds, lambda text: told(f"{name}: {text}"))
    real, padded = sum(map(sum, timed)), sum(len(batch) * max(batch) for batch in timed)
    return Contest(1 - real / padded, real / len(timed), paces)


def markdown(found: dict[str, Contest], steps: int, rounds: int) -> str:
    rows = []
    for name, one in found.items():
        for loop in (OURS, TRAINER):
            both = [name, f"{one.padded:.0%}"], [str(one.ratio("cpu")), str(one.ratio("wall")), f"{one.apart:.1e}"]
            before, after = both if loop == OURS else ([""] * len(side) for side in both)
            rows.append([*before, loop, str(one.speed(loop, "cpu")), str(one.speed(loop, "wall")), *after])
    head = ["examples", "padding in Trainer's batches", "loop", "thousand real tokens per second of CPU time", "of wall time",
            "times as fast, CPU time", "wall time", "furthest losses of a step"]  # fmt: skip
    return "\n\n".join(
        [
            "# Examples of different lengths",
            f"Median (smallest – largest) of {rounds} rounds of {steps} steps in turns in one process, {torch.get_num_threads()} thread, "
            f"fp32; the first {WARM} steps of a round are not timed. The same model ({' '.join(SAME)}), first values, batches of "
            "examples, optimizer, clipping and schedule. Trainer pads by transformers' own collators to the longest example of a batch. "
            "Ours reads its rows within the figures, Trainer's are read before. Made by `python benchmarks/ragged.py`.",
            records.table(head, rows),
            f"Goal: {GOAL} times as many real tokens, of CPU time. "
            + ", ".join(f"{name}: {'met' if one.ratio('cpu').median >= GOAL else 'missed'}" for name, one in found.items())
            + ".",
            f"{records.hardware()}, commit {records.commit()}, "
            + ", ".join(f"{name} {version}" for name, version in records.versions().items()),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=examples.data_folder())
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: benchmarks/results")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    told = partial(print, file=sys.stderr, flush=True)
    found = {name: contest(name, given.data, given.steps, given.rounds, told) for name in SETS}
    text = markdown(found, given.steps, given.rounds)
    figures: dict[str, Any] = {
        name: {"padded": one.padded, "tokens": one.tokens, "apart": one.apart}
        | {loop: [vars(pace) for pace in paces] for loop, paces in one.paces.items()}
        for name, one in found.items()
    }
    print(text, f"\nwritten to {records.write('ragged', text, figures, given.out)}", sep="\n")
    good = all(one.ratio("cpu").median >= GOAL and one.apart <= TOLERANCE for one in found.values())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
