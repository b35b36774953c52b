"""Which steps of a launch are measured, and which are looked into afterwards; told to the ranks by the environment."""

from __future__ import annotations

from dataclasses import dataclass

# Steps after the measured ones; in the first of them host synchronisations are counted, in the others operations are traced.
LOOKED, COUNTED = 4, 2


@dataclass(frozen=True)
class Window:
    """warmup, steps: before the measured ones, and measured. looked: steps after them that are looked into, 0 or LOOKED."""

    warmup: int
    steps: int
    looked: int

    @property
    def first(self) -> int:
        """The first measured step, from 1."""
        return self.warmup + 1

    @property
    def after(self) -> int:
        """The first step after the measured ones."""
        return self.warmup + self.steps + 1
