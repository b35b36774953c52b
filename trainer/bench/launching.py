"""Where a bench's ranks are started: on this machine by an agent, as `trainer train` does; or where another launcher gave seats."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from trainer.bench.rank import FOLDER, WINDOW
from trainer.launch.local import Local
from trainer.survival import FINISHED, STOPPED

if TYPE_CHECKING:
    from trainer.bench.cells import Cell
    from trainer.config import Config
    from trainer.run import RunDir


class LaunchError(Exception):
    """A launch that measured nothing; says why."""


class Machines(Protocol):
    """What there is to start ranks on."""

    def placed(self, config: Config, processes: int | None) -> tuple[Config, int]:
        """The configuration on so many processes, None: as many as there are to be; and their number. Raises ConfigError."""

    def per_node(self, world: int) -> int:
        """Of so many processes those on the first node."""

    def conditions(self, kind: str) -> dict[str, Any]:
        """What belongs to the conditions of figures. kind: of the devices (cpu, cuda)."""

    def launch(self, cell: Cell, run: RunDir, window: dict[str, int], lock: int) -> list[dict[str, Any]]:
        """Start all ranks of a cell, wait for them, and return what each has measured.

        window: fields of a `Window`. lock: descriptor of the run's held lock. Raises LaunchError; KeyboardInterrupt where it was stopped.
        """


class Measured(Local):
    """Ranks of `trainer bench`."""

    module: ClassVar[str] = "trainer.bench.rank"


class ThisMachine(Machines):
    """An agent and its ranks here."""

    def placed(self, config: Config, processes: int | None) -> tuple[Config, int]:
        if processes is not None:
            config = dataclasses.replace(config, launcher=dataclasses.replace(config.launcher, processes=processes))
        return config, config.launcher.ready(config)

    def per_node(self, world: int) -> int:
        return world

    def conditions(self, kind: str) -> dict[str, Any]:
        return {"launcher": "local", "nodes": 1}

    def launch(self, cell: Cell, run: RunDir, window: dict[str, int], lock: int) -> list[dict[str, Any]]:
        assert cell.config is not None
        failures = len(run.events("failure"))
        with _told_to_ranks(json.dumps(window)):
            code = Measured(processes=cell.world).submit(run.path, cell.config, lock=lock).wait()
        if code >= 128 or code == STOPPED:
            raise KeyboardInterrupt
        if code != FINISHED:
            told = [str(event["reason"]) for event in run.events("failure")[failures:]]
            raise LaunchError(told[-1] if told else f"exit code {code}; {run.path / 'launch.log'} says why")
        return [json.loads(file.read_text()) for file in sorted((run / FOLDER).glob("rank-*.json"))]


HERE = ThisMachine()


@contextlib.contextmanager
def _told_to_ranks(window: str) -> Iterator[None]:
    """By the environment, which agent and ranks inherit."""
    os.environ[WINDOW] = window
    try:
        yield
    finally:
        del os.environ[WINDOW]
