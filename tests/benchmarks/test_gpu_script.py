"""benchmarks/gpu.sh at toy size: from the script to its results, and what it does where a part does not end."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_models
from benchmarks.contests import OURS, TRAINER

ROOT = Path(__file__).resolve().parents[2]


def test_gpu_script_runs_at_toy_size(tmp_path):
    # The other parts are tests of this suite, or quickstarts that parity runs; models run below, without a process each.
    parts = "gpt2-124m,parity"
    environment = os.environ | {"PYTHON": sys.executable, "BENCH_TOY": "1", "BENCH_PARTS": parts}
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", tmp_path / "results"], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").glob("*-gpu-toy.json")
    found = json.loads(path.read_text())
    assert found["toy"] and list(found["parts"]) == parts.split(",") and all(part["good"] for part in found["parts"].values())
    model = found["parts"]["gpt2-124m"]
    rates = model["figures"]["loops"]
    assert {OURS, TRAINER} <= set(rates) and all(each["tokens_per_second"] > 0 for each in rates.values())
    assert len(model["operations"]) == 10 and sum(each["share"] for each in model["operations"]) > 0.5
    text = path.with_suffix(".md").read_text()
    assert "at toy size" in text and "| parity | yes |" in text and "the most expensive operations" in text
    assert "| gpt2-124m: real tokens/s | 580,000 |" in text, "every goal stands beside what was measured"
    # Nothing measured on a CPU may pass for a GPU's: no MFU, and the file says what it was taken on.
    assert all(each["mfu"] is None for each in rates.values()) or "cpu" not in path.name


@pytest.mark.parametrize("name", [name for name in gpu_models.ROWS if name != "gpt2-124m"])
def test_every_model_is_measured_at_toy_size(name, monkeypatch):
    # Which loops take part is the same code for all: here, ours and Trainer; and no profile, which is a run of its own.
    row = dataclasses.replace(gpu_models.ROWS[name], loops=gpu_models.TWO, profile=False)
    monkeypatch.setitem(gpu_models.ROWS, name, row)
    kept = []
    result = gpu_models.measure(name, True, 300.0, kept.append)
    assert result["good"], result
    assert [len(each["figures"]["loops"]) for each in kept] == [1, 2], "results are kept after every turn"
    assert all(goal["met"] == (goal["measured"] is not None and goal["ratio"] >= 1) for goal in result["goals"])
    assert "padding" not in name or result["figures"]["padded"] > 0.25


def test_a_part_that_does_not_end_is_ended_and_the_next_one_runs():
    begun = time.monotonic()
    result = gpu.run_bounded("quickstart", 0.5)
    assert not result["good"] and "not done after" in result["said"] and time.monotonic() - begun < 30


def test_results_are_a_table_with_what_failed():
    goal = {"what": "speed", "goal": 2.0, "measured": 1.0, "ratio": 0.5, "met": False}
    text = gpu.markdown(
        {
            "one": {"good": True, "said": "1 | 2", "seconds": 3.0, "goals": [goal, goal | {"measured": None, "ratio": None}]},
            "two": {"good": False, "said": "no", "seconds": 1.0, "log": "why"},
        }
    )
    assert "| one | yes | 3 | 1 / 2 |" in text and "| two | **no** | 1 | no |" in text and "why" in text
    assert "| speed | 2.00 | 1.00 | 0.50 | **no** |" in text and "| speed | 2.00 | not measured |  | **no** |" in text
