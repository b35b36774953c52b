"""Runs that differ in what is drawn alone: the mean of each figure over them, and how far they lie apart."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError, find
from trainer.config import identity_of
from trainer.run import load_frozen
from trainer.tracking.figures import is_figure

if TYPE_CHECKING:
    from trainer.catalogue.entries import Entry

# What is drawn: by the seed, and which examples; the latter decides the fingerprint of the data.
DRAWS = ("seed", "data.draw", "fingerprint")


@dataclass(frozen=True)
class Alike:
    """Finished runs with one configuration but for what is drawn. settings: those in which it differs from other such runs."""

    runs: list[Entry]
    settings: dict[str, Any]

    def figures(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation (of a sample) of each held-out figure that all of them have."""
        task = find("task", str(self.runs[0].config["task.name"]))
        names = [key for key in self.runs[0].figures if key.startswith("eval_")] + list(task.figures)  # type: ignore[attr-defined]
        values = {name: [run.figures.get(name) for run in self.runs] for name in dict.fromkeys(names)}
        known = {name: [float(value) for value in each if is_figure(value)] for name, each in values.items()}  # type: ignore[arg-type]
        return {name: (statistics.fmean(each), statistics.stdev(each)) for name, each in known.items() if len(each) == len(self.runs)}


def alike(runs: Iterable[Entry]) -> list[Alike]:
    """Groups of several finished runs that differ in what is drawn alone, in the order of their first."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    settings: dict[str, dict[str, Any]] = {}
    for entry in runs:
        if entry.state != "finished":
            continue
        try:
            found = {key: value for key, value in identity_of(load_frozen(entry.run.config_path)).items() if key not in DRAWS}
        except ConfigError:  # of another version
            continue
        key = json.dumps(found, sort_keys=True, default=str)
        settings[key] = found
        groups[key].append(entry)
    several = {key: each for key, each in groups.items() if len(each) > 1}
    differing = _differing([settings[key] for key in several])
    return [Alike(each, {name: settings[key].get(name) for name in differing}) for key, each in several.items()]


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    names = sorted({name for each in settings for name in each})
    return [name for name in names if any(each.get(name) != settings[0].get(name) for each in settings)]
