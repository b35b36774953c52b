"""Launcher `inside`: the run in the process that launches it, so that examples need not start several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.launch import Handle, Launcher

from trainer.choices import choice
from trainer.config import Config


@dataclass
class Here(Handle):
    """Trains when it is waited for."""

    path: Path

    def wait(self) -> int:
        from tests.loops import single, training

        inside = training(single(), self.path)
        inside.loop()
        inside.finish()
        return 0


@choice
class Inside(Launcher):
    """This process."""

    name: str = "inside"

    def ready(self, config: Config) -> int:
        return 1

    def submit(self, run_dir: Path, config: Config, lock: int | None = None) -> Handle:
        return Here(run_dir)
