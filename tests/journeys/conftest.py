"""A real run, started once as a person would, that the journeys look at."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# The quickstart at a size for tests: same data, same way, a smaller network and budget.
SMALL = (
    "model.layers=1",
    "model.hidden=64",
    "model.heads=2",
    "tokenizer.vocab_size=1024",
    "global_batch=8",
    "sequence_length=64",
    "steps=12",
    "micro_batch=4",
)


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


class Shell:
    """A folder in which commands are typed, with a cache of its own: a newcomer has prepared nothing before."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "TRAINER_CACHE": str(folder / "cache")}

    def trainer(self, *words: str, timeout: float = 240) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def shell(tmp_path_factory) -> Shell:
    return Shell(tmp_path_factory.mktemp("newcomer"))


@pytest.fixture(scope="session")
def quickstart(shell) -> Done:
    """`trainer train experiment=quickstart`, small."""
    return shell.trainer("train", "experiment=quickstart", *SMALL)
