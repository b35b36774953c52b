"""Learning-rate schedules: pure functions of the batch index."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

from trainer.choices import Choice, ConfigError, choice, identity, require_at_least, require_positive, require_share


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
        return self.down_to_floor(1.0 - progress)

    def down_to_floor(self, height: float) -> float:
        """A height in [0, 1] above the floor that min_factor is."""
        return self.min_factor + (1.0 - self.min_factor) * height


@choice
class Cosine(Linear):
    """Warm-up, then half a cosine down to min_factor."""

    name: str = "cosine"

    def decay(self, progress: float) -> float:
        return self.down_to_floor(half_cosine(progress))


@choice
class Polynomial(Linear):
    """Warm-up, then a power of what is left down to min_factor; LAMB and BERT use power 1."""

    name: str = "polynomial"
    power: float = identity(2.0, help="exponent of the remaining share; 1: linear")

    def check(self) -> None:
        super().check()
        require_positive(self, "power")

    def decay(self, progress: float) -> float:
        return self.down_to_floor((1.0 - progress) ** self.power)


@choice
class CosineRestarts(Linear):
    """Warm-up, then cosines that start again from the base rate (SGDR, Loshchilov & Hutter, https://arxiv.org/abs/1608.03983)."""

    name: str = "cosine_restarts"
    cycles: int = identity(4, help="number of cosines")
    growth: float = identity(1.0, help="length of a cosine as a multiple of the one before it")

    def check(self) -> None:
        super().check()
        require_at_least(self, 1, "cycles")
        require_positive(self, "growth")

    def decay(self, progress: float) -> float:
        lengths = [self.growth**cycle for cycle in range(self.cycles)]
        left = progress * sum(lengths)
        for length in lengths[:-1]:
            if left < length:
                return self.down_to_floor(half_cosine(left / length))
            left -= length
        return self.down_to_floor(half_cosine(min(1.0, left / lengths[-1])))


class Shape(str, Enum):
    """How the last part of a `wsd` schedule comes down."""

    linear = "linear"
    cosine = "cosine"
    sqrt = "sqrt"
    exponential = "exponential"


# Height above the floor at a share of the decay, from 1 to 0. sqrt: https://arxiv.org/abs/2405.18392; exponential: to a thousandth.
_SHAPES: dict[Shape, Callable[[float], float]] = {
    Shape.linear: lambda share: 1.0 - share,
    Shape.cosine: lambda share: half_cosine(share),
    Shape.sqrt: lambda share: 1.0 - math.sqrt(share),
    Shape.exponential: lambda share: (0.001**share - 0.001) / 0.999,
}


@choice
class WSD(Linear):
    """Warm-up, a stable part at the base rate, decay at the end (MiniCPM, Hu et al. 2024, https://arxiv.org/abs/2404.06395).

    Until the decay begins the curve does not depend on the budget, so that a run can be branched there or extended.
    """

    name: str = "wsd"
    decay_share: float = identity(0.2, help="share of the budget over which the rate comes down, at its end")
    shape: Shape = identity(Shape.linear, help="of the decay: linear | cosine | sqrt | exponential")

    def check(self) -> None:
        super().check()
        require_share(self, "decay_share", whole=True)
        if self.warmup + self.decay_share > 1:
            raise ConfigError(
                f"schedule.decay_share: {self.decay_share} and schedule.warmup: {self.warmup} are more than the whole budget together; "
                f"at most {1 - self.warmup:g} is left for the decay"
            )

    def decay(self, progress: float) -> float:
        # Both shares are of the whole budget, progress is of what follows warm-up.
        left = (1.0 - progress) * (1.0 - self.warmup)
        return 1.0 if left >= self.decay_share else self.down_to_floor(_SHAPES[self.shape](1.0 - left / self.decay_share))


@choice
class OneCycle(Linear):
    """Up by half a cosine from start_factor, then down by half a cosine to min_factor (Smith & Topin, https://arxiv.org/abs/1708.07120)."""

    name: str = "one_cycle"
    warmup: float = identity(0.3, help="share of the budget over which the rate rises")
    start_factor: float = identity(0.04, help="factor of the first step")
    min_factor: float = identity(4e-6, help="factor at the end of the budget")

    def check(self) -> None:
        super().check()
        require_share(self, "start_factor", whole=True)

    def decay(self, progress: float) -> float:
        return self.down_to_floor(half_cosine(progress))

    def factor(self, step: int, steps: int) -> float:
        warm = self.warmup * steps
        if step < warm:
            return self.start_factor + (1.0 - self.start_factor) * (1.0 - half_cosine(step / warm))
        return super().factor(step, steps)


def half_cosine(share: float) -> float:
    """From 1 at share 0 to 0 at share 1."""
    return 0.5 * (1.0 + math.cos(math.pi * share))
