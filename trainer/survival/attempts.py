"""Attempts and progress of a run, as its directory tells them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.run import RunDir


def next_attempt(run: RunDir) -> int:
    """The number of the attempt to come; attempts are counted over all launches of a run."""
    return max((int(event.get("attempt", -1)) for event in run.events()), default=-1) + 1


def newest_committed(checkpoints: Path) -> int:
    """The step of the newest complete checkpoint, -1 if there is none."""
    found = (re.fullmatch(r"step-(\d+)", path.parent.name) for path in checkpoints.glob("step-*/COMMIT"))
    return max((int(match.group(1)) for match in found if match), default=-1)
