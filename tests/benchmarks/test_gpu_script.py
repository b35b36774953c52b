"""benchmarks/gpu.sh at toy size: from the script to its results, and what it does where a part does not end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]


def test_gpu_script_runs_at_toy_size(tmp_path):
    # The other parts are tests of this suite, or the quickstart that parity runs.
    parts = "gpt2,quickstart_bert,parity"
    environment = os.environ | {"PYTHON": sys.executable, "BENCH_TOY": "1", "BENCH_PARTS": parts}
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", tmp_path / "results"], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").glob("*-gpu-toy.json")
    found = json.loads(path.read_text())
    assert found["toy"] and list(found["parts"]) == parts.split(",") and all(part["good"] for part in found["parts"].values())
    rates = found["parts"]["gpt2"]["figures"]
    assert all(rates[name]["tokens_per_second"] > 0 and rates[name]["rounds"] == 2 for name in rates if name != "failed")
    text = path.with_suffix(".md").read_text()
    assert "at toy size" in text and "| parity | yes |" in text
    # Nothing measured on a CPU may pass for a GPU's: no MFU, and the file says what it was taken on.
    assert all(rates[name]["mfu"] is None for name in rates if name != "failed") or "cpu" not in path.name


def test_a_part_that_does_not_end_is_ended_and_the_next_one_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PARTS", gpu.PARTS | {"quickstart": (0.5, gpu.PARTS["quickstart"][1])})
    begun = time.monotonic()
    result = gpu.run_bounded("quickstart", 0.5)
    assert not result["good"] and "not done after" in result["said"] and time.monotonic() - begun < 30


def test_results_are_a_table_with_what_failed():
    text = gpu.markdown(
        {"one": {"good": True, "said": "1 | 2", "seconds": 3.0}, "two": {"good": False, "said": "no", "seconds": 1.0, "log": "why"}}
    )
    assert "| one | yes | 3 | 1 / 2 |" in text and "| two | **no** | 1 | no |" in text and "why" in text
