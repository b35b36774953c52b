"""What the framework itself costs a step: our loop, transformers' Trainer and a loop written by hand, in turns, on next to no compute.

    python benchmarks/overhead.py                           9 rounds of 1000 steps each, about two minutes
    python benchmarks/overhead.py --steps 100 --rounds 3    a look
    python benchmarks/overhead.py --syncs                   host synchronisations a step, under every strategy

All three train the same network (an embedding, narrow layers, a head) with the same optimizer, schedule and clipping on the same batches.
All get their batches ready-made from a list, so that data is in nobody's figure; ours is the real loop in this process, which writes
metrics.jsonl every 50 steps and can be stopped. A fourth line is ours as it runs: it reads and collates each batch from the memory-mapped
rows, ahead of the step.
Prints a Markdown table and writes it to benchmarks/results/. The exit code is 1 where ours costs more than 0.5 ms a step over the loop by
hand, or more than half of what Trainer adds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import PretrainedConfig  # noqa: E402

from benchmarks import counting, records  # noqa: E402
from benchmarks.pace import Pace, spread, take_turns  # noqa: E402
from benchmarks.peers import hugging_face, ours, plain  # noqa: E402
from benchmarks.peers.rows import one_document_a_row  # noqa: E402
from trainer import compose  # noqa: E402
from trainer.config import Config  # noqa: E402
from trainer.data.batches import Batches  # noqa: E402
from trainer.data.corpus import Corpus  # noqa: E402
from trainer.data.loading import Loader, Step  # noqa: E402
from trainer.data.order import Order  # noqa: E402
from trainer.models.deferred import deferred, real_copy  # noqa: E402
from trainer.tasks import Batch  # noqa: E402
from trainer.tasks.clm import CausalLM  # noqa: E402

LIMIT_MS, LIMIT_SHARE = 0.5, 0.5
WIDTH, DEPTH = 8, 8
OURS, READING, TRAINER, PLAIN = "Shardloom", "Shardloom, reading its rows", "transformers.Trainer", "by hand"
WORDS = ("data=text", f"data.path={ROOT}/trainer/**/*.py", "tokenizer.vocab_size=320", "sequence_length=16", "global_batch=4",
         "micro_batch=4", "strategy=single", "schedule.warmup=0", "log_every=50", "tracking.wandb=off", "optim.lr=1e-3")  # fmt: skip


class Network(nn.Module):
    """Next to no compute, but as many parameters as make a loop over them show: tokens → logits of the next."""

    base_model_prefix = "body"
    config = PretrainedConfig(hidden_size=WIDTH, num_attention_heads=1, num_hidden_layers=DEPTH)  # type: ignore[call-arg]

    def __init__(self, vocabulary: int):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(vocabulary, WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))
        self.head = nn.Linear(WIDTH, vocabulary)

    def losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.body(ids)), targets, reduction="sum")

    def forward(self, input_ids: Tensor, targets: Tensor, **_: Any) -> dict[str, Tensor]:
        """The mean, as Trainer takes it and as one writes it by hand."""
        return {"loss": self.losses(input_ids, targets) / len(targets)}


class Summed(nn.Module):
    """The network as our loop calls it."""

    def __init__(self, network: Network):
        super().__init__()
        self.model = network

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"clm": self.model.losses(batch.inputs["input_ids"][0], batch.inputs["clm_targets"])}


class NextToNothing(CausalLM):
    """Causal language modelling with that network."""

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        return Summed(deferred(lambda: Network(corpus.vocabulary.size)))


def contest(steps: int, rounds: int, told: Callable[[str], None]) -> dict[str, list[Pace]]:
    """All loops in turns: name → paces by round."""
    config = dataclasses.replace(compose(*WORDS, f"steps={steps}"), task=NextToNothing())
    with tempfile.TemporaryDirectory() as folder:
        data = one_document_a_row(config, Path(folder) / "rows")
        corpus, split = data.open(), data.open().split("train")
        loader = Loader(
            config.task, split, Order(config.seed, len(split.rows)), Batches(steps * 4, config.global_batch), config.global_batch
        )
        ready = list(loader.steps())
        read = [batch.inputs for step in ready for batch in step.micro_batches]
        batches = [{"input_ids": inputs["input_ids"][0], "targets": inputs["clm_targets"]} for inputs in read]
        numbers = count()

        def network() -> Network:
            return real_copy(deferred(lambda: Network(corpus.vocabulary.size)), config.seed)  # the weights that ours starts from

        def by_us(steps: list[Step] | None = None) -> Pace:
            return ours.pace(config, data, Path(folder) / f"run-{next(numbers)}", warm=50, ready=steps)

        # One item is a whole batch, ready-made: nothing is left for a collator to do.
        alone = dataclasses.replace(config, global_batch=1, micro_batch=1)

        def by_trainer() -> Pace:
            return hugging_face.train(alone, network(), batches, lambda items: items[0], warm=50)

        def by_hand() -> Pace:
            return plain.train(alone, network(), batches, warm=50)

        loops = {OURS: lambda: by_us(ready), READING: by_us, TRAINER: by_trainer, PLAIN: by_hand}
        return take_turns(loops, rounds, told)


def added(paces: dict[str, list[Pace]], name: str, clock: str) -> float:
    """Milliseconds a step over the loop by hand: the difference of the medians."""
    mine, theirs = (spread([1000 * getattr(pace, clock) for pace in paces[which]]).median for which in (name, PLAIN))
    return mine - theirs


def good(paces: dict[str, list[Pace]], clock: str) -> bool:
    mine = added(paces, OURS, clock)
    return mine <= LIMIT_MS and mine <= LIMIT_SHARE * added(paces, TRAINER, clock)


def markdown(paces: dict[str, list[Pace]], steps: int, rounds: int) -> str:
    rows = []
    for name, found in paces.items():
        figures = []
        for clock in ("wall", "cpu"):
            figures.append(str(spread([1000 * getattr(pace, clock) for pace in found])))
            figures.append("" if name == PLAIN else f"{added(paces, name, clock):+.3f}")
        rows.append([name, *figures])
    verdicts = ", ".join(f"{clock}: {'yes' if good(paces, clock) else 'no'}" for clock in ("wall", "cpu"))
    return "\n\n".join(
        [
            "# The loop's own cost",
            f"Milliseconds a step on a network of next to no compute: median (smallest – largest) of {rounds} rounds of {steps} steps, in "
            f"turns in one process, {torch.get_num_threads()} thread(s). CPU time is that of all threads. Batches are ready-made but in "
            "the second line. Ours writes metrics.jsonl every 50 steps; Trainer logs as often, and neither saves nor draws a progress bar. "
            "Made by `python benchmarks/overhead.py`.",
            records.table(["loop", "wall", "over by hand", "CPU", "over by hand"], rows),
            f"At most {LIMIT_MS} ms over the loop by hand, and at most {LIMIT_SHARE:.0%} of what Trainer adds: {verdicts}.",
            f"{records.hardware()}, {', '.join(f'{name} {version}' for name, version in records.versions().items())}",
        ]
    )


def syncs_markdown(found: dict[tuple[str, str], dict[str, Any]], ranks: int) -> str:
    rows = []
    for (family, strategy), counts in found.items():
        names = "; ".join(f"{number / counts['steps']:g} × {place}" for place, number in counts["places"].items())
        warned = "; ".join(f"{number / counts['steps']:g} × {text}" for text, number in counts["cuda_warnings"].items())
        rows.append(
            [
                family,
                strategy,
                f"{counts['total'] / counts['steps']:g}",
                names or "none",
                warned or ("none" if torch.cuda.is_available() else "no GPU"),
            ]
        )
    return "\n\n".join(
        [
            "# Host synchronisations a step, between two log lines",
            f"In the real loop, forward and backward, below Python's surface (`trainer/bench/syncs.py`); {ranks} ranks where a strategy "
            "has several. Copies from the device exist on a GPU only. Made by `python benchmarks/overhead.py --syncs`.",
            records.table(["family", "strategy", "a step", "which", "CUDA's own warnings"], rows),
            f"{records.hardware()}, {', '.join(f'{name} {version}' for name, version in records.versions().items())}",
        ]
    )


def count_syncs(families: list[str], strategies: list[str], ranks: int, out: Path | None) -> int:
    found = {(family, strategy): counting.count(family, strategy, ranks) for family in families for strategy in strategies}
    text = syncs_markdown(found, ranks)
    figures = {f"{family}, {strategy}": counts for (family, strategy), counts in found.items()}
    print(text, f"\nwritten to {records.write('host-syncs', text, figures, out)}", sep="\n")
    return int(any(counts["total"] for (_, strategy), counts in found.items() if not strategy.startswith("zero")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--syncs", action="store_true", help="count host synchronisations instead")
    parser.add_argument("--strategies", default=",".join(counting.STRATEGIES), help="with --syncs")
    parser.add_argument("--ranks", type=int, default=2, help="with --syncs: of the strategies that have several")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: benchmarks/results")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    if given.syncs:
        return count_syncs(list(counting.FAMILIES), given.strategies.split(","), given.ranks, given.out)
    paces = contest(given.steps, given.rounds, partial(print, file=sys.stderr, flush=True))
    text = markdown(paces, given.steps, given.rounds)
    figures: dict[str, Any] = {name: [{"wall": pace.wall, "cpu": pace.cpu} for pace in found] for name, found in paces.items()}
    print(text, f"\nwritten to {records.write('loop-overhead', text, figures, given.out)}", sep="\n")
    return 0 if good(paces, "wall") and good(paces, "cpu") else 1


if __name__ == "__main__":
    sys.exit(main())
