"""The loops that are held against each other, by name, each as its users run it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.pace import Pace
from benchmarks.peers import fabric, hugging_face, nanogpt, ours, plain
from benchmarks.peers.work import Work
from trainer.config import Config

OURS, PLAIN = "Shardloom", "by hand"
TRAINER, TRAINER_COMPILED = "transformers.Trainer", "transformers.Trainer, torch_compile"
FABRIC, NANOGPT = "Lightning Fabric", "nanoGPT's train.py"
ON_CPU = (OURS, PLAIN, TRAINER, FABRIC)

Loop = Callable[[Work, Path, int], Pace]


def _ours(work: Work, folder: Path, warm: int) -> Pace:
    return ours.pace(work.config, work.data, folder, warm)


def _plain(work: Work, folder: Path, warm: int) -> Pace:
    return plain.train(work.config, work.build(), plain.loader(work.config, work.items, work.collate), warm)


def _trainer(work: Work, folder: Path, warm: int, **arguments: Any) -> Pace:
    return hugging_face.train(work.config, work.build(), work.items, work.collate, warm, **arguments)


def _fabric(work: Work, folder: Path, warm: int) -> Pace:
    return fabric.train(work.config, work.build(), plain.loader(work.config, work.items, work.collate), warm)


def _nanogpt(work: Work, folder: Path, warm: int) -> Pace:
    return nanogpt.train(work.config, work.data, folder, warm)


def compiled(loop: Loop) -> Loop:
    """A loop that compiles. Raises RuntimeError where it made no graph: it then ran as it is, and its pace is not what it says."""

    def run(work: Work, folder: Path, warm: int) -> Pace:
        from torch._dynamo.utils import counters

        counters.clear()
        pace = loop(work, folder, warm)
        if not counters["stats"]["unique_graphs"]:
            raise RuntimeError("no graph was compiled: it ran as it is without")
        return pace

    return run


LOOPS: dict[str, Loop] = {
    OURS: _ours,
    TRAINER: _trainer,
    PLAIN: _plain,
    FABRIC: _fabric,
    TRAINER_COMPILED: compiled(partial(_trainer, torch_compile=True)),
    NANOGPT: _nanogpt,
}


def comparable(name: str) -> bool:
    """Whether a loop's losses have to be ours. nanoGPT draws its batches at random."""
    return name not in (OURS, NANOGPT)


def why_not(name: str, config: Config) -> str | None:
    """Why a loop cannot run here; None: it can."""
    if name == NANOGPT:
        return nanogpt.why_not(config)
    if name == FABRIC and find_spec("lightning") is None:
        return "the package lightning is not installed"
    return None
