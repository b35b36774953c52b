"""Host synchronisations of the real loop between two log lines: how many, of what kind, and whose."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.ours import build, one_process
from benchmarks.peers.rows import Data, packed
from trainer.bench.syncs import CudaSyncs, HostSyncs
from trainer.choices import find
from trainer.composition import compose
from trainer.config import Config, from_dict, to_dict
from trainer.distributed import World

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp")
# Small, but with everything in it that a step can hold: several micro-batches, rows of several documents, a global batch that does not
# divide by the ranks, clipping.
ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "data=text",
    f"data.path={ROOT}/trainer/**/*.py",
    "model.layers=2",
    "model.hidden=32",
    "model.heads=2",
    "tokenizer.vocab_size=512",
    "sequence_length=64",
    "global_batch=7",
    "micro_batch=2",
)
FAMILIES = {"gpt": ("model=gpt2_tiny",), "bert": ("model=bert_tiny", "task=mlm_nsp")}


class Located(HostSyncs):
    """Also says whose line asked for it: the innermost frame that is not torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        before = self.total
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.total > before:
            self.places[f"{func._schema.name} in {_caller()}"] += self.total - before
        return result


def _caller() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    parts = Path(frame.f_code.co_filename).parts
    return f"{'/'.join(parts[-2:])}:{frame.f_code.co_name}"


class Between:
    """Counts from the start of one step to the start of another, asked by the loop before each step."""

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last
        self.syncs = Located()
        # CUDA's own word, for what no operation of torch's shows.
        self.warned = CudaSyncs()
        self._open = contextlib.ExitStack()

    def __call__(self, step: int) -> None:
        if step == self.first:
            self._open.enter_context(self.syncs)
            if torch.cuda.is_available():
                self._open.enter_context(self.warned)
        elif step == self.last:
            self._open.close()

    def figures(self) -> dict[str, Any]:
        """Counts over all steps between."""
        steps = self.last - self.first
        return {"steps": steps, "total": self.syncs.total, "places": dict(self.syncs.places), "cuda_warnings": dict(self.warned.counts)}


def configured(family: str, *words: str) -> tuple[Config, Data]:
    """The configuration of a small run with one log line at its end, and its data."""
    config = compose(*FAMILIES[family], *SMALL, "steps=12", "log_every=12", "tracking.wandb=off", "strategy=single", *words)
    return config, packed(config)


def in_loop(world: World, strategy: str, tree: dict[str, Any], corpus: str, rows: str, folder: str) -> dict[str, Any]:
    """Run the real loop on this rank; the counts of the steps between the first and the last."""
    config = dataclasses.replace(from_dict(tree), strategy=find("strategy", strategy)())  # type: ignore[arg-type]
    assert config.steps is not None
    between = Between(2, config.steps)
    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
        training = build(config, Data(Path(corpus), Path(rows)), Path(folder), between, world)
        training.loop()
    training.stop.close()
    return between.figures()


def count(family: str, strategy: str, size: int, *words: str) -> dict[str, Any]:
    """The counts of rank 0 under a strategy; several ranks are processes over gloo on the CPU."""
    config, data = configured(family, *words)
    tree = to_dict(config)
    with tempfile.TemporaryDirectory() as folder:
        given = (strategy, tree, str(data.corpus), str(data.rows), folder)
        if strategy == "single":
            return in_loop(one_process(), *given)
        from tests.distributed import run_distributed

        return run_distributed(in_loop, size, *given)[0]
