"""The words of `trainer bench` as cells: each combination of the values in commas is a run of its own."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from trainer.bench.launching import HERE, Machines
from trainer.bench.window import LOOKED
from trainer.choices import ConfigError, find
from trainer.composition import compose_tree, parse, sweep, to_config
from trainer.config import BUDGETS, GROUPS, UNNAMEABLE, Config

# What every cell is told apart by, whether it varies in this bench or not: by these, cells of two benches are matched.
BASIC = ("model", "task", "strategy", "precision", "micro_batch", "global_batch", "sequence_length", "processes")
# Of these the value speaks for itself.
_SPEAKING = ("model", "task", "strategy", "precision", "optim")
# Tried in this order where the words say nothing of the objective: the first for which a model has a head.
_TASKS = ("clm", "mlm_nsp", "mlm", "denoising")
# A setting of a cell that is refused before it is known.
UNKNOWN = "–"
# What is not a cell's: where results go.
_PLACES = ("name", "output_dir", "resume.overwrite")


class State(str, Enum):
    """How far a cell is."""

    pending = "pending"
    measured = "measured"
    refused = "refused"  # cannot be: told before anything runs
    failed = "failed"
    no_memory = "out of memory"


class Scaling(str, Enum):
    """What more processes do: share the same global batch, or bring one of their own each."""

    strong = "strong"
    weak = "weak"


@dataclass(frozen=True)
class Plan:
    """How each cell is measured. warmup, steps: of a repeat; processes: numbers of them, empty: what the launcher chooses."""

    repeats: int = 5
    steps: int = 20
    warmup: int = 5
    processes: tuple[int, ...] = ()
    scaling: Scaling = Scaling.strong

    def __post_init__(self) -> None:
        for key in ("repeats", "steps", "warmup"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}: {getattr(self, key)}; at least 1")
        if any(count < 1 for count in self.processes):
            raise ConfigError(f"processes: {','.join(map(str, self.processes))}; allowed: numbers from 1, with commas")

    @property
    def budget(self) -> int:
        """Steps of the run's own budget: it is left before its end, which would save a checkpoint."""
        return self.warmup + self.steps + LOOKED + 1


@dataclass
class Cell:
    """One combination. settings: BASIC and what else varies → value, as text. words: overrides of its run. repeats: what was measured."""

    settings: dict[str, str]
    words: list[str]
    label: str = ""
    config: Config | None = None
    state: State = State.pending
    reason: str = ""
    world: int = 1
    micro_batch: int | None = None
    repeats: list[dict[str, Any]] = field(default_factory=list)

    @property
    def folder(self) -> str:
        return UNNAMEABLE.sub("_", self.label.replace(" ", ",")) or "cell"


def cells_of(overrides: Sequence[str], plan: Plan, folder: Path, machines: Machines = HERE) -> list[Cell]:
    """Every cell that the words ask for, those that cannot be with the reason. Raises ConfigError where none can, as the first says."""
    given = {override.key_or_group for override in parse(overrides)}
    if budget := given & set(BUDGETS):
        raise ConfigError(f"{min(budget)}: a bench measures steps; say how many of them: steps=20")
    if "launcher.processes" in given:
        raise ConfigError("launcher.processes: in a bench these are processes=1,2,…")
    found: dict[tuple[tuple[str, str], ...], Cell] = {}
    for job in sweep(list(overrides)):
        for cell in _cells(job, plan, machines):
            found.setdefault(tuple(cell.settings.items()), cell)
    cells = list(found.values())
    if all(cell.state is State.refused for cell in cells):
        raise ConfigError(cells[0].reason)
    _name(cells, folder)
    return cells


def _cells(job: list[str], plan: Plan, machines: Machines) -> Iterator[Cell]:
    """The cells of one combination of words: one for each number of processes."""
    words = [word for word in job if word.split("=")[0] not in _PLACES]
    values = {key.lstrip("+~"): value for key, _, value in (word.partition("=") for word in words)}
    settings = {key: values.get(key, UNKNOWN) for key in BASIC}
    settings |= {key: value for key, value in values.items() if key not in BASIC and key.split(".")[0] != "tracking"}
    counts: Sequence[int | None] = plan.processes or (None,)
    try:
        tree = _tree([*words, f"steps={plan.budget}"], bool({"task", "experiment"} & values.keys()))
        settings |= {key: values.get(key) or _chosen(tree, key) for key in BASIC if key != "processes"}
        config = _alone(to_config(tree))
    except ConfigError as error:
        for count in counts:
            yield Cell(settings | {"processes": str(count or UNKNOWN)}, words, state=State.refused, reason=str(error))
        return
    for count in counts:
        try:
            placed, world = machines.placed(config, config.strategy.processes or count)
            config.strategy.fits(world, machines.per_node(world))
        except ConfigError as error:
            yield Cell(settings | {"processes": str(count or UNKNOWN)}, words, state=State.refused, reason=str(error))
            continue
        if plan.scaling is Scaling.weak:
            # Not in the settings: it is said by processes.
            placed = dataclasses.replace(placed, global_batch=placed.global_batch * world)
        yield Cell(settings | {"processes": str(world)}, words, config=placed, world=world)


def _tree(words: list[str], has_task: bool) -> DictConfig:
    """The composition, with the model's own task where the words name none."""
    tree = compose_tree(words)
    if has_task or (task := _task(tree)) == tree.task.name:
        return tree
    return compose_tree([*words, f"task={task}"])


def _task(tree: DictConfig) -> str:
    """The task of words that name none."""
    heads = find("model", tree.model.name).objectives  # type: ignore[attr-defined]
    able = (name for name in _TASKS if not heads or find("task", name).objective in heads)  # type: ignore[attr-defined]
    return next(able, _TASKS[0])


def _chosen(tree: DictConfig, key: str) -> str:
    return str(tree[key].name if key in GROUPS else tree[key])


def _alone(config: Config) -> Config:
    """The same training, and nothing beside: no evaluation, no checkpoint, no tracking of its own. Raises ConfigError."""
    from trainer.launch.local import Local

    if not isinstance(config.launcher, Local):
        raise ConfigError(f"launcher={config.launcher.name}: a bench starts its processes itself; leave it out")
    tracking, kept = cast(Any, config.tracking), cast(Any, config.checkpoint)
    return dataclasses.replace(
        config,
        tracking=dataclasses.replace(tracking, wandb=type(tracking.wandb).off, tensorboard=False, samples=0),
        # A rank that fails is a result; a restart would only find it again.
        survival=dataclasses.replace(cast(Any, config.survival), restarts=0),
        early_stop=dataclasses.replace(config.early_stop, figure=None),
        checkpoint=dataclasses.replace(kept, best=None, path=None, end=type(kept.end).last),
        save_every=sys.maxsize,
        eval_every=None,
        evals={},
        resume=dataclasses.replace(config.resume, overwrite=True, extend=False),
    )


def varying(cells: Sequence[Cell]) -> list[str]:
    """The settings in which cells differ."""
    keys = dict.fromkeys(key for cell in cells for key in cell.settings)
    if not any(word.startswith("task=") for cell in cells for word in cell.words):
        keys.pop("task", None)  # it is the model's
    return [key for key in keys if len({cell.settings.get(key) for cell in cells} - {UNKNOWN}) > 1]


def common(cells: Sequence[Cell]) -> dict[str, str]:
    """The settings that all cells share."""
    apart = varying(cells)
    known = {key: value for cell in reversed(cells) for key, value in cell.settings.items() if value != UNKNOWN}
    return {
        key: value for key, value in known.items() if key not in apart and len({cell.settings.get(key) for cell in cells} - {UNKNOWN}) == 1
    }


def _name(cells: list[Cell], folder: Path) -> None:
    """Label every cell by what sets it apart, and give it a run directory."""
    keys = varying(cells) or ["model"]
    for cell in cells:
        cell.label = " ".join(_told(key, value) for key in keys if (value := cell.settings.get(key, UNKNOWN)) != UNKNOWN)
        if cell.config is not None:
            # A name is a folder's: of a value with other characters only those that a name may have.
            name = re.sub(r"[, ]+", "-", cell.folder)
            cell.config = dataclasses.replace(cell.config, name=name, output_dir=str(folder / "cells" / cell.folder))


def _told(key: str, value: str) -> str:
    return value if key in _SPEAKING else f"{key}={value}"
