"""Where figures go: metrics.jsonl always, then what mirrors it: the progress line and Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.distributed import World


class Trackers:
    """All trackers of a run. Only rank 0 writes; on the others every call does nothing. None of them raises or stalls the loop.

    steps: the budget. step: where this attempt starts.
    """

    def __init__(self, config: Config, run_dir: Path, world: World, *, steps: int, step: int = 0):
        self.world = world

    def advance(self, step: int) -> None:
        """Show that a step has been started; costs nothing, may be called at every step."""

    def log(self, step: int, figures: dict[str, Any]) -> None:
        """One line: figures of a log line, or of an evaluation (keys `eval_…`)."""

    def event(self, kind: str, step: int | None = None, **fields: Any) -> None:
        """Show an event that the run directory has recorded."""

    def finish(self, summary: dict[str, Any] | None = None) -> None:
        """Write out what is pending, in bounded time."""
