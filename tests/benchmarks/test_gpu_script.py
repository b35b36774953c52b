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

from benchmarks import fast_path, gpu, gpu_models
from benchmarks.contests import OURS, TRAINER
from trainer import compose

ROOT = Path(__file__).resolve().parents[2]


def test_gpu_script_runs_at_toy_size(tmp_path):
    # The part with most in it; other models and the fast path run below without a process each, and the rest is what other tests run.
    parts = "gpt2-124m"
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
    assert len(model["operations"]) == 10 and sum(each["share"] for each in model["operations"]) > 0.2
    text = path.with_suffix(".md").read_text()
    assert "at toy size" in text and "| gpt2-124m | yes |" in text and "the most expensive operations" in text
    assert "| gpt2-124m: real tokens/s | 580,000 |" in text, "every goal stands beside what was measured"
    # Nothing measured on a CPU may pass for a GPU's: no MFU, and the file says what it was taken on.
    assert all(each["mfu"] is None for each in rates.values()) or "cpu" not in path.name


@pytest.mark.parametrize("name", ["bert-base-512-padded", "bert-base-128", "gpt2-350m"])
def test_models_are_measured_at_toy_size(name, monkeypatch):
    # Which loops take part is the same code for all: here, ours and Trainer.
    monkeypatch.setitem(gpu_models.ROWS, name, dataclasses.replace(gpu_models.ROWS[name], loops=gpu_models.TWO))
    kept = []
    result = gpu_models.measure(name, True, 300.0, kept.append)
    assert result["good"], result
    assert [len(each["figures"]["loops"]) for each in kept] == [1, 2], "results are kept after every turn"
    assert all(goal["met"] == (goal["measured"] is not None and goal["ratio"] >= 1) for goal in result["goals"])
    assert "padded" not in name or result["figures"]["padded"] > 0.1


def test_every_model_has_a_configuration_of_its_own_size():
    """What toy sizes leave out: that the words of the real ones are right, and that they fit together."""
    assert not any("," in name for name in gpu.PARTS), "parts are named with commas between them"
    found = {name: gpu_models.configured(row, False) for name, row in gpu_models.ROWS.items()}
    assert {name: (one.model.layers, one.model.hidden) for name, one in found.items()} == {
        "gpt2-124m": (12, 768), "gpt2-350m": (24, 1024), "gpt2-774m": (36, 1280), "gpt2-1558m": (48, 1600),
        "bert-base-512": (12, 768), "bert-base-512-padded": (12, 768), "bert-base-128": (12, 768),
        "bert-large-512": (24, 1024), "bert-large-128": (24, 1024),
    }  # fmt: skip
    for name, config in found.items():
        row = gpu_models.ROWS[name]
        assert all(config.global_batch % size == 0 for size in row.grid)
        assert config.precision.autocast == "bfloat16" and config.task.name == ("clm" if "gpt" in name else "mlm_nsp")
        assert config.sequence_length == (1024 if "gpt" in name else int(name.split("-")[2]))


def test_the_fast_path_is_the_plain_one_and_a_difference_is_seen(tmp_path, monkeypatch):
    result = fast_path.check()
    assert result["good"] and set(result["figures"]) >= {"gpt, fp32", "bert, fp32"}, result
    # Documents that see each other, as rows without lengths would have it.
    config = compose(*fast_path.FAMILIES["gpt"], *fast_path.SMALL, "precision=fp32")
    apart = fast_path.padded

    def joined(batch, term):
        return apart(dataclasses.replace(batch, lengths=(sum(batch.lengths),)), term)

    monkeypatch.setattr(fast_path, "padded", joined)
    found = fast_path.compared(config, fast_path.packed(config), tmp_path)
    assert found["gradients"] > 10 * fast_path.TOLERANCES["fp32"]


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
