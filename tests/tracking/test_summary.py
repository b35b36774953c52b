"""summary.json: complete, flat, and of the whole run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from trainer.tracking import jsonl
from trainer.tracking.summary import KEYS, write


def _metrics(run_dir: Path) -> None:
    lines = jsonl.Lines(run_dir / jsonl.METRICS)
    rates = {10: 100.0, 20: 400.0, 30: 600.0}
    for step, rate in rates.items():
        lines.append({"step": step, "attempt": 0, "loss": 3.0, "tokens": step * 10, "tokens_per_second": rate, "mfu": None,
                      "memory_bytes": 1000 - step, "goodput": 0.9, "interval_steps": 10, "interval_seconds": 10 / rate})  # fmt: skip
    lines.append({"step": 30, "attempt": 0, "eval_loss": 2.5})
    lines.close()


def test_every_key_is_there_and_rates_are_those_of_the_run(tmp_path: Path) -> None:
    _metrics(tmp_path)
    write(tmp_path, eval_loss=2.5, loss=9.0, tokens_per_second=1.0, interval_steps=10, learning_rate=0.1, perplexity=math.inf, world_size=2)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert list(found)[: len(KEYS)] == list(KEYS)
    assert found["tokens_per_second"] == pytest.approx((10 + 10) / (10 / 400 + 10 / 600)), (
        "all steps but the first line's, not the last line"
    )
    assert (found["steps"], found["tokens"], found["loss"], found["eval_loss"], found["goodput"]) == (30, 300, 3.0, 2.5, 0.9)
    assert found["peak_memory_bytes"] == 990
    assert found["mfu"] is None and found["perplexity"] is None and found["world_size"] == 2 and found["bits_per_byte"] is None
    assert not {"interval_steps", "learning_rate"} & found.keys(), "figures of one interval mean nothing at the end"
    assert all(not isinstance(value, (dict, list)) for value in found.values())
    assert not list(tmp_path.glob(".summary*")), "nothing is left beside it"


def test_a_run_of_one_line_uses_it(tmp_path: Path) -> None:
    lines = jsonl.Lines(tmp_path / jsonl.METRICS)
    lines.append({"step": 2, "attempt": 0, "tokens_per_second": 50.0, "interval_steps": 2, "interval_seconds": 1.0})
    assert write(tmp_path)["tokens_per_second"] == 50.0
