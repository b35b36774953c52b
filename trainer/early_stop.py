"""Ending before the budget is used up: where a held-out figure has brought nothing better for some evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.choices import ConfigError, identity, nearest
from trainer.tracking.figures import is_lower_better


@dataclass
class EarlyStop:
    """When a run ends before its budget."""

    figure: str | None = identity(None, help="a held-out figure (eval_loss, eval_accuracy …) that must go on getting better; null: none")
    patience: int = identity(3, help="evaluations in a row without a better one, after which the run ends")
    least_change: float = identity(0.0, help="a figure counts as better where it is by more than this")

    def check(self) -> None:
        """Raise ConfigError for values that mean nothing."""
        if self.patience < 1:
            raise ConfigError(f"early_stop.patience: {self.patience}; allowed: 1 evaluation or more")
        if self.least_change < 0:
            raise ConfigError(f"early_stop.least_change: {self.least_change}; allowed: 0 or more")


@dataclass
class Watched:
    """What is known of the figure so far: a function of the evaluations alone, saved with every checkpoint.

    loss: the figure that every evaluation of the same set has. worse: evaluations since the best one, which was at step `step`.
    """

    rules: EarlyStop
    loss: str = "eval_loss"
    best: float | None = None
    step: int = 0
    worse: int = 0

    @property
    def spent(self) -> bool:
        """Whether patience is at an end."""
        return self.rules.figure is not None and self.worse >= self.rules.patience

    def look(self, step: int, measured: Mapping[str, Any]) -> None:
        """Take the held-out figures of the weights at a step into account, where the figure is among them.

        Raises ConfigError where its set was evaluated and has no such figure."""
        figure = self.rules.figure
        if figure is None or figure not in measured:
            if figure is not None and self.loss in measured:
                held_out = [key for key in measured if key.startswith("eval_")]
                raise ConfigError(f"early_stop.figure: {figure}; held-out figures here: {', '.join(held_out)}{nearest(figure, held_out)}")
            return
        value = float(measured[figure])
        gain = 0.0 if self.best is None else (self.best - value) if is_lower_better(figure) else (value - self.best)
        if math.isfinite(value) and (self.best is None or gain > self.rules.least_change):
            self.best, self.step, self.worse = value, step, 0
        else:
            self.worse += 1

    def load(self, told: Mapping[str, Any] | None) -> None:
        """Go on from what a checkpoint holds; None: it was written without."""
        if told is not None:
            self.best, self.step, self.worse = told["best"], told["step"], told["worse"]

    def told(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"best": self.best, "step": self.step, "worse": self.worse}

    @property
    def reason(self) -> str:
        """Why the run has ended, in words."""
        return f"{self.rules.figure} was best at step {self.step:,}, {self.worse} evaluations ago"
