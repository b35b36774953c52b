"""What a bench came to: results.json, written anew after every repeat, so that whatever ends the bench leaves what was measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.atomic import write_text
from trainer.bench.cells import Cell, Plan, Scaling, State
from trainer.choices import ConfigError

RESULTS = "results.json"
VERSION = 1
# By this cells are ranked and compared: real tokens, or, of what has none, rows.
RATE = "tokens_per_second"
# What can be compared instead: of all of them more is better. CPU seconds are of all threads of all ranks; others' load is not in them.
FIGURES = (RATE, "padded_per_second", "samples_per_second", "mfu", "tokens_per_joule", "tokens_per_cpu_second")


@dataclass(frozen=True)
class Spread:
    """Of the repeats: median, quartiles, smallest and largest."""

    median: float
    low: float
    high: float
    lower: float
    upper: float


def spread(values: Sequence[float]) -> Spread | None:
    """None of nothing."""
    if not values:
        return None
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return Spread(median, min(values), max(values), lower, upper)


def values(cell: Cell, key: str) -> list[float]:
    """A figure of every repeat that has it."""
    return [repeat[key] for repeat in cell.repeats if repeat.get(key) is not None]


@dataclass
class Results:
    """A bench. conditions: what it was measured on, with what."""

    name: str
    command: str
    plan: Plan
    conditions: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)

    @property
    def measured(self) -> list[Cell]:
        """The cells that have figures."""
        return [cell for cell in self.cells if cell.repeats]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to measure."""
        return all(cell.state is not State.pending and cell.state is not State.failed for cell in self.cells)

    def write(self, folder: Path) -> None:
        """results.json, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RESULTS, json.dumps(self.as_dict(), indent=1) + "\n")

    def as_dict(self) -> dict[str, Any]:
        """For results.json; each cell with the spread of its main figures, which are read from its repeats again."""
        return {
            "version": VERSION,
            "name": self.name,
            "command": self.command,
            "plan": asdict(self.plan),
            "conditions": self.conditions,
            "cells": [_plain(cell) for cell in self.cells],
        }


def _plain(cell: Cell) -> dict[str, Any]:
    plain: dict[str, Any] = {"label": cell.label, "settings": cell.settings, "words": cell.words, "state": cell.state.value}
    plain |= {"reason": cell.reason, "processes": cell.world, "micro_batch": cell.micro_batch}
    spreads = {key: spread(values(cell, key)) for key in (RATE, "samples_per_second", "mfu")}
    plain["spread"] = {key: asdict(found) for key, found in spreads.items() if found is not None}
    return plain | {"repeats": cell.repeats}


def load(path: Path) -> Results:
    """The results of a folder, or of its JSON file. Raises ConfigError where there are none of this version."""
    path = path / RESULTS if path.is_dir() else path
    try:
        tree = json.loads(path.read_text())
        if tree["version"] != VERSION:
            raise ConfigError(f"{path}: results of version {tree['version']}, this reads {VERSION}; measure anew")
        plan = tree["plan"]
        plan = Plan(**{**plan, "processes": tuple(plan["processes"]), "scaling": Scaling(plan["scaling"])})
        cells = [_cell(each) for each in tree["cells"]]
        return Results(tree["name"], tree["command"], plan, tree["conditions"], cells)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no results of a bench there; name the folder of one, such as runs/bench-gpt2_small") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not the results of a bench ({type(error).__name__}: {error})") from error


def _cell(tree: dict[str, Any]) -> Cell:
    return Cell(
        settings=tree["settings"],
        words=tree["words"],
        label=tree["label"],
        state=State(tree["state"]),
        reason=tree["reason"],
        world=tree["processes"],
        micro_batch=tree["micro_batch"],
        repeats=tree["repeats"],
    )


def gathered(ranks: list[dict[str, Any]], sequence_length: int) -> dict[str, Any]:
    """One repeat of all ranks together: the slowest rank's time, the sum of work, memory of the fullest device.

    ranks: what each has measured, as `Figures.as_dict`. Rates are of all devices together; padded: as if every row were
    full, which is how loops that pad count.
    """
    first, count = ranks[0], len(ranks)
    steps = len(first["step_seconds"])
    seconds = max(rank["seconds"] for rank in ranks)
    cpu = sum(rank["cpu_seconds"] for rank in ranks)
    flops, energy = (_sum(ranks, key) for key in ("flops", "energy_joules"))
    repeat: dict[str, Any] = {
        "seconds": seconds,
        "step_seconds": first["step_seconds"],
        "step_milliseconds": 1000 * seconds / steps,
        "clock": "device events" if first["device"] == "cuda" else "host",
        "host_seconds": max(rank["host_seconds"] for rank in ranks),
        "cpu_seconds": cpu,
        "cpu_milliseconds": 1000 * cpu / steps,
        "tokens_per_cpu_second": first["tokens"] / cpu if cpu else None,
        "tokens": first["tokens"],
        "samples": first["samples"],
        RATE: first["tokens"] / seconds,
        "padded_per_second": first["samples"] * sequence_length / seconds,
        "samples_per_second": first["samples"] / seconds,
        "mfu": flops / (seconds * count * first["peak"]) if flops is not None and first["peak"] else None,
        "flops_per_second": flops / seconds if flops is not None else None,
        "data_wait": sum(rank["waited"] for rank in ranks) / count / seconds,
        "memory_bytes": max(rank["memory_bytes"] for rank in ranks),
        "compile_seconds": max(rank["compile_seconds"] for rank in ranks),
        "compile_seconds_within": max(rank["compile_seconds_within"] for rank in ranks),
        "start_seconds": max(rank["start_seconds"] for rank in ranks),
        "energy_joules": energy,
        "energy_missing": next((rank["energy_missing"] for rank in ranks if rank["energy_missing"]), ""),
        "tokens_per_joule": first["tokens"] / energy if energy else None,
    }
    if first["syncs"] is not None:
        repeat |= {"host_syncs_per_step": sum(first["syncs"].values()) / first["syncs_steps"], "host_syncs": first["syncs"]}
    if first["communication"] is not None:
        talks = [rank["communication"] for rank in ranks]
        repeat |= {f"communication_{key}": sum(talk[key] for talk in talks) / count for key in ("in_flight", "exposed")}
    return repeat


def _sum(ranks: list[dict[str, Any]], key: str) -> float | None:
    found = [rank[key] for rank in ranks]
    return None if None in found else sum(found)
