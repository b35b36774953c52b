"""summary.json: the final figures of a run, one flat object."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trainer.metrics import useful_seconds
from trainer.tracking import jsonl

SUMMARY = "summary.json"

# Always there, null where it does not apply; figures of the task follow.
KEYS = ("steps", "tokens", "loss", "eval_loss", "bits_per_byte", "gzip_bits_per_byte", "tokens_per_second", "mfu", "goodput",
        "peak_memory_bytes", "world_size", "strategy", "digest")  # fmt: skip


def from_log(run_dir: Path) -> dict[str, Any]:
    """What metrics.jsonl itself tells: figures of the last line, rates over all steps, the highest memory.

    Of a step that was computed twice (a restart), the later line counts. Rates leave out the first line of each attempt where there are
    others: it holds compilation and warm-up.
    """
    lines = jsonl.read(run_dir / jsonl.METRICS)
    trained = last_of_each_step([line for line in lines if line.get("interval_steps")])
    found: dict[str, Any] = {}
    if trained:
        last = trained[-1]
        found = {"steps": last["step"], "tokens": last.get("tokens"), "loss": last.get("loss"), "goodput": last.get("goodput")}
        warm = [line for before, line in zip(trained, trained[1:], strict=False) if before.get("attempt") == line.get("attempt")] or trained
        for key in ("tokens_per_second", "mfu"):
            known = [line for line in warm if line.get(key) is not None]
            seconds = sum(line["interval_seconds"] for line in known)
            found[key] = sum(line[key] * line["interval_seconds"] for line in known) / seconds if seconds else None
        memory = [line["memory_bytes"] for line in lines if line.get("memory_bytes")]
        found["peak_memory_bytes"] = max(memory, default=None)
        found["useful_seconds"] = useful_seconds(lines)
    evaluated = [line for line in lines if line.get("eval_loss") is not None]
    if evaluated:
        found["eval_loss"] = evaluated[-1]["eval_loss"]
    return found


def last_of_each_step(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines in the order of their steps; of a step with several, the one that was written last."""
    newest: dict[int, dict[str, Any]] = {}
    for line in lines:
        if isinstance(line.get("step"), int):
            # What a restart took back must not stay beside what replaced it, also where their log lines fall on other steps.
            newest = {step: kept for step, kept in newest.items() if step < line["step"]} | {line["step"]: line}
    return [newest[step] for step in sorted(newest)]


def write(run_dir: Path, **figures: Any) -> dict[str, Any]:
    """Write summary.json: `KEYS` in their order, then the rest; figures given win over those of the log. Returns what was written."""
    known = from_log(run_dir) | {key: value for key, value in figures.items() if value is not None}
    summary = {key: known.get(key) for key in KEYS} | {key: value for key, value in known.items() if key not in KEYS}
    text = json.dumps(jsonl.finite(summary), indent=2, default=str, allow_nan=False) + "\n"
    aside = run_dir / f".{SUMMARY}.{os.getpid()}"
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(run_dir / SUMMARY)
    return summary


def read(run_dir: Path) -> dict[str, Any]:
    """summary.json, or nothing where the run has not finished."""
    path = run_dir / SUMMARY
    return json.loads(path.read_text()) if path.is_file() else {}
