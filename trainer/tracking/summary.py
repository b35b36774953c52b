"""summary.json: the final figures of a run, one flat object."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from trainer.atomic import write_text
from trainer.tracking import jsonl

SUMMARY = "summary.json"

# Always there, null where it does not apply; figures of the task follow.
KEYS = ("steps", "tokens", "loss", "eval_loss", "bits_per_byte", "gzip_bits_per_byte", "tokens_per_second", "mfu", "goodput",
        "peak_memory_bytes", "world_size", "strategy", "digest")  # fmt: skip

# Figures of one log line, which mean nothing at the end.
_OF_AN_INTERVAL = {"step", "applied", "learning_rate", "grad_norm", "samples_per_second", "data_wait", "memory_bytes", "interval_steps",
                   "interval_seconds", "interval_dropped", "checkpoint_background_seconds"}  # fmt: skip


def write(run_dir: Path, **figures: Any) -> dict[str, Any]:
    """Write summary.json: `KEYS` in their order, then the other figures given. Returns what was written.

    Rates and memory are those of metrics.jsonl, over all attempts, whatever was given.
    """
    known = {key: value for key, value in figures.items() if key not in _OF_AN_INTERVAL} | from_log(run_dir)
    summary = {key: known.get(key) for key in KEYS} | {key: value for key, value in known.items() if key not in KEYS}
    write_text(run_dir / SUMMARY, json.dumps(jsonl.finite(summary), indent=2, default=str, allow_nan=False) + "\n")
    return summary


def from_log(run_dir: Path) -> dict[str, Any]:
    """What metrics.jsonl tells of a whole run: steps, tokens and loss of its last line, mean rates, goodput, the highest memory.

    Rates leave out the first line of each attempt where there are others: it holds compilation and warm-up.
    """
    lines = jsonl.read(run_dir / jsonl.METRICS)
    trained = jsonl.kept([line for line in lines if line.get("interval_steps")])
    if not trained:
        return {}
    last = trained[-1]
    found = {"steps": last["step"]} | {key: last.get(key) for key in ("tokens", "loss", "goodput")}
    warm = [line for before, line in itertools.pairwise(trained) if before.get("attempt") == line.get("attempt")] or trained
    for key in ("tokens_per_second", "mfu"):
        known = [(line[key], line["interval_seconds"]) for line in warm if line.get(key) is not None]
        seconds = sum(weight for _, weight in known)
        found[key] = sum(rate * weight for rate, weight in known) / seconds if seconds else None
    found["peak_memory_bytes"] = max((line["memory_bytes"] for line in lines if line.get("memory_bytes")), default=None)
    return found
