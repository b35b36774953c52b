"""Words of a run that is tried: a tiny model on little text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loops import GPT, write_texts

Trainer = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trials")


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Trainer:
    """Types a command in the folder."""
    (folder / "texts").mkdir()
    write_texts(folder / "texts")
    run = ("data=text", "data.path=texts/*.txt", "tokenizer.vocab_size=300", "sequence_length=32", "optim.lr=1e-3", "name=tiny", *GPT)

    def typed(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trainer", verb, *run, *words],
            cwd=folder,
            env=os.environ | {"TRAINER_PLUGINS": "tests.trials.crooked", "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return typed
