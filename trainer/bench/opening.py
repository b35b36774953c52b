"""From words to a bench: its folder, its cells, and what was measured of them before."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.bench.cells import Cell, Plan, State, cells_of
from trainer.bench.conditions import conditions, differences
from trainer.bench.launching import HERE, Machines
from trainer.bench.results import RESULTS, Results, load
from trainer.choices import ConfigError
from trainer.composition import compose_tree, parse, to_config
from trainer.config import UNNAMEABLE
from trainer.tracking.redaction import redacted_words
from trainer.words import split, with_budget

if TYPE_CHECKING:
    from trainer.config import Config


@dataclass
class Request:
    """A bench as it was asked for. machines: where its ranks start. tracking: a configuration whose tracking says where results go beside
    the folder."""

    machines: Machines
    name: str
    folder: Path
    cells: list[Cell]
    plan: Plan
    anew: bool
    tracking: Config


def requested(words: list[str], plan: Plan, machines: Machines = HERE) -> Request:
    """What the words ask for. Raises ConfigError for what nothing can be measured of."""
    overrides, flags = split(words)
    if flags - {"-m", "--multirun"}:
        raise ConfigError("bench measures; leave out --cfg")
    given = {override.key_or_group: override for override in parse(overrides)}
    for key in ("name", "output_dir", "resume.overwrite"):
        if key in given and given[key].is_sweep_override():
            raise ConfigError(f"{key}: several values; a bench has one")
    texts = {key: str(given[key].value()) for key in ("name", "output_dir", "resume.overwrite") if key in given}
    name = texts.get("name") or _name(overrides)
    folder = Path(texts.get("output_dir") or f"runs/bench-{name}").absolute()
    cells = cells_of(overrides, plan, folder, machines)
    tracked = [word for word in overrides if word.split("=")[0].startswith("tracking")]
    tracking = to_config(with_budget(compose_tree(tracked)))
    return Request(machines, name, folder, cells, plan, texts.get("resume.overwrite", "").lower() == "true", tracking)


def _name(overrides: list[str]) -> str:
    """By the models that are measured, or the experiment."""
    values = {key: value for key, _, value in (word.partition("=") for word in overrides)}
    return UNNAMEABLE.sub("_", values.get("model") or values.get("experiment") or "default").replace(",", "+")


def opened(request: Request) -> Results:
    """The bench with what was measured before, where the same command was interrupted, or asks for more repeats.

    Raises ConfigError where the folder holds another bench, or the conditions are others.
    """
    kinds = {cell.config.launcher.resources(cell.config)[1] for cell in request.cells if cell.config is not None}
    kind = "cuda" if "cuda" in kinds else "cpu"
    now = conditions(kind) | request.machines.conditions(kind)
    command = shlex.join(["trainer", *redacted_words(sys.argv[1:])])
    fresh = Results(f"bench-{request.name}", command, request.plan, now, request.cells)
    path = request.folder / RESULTS
    if not path.exists():
        return fresh
    if request.anew:
        path.unlink()
        shutil.rmtree(request.folder / "cells", ignore_errors=True)
        return fresh
    before = load(path)
    _refuse_other(request, before, now)
    known = {cell.label: cell for cell in before.cells}
    for cell in request.cells:
        _take_over(cell, known[cell.label], request.plan)
    return fresh


def _refuse_other(request: Request, before: Results, now: dict[str, object]) -> None:
    mend = "name this one (name=…), or measure anew with resume.overwrite=true"
    same = dataclasses.replace(before.plan, repeats=request.plan.repeats) == request.plan
    if not same or [(cell.label, cell.words) for cell in before.cells] != [(cell.label, cell.words) for cell in request.cells]:
        raise ConfigError(f"output_dir: {request.folder} holds another bench: {before.command}; {mend}")
    if apart := differences(before.conditions, now):
        raise ConfigError(f"output_dir: {request.folder} was measured under other conditions ({'; '.join(apart)}); {mend}")


def _take_over(cell: Cell, before: Cell, plan: Plan) -> None:
    """What was measured stands; what failed is tried again; what had no memory would have none again."""
    if cell.state is State.refused:
        return
    cell.repeats, cell.micro_batch = before.repeats, before.micro_batch
    if before.state is State.no_memory:
        cell.state, cell.reason = before.state, before.reason
    elif len(cell.repeats) >= plan.repeats:
        cell.state = State.measured
