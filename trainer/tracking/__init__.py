"""Where figures go: metrics.jsonl always, then what mirrors it: the progress line, Weights & Biases, TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.tracking.tensorboard import TensorBoard
    from trainer.tracking.weights_biases import WeightsAndBiases

# Of the start: lines of their own have said so.
_TOLD_BEFORE = ("files", "parameters", "trained_parameters")


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

        self.run_dir, self.settings = run_dir, config.tracking
        self.lines = Lines(run_dir / METRICS)
        self.progress = Progress(steps, step)
        self.wandb: WeightsAndBiases | None = None
        self.tensorboard: TensorBoard | None = None
        said: Callable[[str], None] = self.progress.message
        if getattr(config.tracking, "wandb", WandbMode.off) is not WandbMode.off:
            from trainer.tracking.weights_biases import WeightsAndBiases

            self.wandb = WeightsAndBiases(config.tracking, redacted(to_dict(config)), run_dir, config.name, said)  # type: ignore[arg-type]
        if getattr(config.tracking, "tensorboard", False):
            from trainer.tracking.tensorboard import TensorBoard

            self.tensorboard = TensorBoard(redacted(to_dict(config)), run_dir, step, said)

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
        if self.tensorboard is not None:
            self.tensorboard.log(step, figures)

    def samples(self, step: int, written: list[dict[str, str]]) -> None:
        """Texts that the model has written, {prompt, text}: one line each of samples.jsonl."""
        if not self.leads or not written:
            return
        from trainer.tracking.jsonl import SAMPLES, Lines

        lines = Lines(self.run_dir / SAMPLES)
        for sample in written:
            lines.append({"step": step, "attempt": self.attempt, "time": time.time(), **sample})
        lines.close()
        if self.wandb is not None:
            self.wandb.samples(step, written)
        if self.tensorboard is not None:
            self.tensorboard.samples(step, written)

    def message(self, text: str) -> None:
        """A line for the person, above the progress line."""
        if self.leads:
            self.progress.message(text)

    def event(self, kind: str, step: int | None = None, **fields: Any) -> None:
        """Show an event that the run directory has recorded."""
        if not self.leads:
            return
        shown = {key: value for key, value in fields.items() if value not in (None, "", [], {}) and key not in _TOLD_BEFORE}
        told = ", ".join(f"{key.replace('_', ' ')} {_told(value)}" for key, value in shown.items())
        self.progress.message(f"{kind}{f' at step {step:,}' if step is not None else ''}{f': {told}' if told else ''}")
        if self.wandb is None:
            return
        if kind == "start" and self.attempt:
            self._tell_restart(step)
        self.wandb.event("halt" if fields.get("policy") == "halt" else kind, step, told)

    def _tell_restart(self, step: int | None) -> None:
        """The agent recorded why it restarted the ranks; it mirrors nothing itself."""
        from trainer.tracking import jsonl

        events = jsonl.read(self.run_dir / jsonl.EVENTS)
        if any(event.get("kind") == "restart" and event.get("attempt") == self.attempt for event in events):
            failures = [event for event in events if event.get("kind") == "failure"]
            cause = f"rank {failures[-1].get('rank')}: {_told(failures[-1].get('reason'))}" if failures else "no rank said why"
            self.wandb.event("restart", step, cause)  # type: ignore[union-attr]

    def finish(self, summary: dict[str, Any] | None = None) -> None:
        """Write out what is pending, in bounded time. summary: the final figures, of a run that is finished."""
        if not self.leads:
            return
        self.progress.close()
        self.lines.close()
        if self.tensorboard is not None:
            self.tensorboard.finish(summary is not None)
        if self.wandb is not None:
            if summary:
                self._write_report()
            self.wandb.finish(summary or {})

    def _write_report(self) -> None:
        """Where W&B is to keep it: the page that the closing of the run writes comes too late for that."""
        from trainer.settings import Artifact

        if Artifact.report not in getattr(self.settings, "artifacts", ()):
            return
        from trainer.tracking.report import write

        try:
            write(self.run_dir)
        except Exception as error:  # the run is finished and saved, and this is no part of it
            self.progress.message(f"no report: {type(error).__name__}: {error}")


def _told(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
