"""Learning-rate schedules: pure functions of the batch index."""

from __future__ import annotations

import math

from trainer.choices import Choice, choice, identity, require_share


class Schedule(Choice, group="schedule"):
    """The factor on every group's base rate, as a pure function of the batch index."""

    def factor(self, step: int, steps: int) -> float:
        """Factor for the batch at index `step` (from 0) of `steps`. A dropped step uses its slot like any other."""
        raise NotImplementedError


@choice
class Constant(Schedule):
    """Warm-up, then the base rate."""

    name: str = "constant"
    warmup: float = identity(0.05, help="share of the budget over which the rate rises from 0")

    def check(self) -> None:
        require_share(self, "warmup")

    def decay(self, progress: float) -> float:
        """The factor after warm-up; progress runs from 0 to 1."""
        return 1.0

    def factor(self, step: int, steps: int) -> float:
        warm = self.warmup * steps
        if step < warm:
            return min(1.0, (step + 1) / warm)
        # The floor is what would follow the last step: a last step at rate 0 would be a wasted one.
        return self.decay(min(1.0, (step - warm) / max(1.0, steps - warm)))


@choice
class Linear(Constant):
    """Warm-up, then a straight line down to min_factor."""

    name: str = "linear"
    min_factor: float = identity(0.0, help="factor at the end of the budget")

    def check(self) -> None:
        super().check()
        require_share(self, "min_factor", whole=True)

    def decay(self, progress: float) -> float:
        return 1.0 + (self.min_factor - 1.0) * progress


@choice
class Cosine(Linear):
    """Warm-up, then half a cosine down to min_factor."""

    name: str = "cosine"

    def decay(self, progress: float) -> float:
        return self.min_factor + (1.0 - self.min_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))
