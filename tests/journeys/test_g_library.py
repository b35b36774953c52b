"""Journey G: a library user, five lines."""

from __future__ import annotations

import subprocess
import sys

from tests.journeys.conftest import SMALL

FIVE_LINES = """
from trainer import compose, train
run = train(compose("experiment=quickstart", "name=library", {words}))
print(run.metrics["eval_loss"], run.path)
print(type(run.model()).__name__, run.exit_code)
"""


def test_five_lines_train(shell, quickstart):
    words = ", ".join(repr(word) for word in SMALL)
    done = subprocess.run(
        [sys.executable, "-c", FIVE_LINES.format(words=words)], cwd=shell.folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "GPT2LMHeadModel 0" in done.stdout and str(shell.folder / "runs" / "library") in done.stdout
