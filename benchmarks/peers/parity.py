"""Loss equality with transformers' own Trainer, and the speed of both, in turns.

    python benchmarks/peers/parity.py                            GPT and BERT, 50 steps, 5 rounds
    python benchmarks/peers/parity.py --steps 10 --rounds 1      a look

Ours, Trainer and a loop written by hand train the same model from the same weights on the same rows (one document, or pair, a row; the
same masks), in one process: AdamW with the same betas, eps, decay groups, clipping and schedule, dropout 0. Prints a Markdown table and
writes it with all losses to benchmarks/results/. The exit code is 1 where a loss of any step is further apart than 1e-3.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import records  # noqa: E402
from benchmarks.pace import Pace, spread, take_turns  # noqa: E402
from benchmarks.peers import hugging_face, ours, plain  # noqa: E402
from benchmarks.peers.rows import one_document_a_row  # noqa: E402
from trainer import compose  # noqa: E402

TOLERANCE = 1e-3
OURS, TRAINER, PLAIN = "Shardloom", "transformers.Trainer", "by hand"
FAMILIES = {
    "gpt": ("model=gpt2_tiny",),
    "bert": ("model=bert_tiny", "task=mlm_nsp"),
}
SAME = (
    "strategy=single",
    "schedule.warmup=0",
    "log_every=1",
    "tracking.wandb=off",
    "tokenizer.vocab_size=4096",
    "sequence_length=128",
    "global_batch=8",
    "micro_batch=8",
)


def contest(family: str, steps: int, rounds: int, told: Callable[[str], None], *words: str) -> dict[str, list[Pace]]:
    """All loops in turns: name → paces by round, losses with them. words: further overrides of the configuration."""
    config = compose(*FAMILIES[family], *SAME, f"steps={steps}", *words)
    with tempfile.TemporaryDirectory() as folder:
        data = one_document_a_row(config, Path(folder) / "rows")
        numbers = count()
        loops: dict[str, Callable[[], Pace]] = {
            OURS: lambda: ours.pace(config, data, Path(folder) / f"run-{next(numbers)}"),
            TRAINER: partial(hugging_face.pace, config, data),
            PLAIN: partial(plain.pace, config, data),
        }
        return take_turns(loops, rounds, lambda text: told(f"{family}: {text}"))


def furthest(paces: dict[str, list[Pace]], other: str) -> float:
    """The largest difference from our loss, over every step of every round."""
    rounds = zip(paces[OURS], paces[other], strict=True)
    return max(abs(mine - theirs) for one, two in rounds for mine, theirs in zip(one.losses, two.losses, strict=True))


def markdown(results: dict[str, dict[str, list[Pace]]], steps: int, rounds: int) -> str:
    rows = []
    for family, paces in results.items():
        for name, found in paces.items():
            rate = spread([1 / pace.wall for pace in found])
            apart = "" if name == OURS else f"{furthest(paces, name):.1e}"
            first, last = found[0].losses[0], found[0].losses[-1]
            cpu = spread([1000 * pace.cpu for pace in found])
            rows.append(
                [
                    family,
                    name,
                    f"{first:.4f} → {last:.4f}",
                    apart,
                    f"{rate.median:.2f}",
                    f"{rate.low:.2f} – {rate.high:.2f}",
                    f"{cpu.median:.0f}",
                ]
            )
    head = ["family", "loop", "loss", "furthest from ours, any step", "steps/s, median", "smallest – largest", "CPU ms a step, median"]
    return "\n\n".join(
        [
            "# Loss equality with transformers' Trainer",
            f"The same rows (one document or pair a row), masks, first weights, seed, AdamW, clipping and schedule; fp32, dropout 0; "
            f"{steps} steps, {rounds} rounds in turns in one process. Tolerance of the loss at every step: {TOLERANCE:g}. Steps/s leave "
            "out the first step. Trainer and the loop by hand compute on padded rows with transformers' own attention, loss and full head. "
            "Made by `python benchmarks/peers/parity.py`.",
            records.table(head, rows),
            f"{records.hardware()}, {', '.join(f'{name} {version}' for name, version in records.versions().items())}",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--families", default="gpt,bert")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: benchmarks/results")
    parser.add_argument("words", nargs="*", help="further overrides of the configuration, e.g. model.layers=2")
    given = parser.parse_args()
    told = partial(print, file=sys.stderr, flush=True)
    results = {family: contest(family, given.steps, given.rounds, told, *given.words) for family in given.families.split(",")}
    text = markdown(results, given.steps, given.rounds)
    figures: dict[str, Any] = {
        family: {name: [vars(pace) for pace in found] for name, found in paces.items()} for family, paces in results.items()
    }
    print(text, f"\nwritten to {records.write('peers-parity', text, figures, given.out)}", sep="\n")
    apart = max(furthest(paces, TRAINER) for paces in results.values())
    return 0 if apart <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
