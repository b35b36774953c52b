"""Each cell once a round, the first one of a round changing, so that whatever else the machine does meets all of them alike.

A repeat is a launch of its own: ranks, build, warm-up, measured steps. What it came to is kept before the next one starts.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from trainer.bench.cells import Cell, Plan, State
from trainer.bench.launching import HERE, LaunchError, Machines
from trainer.bench.rank import FOLDER
from trainer.bench.results import RATE, Results, gathered
from trainer.bench.window import LOOKED
from trainer.choices import ConfigError
from trainer.front_door import make_ready
from trainer.process import interruptible
from trainer.run import RunDir
from trainer.tracking.figures import rate
from trainer.tracking.progress import duration
from trainer.trials.parity import spoken_into

# As PyTorch, its caching allocator on a CPU and cuBLAS say that there is no memory; a kernel that has none kills without a word.
_NO_MEMORY = ("OutOfMemoryError", "out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "SIGKILL")

Say = Callable[[str], None]


def measure(results: Results, folder: Path, say: Say, machines: Machines = HERE) -> bool:
    """Measure what is missing. False: it was interrupted, and what is there stands."""
    try:
        with interruptible():
            for cell in _open(results):
                _ready(cell, say, machines)
                results.write(folder)
            _rounds(results, folder, say, machines)
    except KeyboardInterrupt:
        results.write(folder)
        return False
    results.write(folder)
    return True


def _open(results: Results) -> list[Cell]:
    return [cell for cell in results.cells if cell.config is not None and cell.state is State.pending]


def _ready(cell: Cell, say: Say, machines: Machines) -> None:
    """Data, checks, and the micro-batch where it is to be found: once a cell, before anything is measured."""
    config = cell.config
    assert config is not None
    if cell.micro_batch is not None:  # found when this bench was begun
        config = dataclasses.replace(config, micro_batch=cell.micro_batch)
    finds = " and finding its micro-batch" if config.micro_batch == "auto" else ""
    say(f"making ready{finds}: {cell.label} …")
    run = RunDir(config.output_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    try:
        with spoken_into(run.path / "front-door.log"):
            cell.config = make_ready(config, run, cell.world, machines.per_node(cell.world))
    except ConfigError as error:
        memory = _is_memory(str(error)) or "not even one row fits" in str(error)
        cell.state, cell.reason = State.no_memory if memory else State.refused, str(error)
        say(f"{cell.label}: {cell.state.value}: {cell.reason}")
        return
    cell.micro_batch = int(run.placement["micro_batch"])


def _rounds(results: Results, folder: Path, say: Say, machines: Machines) -> None:
    plan = results.plan
    cells, began, launched = _open(results), time.monotonic(), 0
    for number in range(plan.repeats):
        start = number % max(1, len(cells))
        for cell in cells[start:] + cells[:start]:
            if len(cell.repeats) > number or cell.state is not State.pending:
                continue
            _repeat(cell, plan, machines)
            results.write(folder)
            launched += 1
            left = sum(max(0, plan.repeats - len(each.repeats)) for each in cells if each.state is State.pending)
            remaining = f"; {duration((time.monotonic() - began) / launched * left)} left" if left else ""
            say(f"round {number + 1}/{plan.repeats}, {cell.label}: {_told(cell)}{remaining}")
    for cell in cells:
        if cell.state is State.pending and len(cell.repeats) >= plan.repeats:
            cell.state = State.measured


def _told(cell: Cell) -> str:
    if cell.state is not State.pending:
        return f"{cell.state.value}: {cell.reason}"
    last = cell.repeats[-1]
    return f"{rate(last[RATE])} tokens/s, {1000 * last['seconds'] / len(last['step_seconds']):,.1f} ms a step"


def _repeat(cell: Cell, plan: Plan, machines: Machines) -> None:
    """Launch, wait, and take what the ranks have measured. Raises KeyboardInterrupt where the launch was stopped."""
    assert cell.config is not None
    run = RunDir(cell.config.output_dir)
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    # What costs time is looked at once.
    window = {"warmup": plan.warmup, "steps": plan.steps, "looked": 0 if cell.repeats else LOOKED}
    try:
        with run.locked() as lock, spoken_into(run.path / "launch.log"):
            ranks = machines.launch(cell, run, window, lock.fileno())
    except LaunchError as error:
        cell.reason = str(error)
        cell.state = State.no_memory if _is_memory(cell.reason) else State.failed
        return
    cell.repeats.append(gathered(ranks, cell.config.sequence_length))


def _is_memory(reason: str) -> bool:
    return any(words in reason for words in _NO_MEMORY)
