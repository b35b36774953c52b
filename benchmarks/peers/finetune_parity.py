"""The same fine-tuning by our loop and by transformers' Trainer: the loss of every step, and the score of the model that comes out.

    python benchmarks/peers/finetune_parity.py                              three seeds of 120 steps each
    python benchmarks/peers/finetune_parity.py --steps 20 --seeds 1         a look

Both start from the same values and get the same examples in the same order; AdamW has the same betas, eps, decay groups, clipping and
schedule, and nothing is dropped out. Trainer's examples are padded by transformers' collators, and its model is scored by transformers and
scikit-learn alone; where texts are written, by our evaluation with its values. Prints a Markdown table and writes it with all losses to
benchmarks/results/. The exit code is 1 where a loss is further apart than 1e-4, or where the scores of the two differ by more than those of
the seeds do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import examples, records  # noqa: E402
from benchmarks.examples import Examples  # noqa: E402
from benchmarks.peers import hugging_face, labelled, ours  # noqa: E402
from benchmarks.peers.rows import packed  # noqa: E402
from trainer import compose  # noqa: E402
from trainer.trainer import Outcome  # noqa: E402

TOLERANCE = 1e-4
SAME = ("model.layers=2", "model.hidden=128", "model.heads=4", "tokenizer.vocab_size=4096", "sequence_length=128",
        "global_batch=16", "micro_batch=16", "strategy=single", "schedule.warmup=0", "log_every=1", "tracking.wandb=off",
        "optim.lr=1e-3")  # fmt: skip
TASKS: dict[str, tuple[Callable[[Path], Examples], tuple[str, ...], str]] = {
    "classification: genre of EWT's documents": (
        examples.whole_documents,
        ("model=bert_tiny", "task=classification", "sequence_length=512"),
        "accuracy",
    ),
    "token classification: EWT's parts of speech": (
        examples.parts_of_speech,
        ("model=bert_tiny", "task=token_classification"),
        "accuracy",
    ),
    "texts from texts: E2E, a decoder alone": (
        examples.meanings,
        ("model=gpt2_tiny", "task=seq2seq", "task.max_target_length=48", "tokenizer.vocab_size=512"),
        "bleu",
    ),
}


@dataclass(frozen=True)
class Pair:
    """One seed: the losses of every step and the score of the trained model, of ours and of Trainer's."""

    ours: list[float]
    theirs: list[float]
    our_score: float
    their_score: float

    @property
    def apart(self) -> float:
        return max(abs(one - two) for one, two in zip(self.ours, self.theirs, strict=True))


def compared(name: str, data: Path, steps: int, seed: int) -> Pair:
    """Both loops on one task."""
    read, words, metric = TASKS[name]
    with tempfile.TemporaryDirectory() as folder:
        config = compose(*SAME, *words, *read(data).write(Path(folder)), f"steps={steps}", f"seed={seed}")
        rows = packed(config)
        with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
            training = ours.build(config, rows, Path(folder) / "run", lambda step: None)
            outcome = training.loop()
        assert outcome is Outcome.finished, outcome
        training.stop.close()
        (held_out,) = training.held_outs
        score = held_out.figures(training.world.device)[metric]
        mine = ours.losses_in(Path(folder) / "run")
        model = labelled.first_model(config, rows)
        pace = hugging_face.train(config, model, labelled.InOurOrder(config, rows), labelled.collator(config, rows))  # type: ignore[arg-type]
        if metric == "accuracy":
            return Pair(mine, pace.losses, score, labelled.score(config, rows, model))
        with training.placement.gathered() as module:
            module.model.load_state_dict(model.state_dict())  # type: ignore[operator, union-attr]
        theirs = held_out.figures(training.world.device)[metric]
        return Pair(mine, pace.losses, score / 100, theirs / 100)


def agree(pairs: list[Pair]) -> bool:
    """Losses within the tolerance, and mean scores no further apart than the seeds' are."""
    noise = statistics.stdev([pair.our_score for pair in pairs]) if len(pairs) > 1 else 0.0
    apart = abs(statistics.mean(pair.our_score - pair.their_score for pair in pairs))
    return max(pair.apart for pair in pairs) <= TOLERANCE and apart <= noise


def markdown(found: dict[str, list[Pair]], steps: int) -> str:
    rows = []
    for name, pairs in found.items():
        sides = [pair.our_score for pair in pairs], [pair.their_score for pair in pairs]
        scores = [", ".join(f"{100 * value:.2f}" for value in side) for side in sides]
        apart = max(pair.apart for pair in pairs)
        rows.append([name, f"{pairs[0].ours[0]:.4f} → {pairs[0].ours[-1]:.4f}", f"{apart:.1e}", *scores, "yes" if agree(pairs) else "no"])
    head = ["task", "loss, seed 0", "furthest from Trainer's, any step and seed", "our scores × 100, by seed", "Trainer's", "agree"]
    return "\n\n".join(
        [
            "# The same fine-tuning by transformers' Trainer",
            f"{steps} steps of 16 examples in the same order, from the same values ({' '.join(SAME)}); the same AdamW, clipping and "
            "schedule; fp32, no dropout. Scores are of the held-out examples: accuracy, and of texts BLEU; Trainer's model is scored by "
            "transformers and scikit-learn alone, of texts by our evaluation with its values. "
            f"The two agree where no loss is further apart than {TOLERANCE:g} and the mean scores differ by no more than the "
            "deviation over seeds. Made by `python benchmarks/peers/finetune_parity.py`.",
            records.table(head, rows),
            f"{records.hardware()}, commit {records.commit()}, "
            + ", ".join(f"{name} {version}" for name, version in records.versions("scikit-learn").items()),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=examples.data_folder())
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: benchmarks/results")
    given = parser.parse_args()
    told = partial(print, file=sys.stderr, flush=True)
    found: dict[str, list[Pair]] = {name: [] for name in TASKS}
    for name, pairs in found.items():
        for seed in range(given.seeds):
            pairs.append(pair := compared(name, given.data, given.steps, seed))
            told(f"{name}, seed {seed}: losses within {pair.apart:.1e}, scores {pair.our_score:.4f} and {pair.their_score:.4f}")
    text = markdown(found, given.steps)
    figures: dict[str, Any] = {name: [vars(pair) for pair in pairs] for name, pairs in found.items()}
    print(text, f"\nwritten to {records.write('finetune-parity', text, figures, given.out)}", sep="\n")
    return 0 if all(map(agree, found.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
