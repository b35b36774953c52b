"""A strategy that passes its proof and then computes something else: from its third update on, at another rate."""

from __future__ import annotations

from typing import Any

from trainer.choices import choice
from trainer.strategies.single import Single


@choice
class Crooked(Single):
    """One process, a little off."""

    name: str = "crooked"

    def place(self, *arguments: Any) -> Any:
        placement = super().place(*arguments)
        finish, updates = placement.finish, iter(range(10**6))

        def off(lr_factor: float, max_norm: float | None) -> Any:
            return finish(lr_factor * (1.05 if next(updates) >= 2 else 1.0), max_norm)

        placement.finish = off  # type: ignore[method-assign]
        return placement
