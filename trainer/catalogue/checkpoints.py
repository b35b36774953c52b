"""The checkpoints of a run: what each is, whether it is whole, and what it is kept for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trainer.catalogue.entries import Entry
from trainer.checkpoint.files import COMMIT
from trainer.checkpoint.opening import complaint
from trainer.checkpoint.retention import Held, held, started_from
from trainer.checkpoint.store import folders
from trainer.settings import BestMode, DefaultCheckpoint


@dataclass(frozen=True)
class Line:
    """A folder of checkpoints/. state: good (its checksums fit), whole (they were not looked at), damaged, partial (never committed).

    why: what is wrong with it. kept: what it is kept for.
    """

    step: int
    state: str
    why: str
    kept: str
    about: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        found = self.about.get("metrics")
        return found if isinstance(found, dict) else {}


def checkpoints(entry: Entry, every: Iterable[Entry], verify: bool) -> list[Line]:
    """The checkpoints of a run, oldest first. every: runs that may start from one. verify: read them whole, and sum what was read."""
    found = {each.step: each for each in held(entry.run.checkpoints, rules(entry), started_from(one.run.path for one in every))}
    lines = []
    for step, folder in folders(entry.run.checkpoints):
        if step not in found:
            lines.append(Line(step, "partial", f"no {COMMIT}: never written to the end", "", {}))
            continue
        why = complaint(folder, verify)
        state = "damaged" if why else "good" if verify else "whole"
        lines.append(Line(step, state, why, _kept(found[step]), found[step].about))
    return lines


def _kept(one: Held) -> str:
    return ", ".join(one.reasons) or "nothing: it goes with the next save"


def rules(entry: Entry) -> DefaultCheckpoint:
    """What a run was told to keep."""
    config = entry.config
    return DefaultCheckpoint(
        keep=config.get("checkpoint.keep") or 1,
        keep_every=config.get("checkpoint.keep_every"),
        best=config.get("checkpoint.best"),
        mode=BestMode(config["checkpoint.mode"]) if config.get("checkpoint.mode") else None,
    )
