"""Parts of the report that not every run has: attempts, sets that were evaluated, passes by source, samples on the way, a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.tracking import jsonl
from trainer.tracking.charts import Chart, Curve
from trainer.tracking.figures import shown, size
from trainer.tracking.progress import duration

# Samples of so many evaluations are shown, spread over the run.
_SAMPLED = 6
_FIGURES = ("loss", "perplexity", "bits_per_byte", "accuracy", "masked_accuracy", "next_sentence_accuracy")


def attempts(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each attempt: where it began, on what, how far it came, how it ended; none where there was but one."""
    by_number: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        if isinstance(event.get("attempt"), int) and isinstance(event.get("time"), (int, float)):
            by_number.setdefault(event["attempt"], []).append(event)
    found = []
    for number, mine in by_number.items():
        start = next((event for event in mine if event.get("kind") == "start"), None)
        if start is None:
            continue  # it failed before its first step; the events tell how
        begin = start.get("resumed_at") or 0
        silent = "cut off" if number < max(by_number) else ""  # the last may go on yet
        text, tone = next((ended for event in reversed(mine) if (ended := _ended(event))), (silent, "bad"))
        found.append({
            "number": number,
            "begin": f"{begin:,}",
            "end": f"{max(event['step'] if isinstance(event.get('step'), int) else begin for event in mine):,}",
            "ran": f"{start.get('strategy', '')} on {start.get('world_size', '')}",
            "lasted": duration(mine[-1]["time"] - start["time"]),
            "ended": text,
            "tone": tone,
        })  # fmt: skip
    return found if len(found) > 1 else []


def _ended(event: dict[str, Any]) -> tuple[str, str] | None:
    """What an event says of how its attempt ended, and whether that is good or bad; None for one that says nothing of it."""
    kind = event.get("kind")
    if kind == "finish":
        return "finished", "good"
    if kind == "stop":
        return f"stopped and saved: {event.get('reason', '')}".rstrip(": "), ""
    if kind == "killed":
        return "killed without saving", "bad"
    if kind == "failure":
        return f"rank {event.get('rank')}: {str(event.get('reason', ''))[:200]}", "bad"
    if kind == "nan" and event.get("policy") == "halt":
        return "halted: a step was not finite", "bad"
    return None


def sets(lines: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """The newest figures of each set: heads, and a row a set; empty where there is none beside the run's own data."""
    newest = {key: value for line in lines for key, value in line.items() if key.startswith("eval_")}
    if not names:
        return {}
    keys = [key for key in _FIGURES if any(f"eval_{name}_{key}" in newest for name in names)]
    rows = [("own data", [newest.get(f"eval_{key}") for key in keys])]
    rows += [(name, [newest.get(f"eval_{name}_{key}") for key in keys]) for name in names]
    return {
        "heads": [key.replace("_", " ") for key in keys],
        "rows": [(name, [shown(key, value) for key, value in zip(keys, row, strict=True)]) for name, row in rows],
    }


def passes(summary: dict[str, Any], events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How often each source of a mixture was gone through, as bars; by the summary, or by the newest event that says so."""
    for facts in (summary, *reversed(events)):
        found = {key.removeprefix("passes_"): value for key, value in facts.items() if key.startswith("passes_")}
        if found:
            most = max(found.values()) or 1.0
            return [{"label": name, "value": f"{value:.2f}", "percent": 100 * value / most, "ours": True} for name, value in found.items()]
    return []


def samples(run_dir: Path) -> list[dict[str, Any]]:
    """What the model wrote at evaluations, the newest last: {step, texts}."""
    by_step: dict[int, list[str]] = {}
    attempt: dict[int, Any] = {}
    for line in jsonl.read(run_dir / jsonl.SAMPLES):
        step = line.get("step")
        if not isinstance(step, int):
            continue
        if attempt.get(step) != line.get("attempt"):
            by_step[step], attempt[step] = [], line.get("attempt")  # an attempt that came by again
        by_step[step].append(str(line.get("text", "")))
    steps = sorted(by_step)
    kept = steps if len(steps) <= _SAMPLED else [steps[round(number * (len(steps) - 1) / (_SAMPLED - 1))] for number in range(_SAMPLED)]
    return [{"step": f"{step:,}", "texts": by_step[step]} for step in kept]


def profile(run_dir: Path) -> dict[str, Any]:
    """The most expensive operations of the traced steps, and memory over their time; of rank 0, or of the first that was traced."""
    for path in sorted(run_dir.glob("profile/operations-rank-*.json"), key=lambda path: (len(path.name), path.name)):
        if not (facts := jsonl.read_object(path)):
            continue
        rank = path.stem.rpartition("-")[2]
        rows = [
            {**each, "calls": f"{each['calls']:,.1f}", "milliseconds": f"{each['milliseconds']:,.3f}", "percent": 100 * each["share"],
             "bytes": size(each["bytes"]) if each["bytes"] else ""}
            for each in facts["operations"]
        ]  # fmt: skip
        steps = facts["steps"]
        where = f"steps {steps[0]:,} to {steps[-1]:,}, rank {rank}, time on the {'GPU' if facts['device'] == 'cuda' else 'CPU'}"
        return {
            "rows": rows,
            "where": where,
            "files": sorted(each.name for each in path.parent.iterdir()),
            "charts": _memory(facts["memory"]),
        }
    return {}


def _memory(points: list[list[float]]) -> list[Chart]:
    if not points:
        return []
    curve = Curve("memory", [time for time, _ in points], [held for _, held in points])
    return [Chart("Memory of tensors", "above what was held when the trace began", [curve], unit="bytes", axis="milliseconds")]
