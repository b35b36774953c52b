"""Our loop as it is: `trainer.trainer.Training` in this process, with its loader, meter, log lines and files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.pace import Pace, Stopwatch
from benchmarks.peers.rows import Data
from trainer.config import Config
from trainer.data.loading import Step
from trainer.distributed import World
from trainer.run import RunDir
from trainer.survival.stop import Stop
from trainer.trainer import Outcome, Training


class Watch(Stop):
    """The real stop agreement, which the loop asks before each step: so it can tell when a step starts."""

    def __init__(self, world: World, starts: Callable[[int], None]):
        super().__init__(world)
        self._starts = starts

    def should_stop(self, next_step: int) -> bool:
        self._starts(next_step)
        return super().should_stop(next_step)


def one_process() -> World:
    """A world of this process alone, on the first GPU or the CPU."""
    return World(0, 1, 0, 1, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))


def build(config: Config, data: Data, folder: Path, starts: Callable[[int], None], world: World | None = None) -> Training:
    """A run ready to loop in this process. starts(n): called before step n (from 1)."""
    world = world or one_process()
    run = RunDir(folder)
    if world.leads:
        folder.mkdir(parents=True, exist_ok=True)
        micro_batch = config.global_batch if isinstance(config.micro_batch, str) else config.micro_batch
        run.write_placement(corpus=str(data.corpus), rows=str(data.rows), micro_batch=micro_batch)
    if world.store is not None:
        torch.distributed.barrier()
    return Training(config, world, run, Watch(world, starts))


def pace(config: Config, data: Data, folder: Path, warm: int = 1, ready: Sequence[Step] | None = None, world: World | None = None) -> Pace:
    """Train the whole budget; the pace of the steps after the first `warm`, without the checkpoint at the end, which no peer writes.

    ready: all its steps, read before; else they are read ahead.
    """
    watch = Stopwatch()
    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
        training = build(config, data, folder, lambda step: watch.begin() if step == warm + 1 else None, world)
        training.saves.save = lambda *_, **__: None  # type: ignore[method-assign]
        if ready is not None:
            training.loader.steps = lambda start=0: iter(ready)  # type: ignore[method-assign]
        outcome = training.loop()
        watch.end()
    training.stop.close()
    assert outcome is Outcome.finished, outcome
    return watch.pace(training.steps - warm, losses_in(folder) if training.world.leads else [])


def losses_in(folder: Path) -> list[float]:
    """The losses that a run has logged."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]
