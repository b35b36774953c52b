"""Evaluation sets beside a run's own held-out part: `evals.<name>.{source, every, and the options of that source}`.

evals.news.source=text evals.news.path='news/*.txt' evals.news.every=500
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.choices import ConfigError, whole_number
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


def eval_sets(evals: Mapping[str, Any]) -> list[EvalSet]:
    """The sets that plain options describe. Raises ConfigError."""
    found = []
    for name, options in evals.items():
        checked_name(name, "evals")
        source = defined(options, f"evals.{name}", own=("every",))
        if not isinstance(source, Source):
            raise ConfigError(
                f"evals.{name}.source: {source.name}; give each of its sources a name below evals, and it has figures of its own"
            )
        found.append(EvalSet(name, source, _steps(options.get("every"), f"evals.{name}.every")))
    return found


def refuse_shared_figures(evals: Iterable[str], sources: Mapping[str, str], terms: Iterable[str]) -> None:
    """Raise ConfigError where two figures would have one name. sources: of a mixture: name → where it stands. terms: of the objective."""
    owners = {"eval_loss": "the held-out part", **{f"eval_{term}_loss": f"the term {term} of the objective" for term in terms}}
    for name, key in [*sources.items(), *((name, f"evals.{name}") for name in evals)]:
        for figure in (f"eval_{name}_loss", *(f"eval_{name}_{term}_loss" for term in terms)):
            if figure in owners:
                raise ConfigError(f"{key}: its figure {figure} is that of {owners[figure]} already; give it another name")
        owners |= dict.fromkeys((f"eval_{name}_loss", *(f"eval_{name}_{term}_loss" for term in terms)), key)


def _steps(value: Any, key: str) -> int | None:
    if value is None:
        return None
    steps = whole_number(key, value)
    if steps < 1:
        raise ConfigError(f"{key}: {steps}; allowed: a number of steps from 1, or null for that of eval_every")
    return steps
