"""Save under one placement, resume under another: what tests/parity runs on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests import tiny
from trainer.checkpoint.opening import open_newest
from trainer.checkpoint.store import save
from trainer.strategies.proof import prove

STEPS, SAVED_AT = 12, 5


def begin(world: Any, strategy: str, kind: str, dropout: float = 0.0, seed: int = 0) -> Any:
    """A placement that has proven itself, as every run's has before step 1."""
    placement = tiny.place(strategy, kind, world, dropout=dropout, seed=seed)
    probe = tiny.batch(kind, tiny.rows(0))
    prove(
        placement,
        lambda scale: placement.accumulate(tiny.objective(placement.module(probe), kind, probe.targets) * scale, last=True),
        world,
    )
    return placement


def first_part(world: Any, strategy: str, kind: str, root: str | None, dropout: float = 0.0) -> dict[str, Any]:
    """Train, save on the way (where a root is given), go on to the end: the uninterrupted run."""
    placement = begin(world, strategy, kind, dropout)
    seen = tiny.train(placement, kind, range(SAVED_AT))
    if root is not None:
        save(Path(root), SAVED_AT, placement, {"position": SAVED_AT}, world)
    rest = tiny.train(placement, kind, range(SAVED_AT, STEPS))
    return {"losses": seen["losses"] + rest["losses"], "weights": tiny.weights(placement), "steps": placement.scalars()["optimizer_step"]}


def second_part(world: Any, strategy: str, kind: str, root: str, dropout: float = 0.0) -> dict[str, Any]:
    """Resume from what was saved, from other initial weights, and go on to the end."""
    placement = begin(world, strategy, kind, dropout, seed=1)
    with torch.no_grad():
        placement.module(tiny.batch(kind, tiny.rows(0)))  # a forward without a backward leaves FSDP's root gathered
    opened = open_newest(Path(root), world)
    assert opened is not None
    placement.load(opened.read)
    seen = tiny.train(placement, kind, range(opened.state["position"], STEPS))
    return {"losses": seen["losses"], "weights": tiny.weights(placement), "steps": placement.scalars()["optimizer_step"]}
