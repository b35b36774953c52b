"""How a run's positions part into global batches, the first ones smaller where `batch_ramp` asks for it.

The rows of a step are a function of its first position alone: nothing is counted from the start, so a seek is free and a resume exact,
on any number of devices. A schedule counts steps, whatever their size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.data.corpus import Split


@dataclass(frozen=True)
class Batches:
    """total positions, `size` at a time; the last batch may be short.

    ramp: stages before that, (position at which one ends, rows of its batches), in order.
    """

    total: int
    size: int
    ramp: tuple[tuple[int, int], ...] = ()

    def stop(self, start: int) -> int:
        """Where the batch that begins at a position ends."""
        end, size = next(stage for stage in self._stages() if start < stage[0])
        return min(start + size, end)

    def starts(self, position: int = 0) -> Iterator[int]:
        """First positions of the batches from a position on."""
        while position < self.total:
            yield position
            position = self.stop(position)

    def left(self, position: int = 0) -> int:
        """Number of batches from a position on."""
        count = 0
        for end, size in self._stages():
            count += -(-max(0, end - position) // size)
            position = max(position, end)
        return count

    def _stages(self) -> Iterator[tuple[int, int]]:
        for end, size in self.ramp:
            yield min(end, self.total), size
        yield self.total, self.size


def batches_of(config: Config, split: Split) -> Batches:
    """The batches of a run's budget over the training rows, in closed form."""
    size, growing = config.global_batch, config.batch_ramp.sizes(config.global_batch)
    share = config.batch_ramp.share if growing else 0.0
    if config.steps is not None:
        stages = max(1, len(growing))
        # Rounded up, all stages together could have more steps than there are.
        each = min(round(share * config.steps / stages), config.steps // stages)
        total = each * sum(growing) + (config.steps - each * len(growing)) * size
    else:
        total = samples(config, split)
        # total = steps × (share × mean of the stages + (1 − share) × size)
        mean = sum(growing) / max(1, len(growing))
        each = round(share * total / (share * mean + (1.0 - share) * size) / max(1, len(growing)))
    ramp = tuple(zip(accumulate(each * rows for rows in growing), growing, strict=True)) if each else ()
    return Batches(total, size, ramp)


def samples(config: Config, split: Split) -> int:
    """The positions of a budget in epochs or tokens."""
    if config.epochs is not None:
        return max(1, round(config.epochs * len(split.rows)))
    assert config.tokens is not None
    return math.ceil(config.tokens * len(split.rows) / split.epoch_tokens)
