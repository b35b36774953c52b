"""Where figures go: metrics.jsonl always, then what mirrors it: the progress line and Weights & Biases."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.tracking.weights_biases import WeightsAndBiases


class Trackers:
    """All trackers of a run. Only rank 0 writes; on the others every call does nothing.

    Nothing here stalls the loop, and only metrics.jsonl may raise (OSError): a run without its record is not to go on unnoticed.
    steps: the budget. step: where this attempt starts.
    """

    def __init__(self, config: Config, run_dir: Path, world: World, *, steps: int, step: int = 0):
        self.leads, self.attempt = world.leads, world.attempt
        if not self.leads:
            return
        from trainer.config import redacted, to_dict
        from trainer.settings import WandbMode
        from trainer.tracking.jsonl import METRICS, Lines
        from trainer.tracking.progress import Progress

        self.lines = Lines(run_dir / METRICS)
        self.progress = Progress(steps, step)
        self.wandb: WeightsAndBiases | None = None
        if getattr(config.tracking, "wandb", WandbMode.off) is not WandbMode.off:
            from trainer.tracking.weights_biases import WeightsAndBiases

            said: Callable[[str], None] = self.progress.message
            self.wandb = WeightsAndBiases(config.tracking, redacted(to_dict(config)), run_dir, config.name, said)  # type: ignore[arg-type]

    def advance(self, step: int) -> None:
        """A step has been taken; costs next to nothing, for every step."""
        if self.leads:
            self.progress.advance(step)

    def log(self, step: int, figures: dict[str, Any]) -> None:
        """One line of metrics.jsonl: figures of a log line, or of an evaluation (keys `eval_…`)."""
        if not self.leads:
            return
        self.lines.append({"step": step, "attempt": self.attempt, "time": time.time(), **figures})
        self.progress.log(step, figures)
        if self.wandb is not None:
            self.wandb.log(step, figures)

    def message(self, text: str) -> None:
        """A line for the person, above the progress line."""
        if self.leads:
            self.progress.message(text)

    def event(self, kind: str, step: int | None = None, **fields: Any) -> None:
        """Show an event that the run directory has recorded."""
        if not self.leads:
            return
        told = ", ".join(f"{key.replace('_', ' ')} {_told(value)}" for key, value in fields.items() if value not in (None, "", [], {}))
        self.progress.message(f"{kind}{f' at step {step:,}' if step is not None else ''}{f': {told}' if told else ''}")
        if self.wandb is not None:
            self.wandb.event(kind, step)

    def finish(self, summary: dict[str, Any] | None = None) -> None:
        """Write out what is pending, in bounded time."""
        if not self.leads:
            return
        self.progress.close()
        self.lines.close()
        if self.wandb is not None:
            self.wandb.finish(summary or {})


def _told(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
