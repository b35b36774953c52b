"""From a frozen run and resources to agents: how the processes of a run come about. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.choices import Choice

if TYPE_CHECKING:
    from trainer.config import Config

CHOICES = ("local",)


class Handle:
    """A submitted run."""

    def wait(self) -> int:
        """Follow the run to its end and return its exit code: 0 finished, 128 + signal when stopped and saved, else a failure."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Ask the run to save and stop. Asked a second time, it is killed."""
        raise NotImplementedError


class Launcher(Choice, group="launcher", role="placement"):
    """Where the processes of a run are started."""

    def ready(self, config: Config) -> int:
        """The world size. Raises ConfigError where the machines cannot run this (B09, B10), before anything is prepared."""
        raise NotImplementedError

    def submit(self, run_dir: Path, config: Config, lock: int | None = None) -> Handle:
        """Start the frozen run and return at once.

        lock: file descriptor of the run's held lock; whatever runs on after this process inherits it, and so holds the run.
        """
        raise NotImplementedError
