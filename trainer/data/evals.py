"""Evaluation sets beside a run's own held-out part: `evals.<name>.{source, every, and the options of that source}`.

evals.news.source=text evals.news.path='news/*.txt' evals.news.every=500
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.choices import ConfigError
from trainer.data.defining import checked_name, defined, in_full
from trainer.data.sources import Source


@dataclass(frozen=True)
class EvalSet:
    """Text that is only evaluated on. every: steps between two evaluations; None: as often as the held-out part."""

    name: str
    source: Source
    every: int | None

    @property
    def key(self) -> str:
        """Where its options stand."""
        return f"evals.{self.name}"

    def in_full(self) -> dict[str, Any]:
        """Plain options that describe it completely."""
        return in_full(self.source) | {"every": self.every}


def eval_sets(evals: Mapping[str, Any], taken: Collection[str] = ()) -> list[EvalSet]:
    """The sets that plain options describe. taken: names that figures of the run's own have already. Raises ConfigError."""
    found = []
    for name, options in evals.items():
        checked_name(name, "evals")
        if name in taken:
            raise ConfigError(f"evals.{name}: the figure eval_{name}_loss is the run's own already; name the set otherwise")
        source = defined(options, f"evals.{name}", own=("every",))
        if not isinstance(source, Source):
            raise ConfigError(
                f"evals.{name}.source: {source.name}; give each of its sources a name below evals, and it has figures of its own"
            )
        found.append(EvalSet(name, source, _steps(options.get("every"), f"evals.{name}.every")))
    return found


def _steps(value: Any, key: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
        raise ConfigError(f"{key}: {value}; allowed: a number of steps from 1, or null for that of eval_every")
    return int(value)
