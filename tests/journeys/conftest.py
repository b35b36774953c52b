"""A real run, started once as a person would, that the journeys look at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from filelock import FileLock

# The quickstart at a size for tests: same data, same way, a smaller network and budget.
SMALL = (
    "model.layers=1",
    "model.hidden=64",
    "model.heads=2",
    "tokenizer.vocab_size=1024",
    "global_batch=8",
    "sequence_length=64",
    "steps=12",
    "save_every=5",
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

    def trainer(self, *words: str) -> Done:
        return self.run("-m", "trainer", *words)

    def run(self, *words: str) -> Done:
        """Python with these words."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
        )
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def shell(tmp_path_factory) -> Shell:
    """One for all workers of pytest-xdist, whose folders lie side by side."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "newcomer"
    folder.mkdir(exist_ok=True)
    return Shell(folder)


def once(shell: Shell, name: str, command: Callable[[], Done]) -> Done:
    """What the first worker that came here got; the others wait for it."""
    kept = shell.folder / f"{name}.json"
    with FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            kept.write_text(json.dumps(asdict(command())))
    return Done(**json.loads(kept.read_text()))


# A global batch that no number of devices divides, too.
FIVE_LINES = """
from trainer import compose, train
run = train(compose("experiment=quickstart", "name=library", {words}, "global_batch=7"))
print(run.metrics["eval_loss"], run.path)
print(type(run.model()).__name__, run.exit_code)
"""


@pytest.fixture(scope="session")
def library(shell, quickstart) -> Done:
    """A run by Python; beside the quickstart, so that the corpus is prepared."""
    code = FIVE_LINES.format(words=", ".join(repr(word) for word in SMALL if not word.startswith("global_batch")))
    return once(shell, "library", lambda: shell.run("-c", code))


@pytest.fixture(scope="session")
def quickstart(shell) -> Done:
    """`trainer train experiment=quickstart`, small."""
    return once(shell, "quickstart", lambda: shell.trainer("train", "experiment=quickstart", *SMALL))
