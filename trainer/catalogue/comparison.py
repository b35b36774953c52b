"""Two runs beside each other: what was configured otherwise, where their curves part, how they ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.atomic import write_text
from trainer.catalogue.entries import Entry
from trainer.choices import IDENTITY, PLACEMENT, ConfigError
from trainer.config import role_of, roles
from trainer.run import load_frozen
from trainer.tracking import jsonl
from trainer.tracking.charts import Chart, curves_of
from trainer.tracking.figures import is_figure, readable, shown
from trainer.tracking.report import rendered

# What adding up in another order makes of a loss, relative: below it two runs compute the same.
NOISE = 1e-5
# They name the run, and differ between any two.
_NAMES = ("name", "output_dir")

Pair = tuple[str, Any, Any]


@dataclass
class Comparison:
    """What differs. differences: by role, (key, value of the first, of the second). told: where the curves part, in a sentence."""

    first: Entry
    second: Entry
    differences: dict[str, list[Pair]]
    figures: list[Pair]
    told: str

    @property
    def labels(self) -> tuple[str, str]:
        return self.first.label, self.second.label


def compare(first: Entry, second: Entry) -> Comparison:
    """Look at two runs. Raises ConfigError where neither configuration can be read by this version."""
    curves = [_losses(entry) for entry in (first, second)]
    return Comparison(first, second, _differences(first, second), _figures(first, second), parting(*curves))


def _differences(first: Entry, second: Entry) -> dict[str, list[Pair]]:
    kinds: dict[str, str] = {}
    errors = []
    for entry in (first, second):
        try:
            kinds |= roles(load_frozen(entry.run.config_path))
        except ConfigError as error:  # of another version: its keys are still those of its file
            errors.append(error)
    if len(errors) == 2:
        raise errors[0]
    found: dict[str, list[Pair]] = {IDENTITY: [], PLACEMENT: []}
    for key in sorted(first.config.keys() | second.config.keys()):
        pair = first.config.get(key), second.config.get(key)
        if pair[0] != pair[1] and key not in _NAMES:
            found[role_of(key, kinds)].append((key, *pair))
    if first.own["world"] != second.own["world"]:
        found[PLACEMENT].append(("processes", first.own["world"], second.own["world"]))
    return found


def _figures(first: Entry, second: Entry) -> list[Pair]:
    """Figures that both have, numbers only."""
    return [
        (key, value, second.figures[key])
        for key, value in first.figures.items()
        if is_figure(value) and is_figure(second.figures.get(key)) and key not in ("time", "attempt")
    ]


def _lines(entry: Entry, key: str) -> list[dict[str, Any]]:
    lines = [line for line in jsonl.read(entry.run / jsonl.METRICS) if isinstance(line.get("step"), int)]
    return jsonl.kept([line for line in lines if line.get(key) is not None])


def _losses(entry: Entry) -> dict[int, float | None]:
    """Loss by step; None where it was not finite."""
    return {line["step"]: line.get("loss") for line in _lines(entry, "interval_steps")}


def parting(first: dict[int, float | None], second: dict[int, float | None]) -> str:
    """Where two curves of loss by step part: at all, and by more than noise."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return "no step was logged by both"
    apart = [step for step in common if first[step] != second[step]]
    if not apart:
        return f"equal to the last digit in the {len(common):,} steps that both logged, up to step {common[-1]:,}"
    begin = apart[0]
    before = [step for step in common if step < begin]
    text = f"equal to the last digit up to step {before[-1]:,}, " if before else ""
    text += f"first different at step {begin:,}: loss {_loss(first[begin])} and {_loss(second[begin])}"
    beyond = next((step for step in apart if _is_apart(first[step], second[step])), None)
    if beyond is None:
        return f"{text}; never more than {NOISE:g} apart (relative), up to step {common[-1]:,}"
    return text if beyond == begin else f"{text}; more than {NOISE:g} apart (relative) from step {beyond:,} on"


def _is_apart(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is not second
    return abs(first - second) > NOISE * max(abs(first), abs(second))


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.7g}"


def picture(comparison: Comparison) -> Path:
    """Write the comparison as a page beside the first run and return its path."""
    from trainer.tracking.page import COMPARISON

    first, second = comparison.first, comparison.second
    path = first.run.path.parent / f"diff-{first.run.path.name}-{second.run.path.name}.html"
    named = {"identity": "What is computed", "placement": "Where and how"}
    tables = [(named[role], rows) for role, rows in comparison.differences.items()]
    tables.append(("Figures", [(readable(key), shown(key, one), shown(key, other)) for key, one, other in comparison.figures]))
    facts = {
        "name": f"{first.label} and {second.label}",
        "first": first.label,
        "second": second.label,
        "told": f"Training loss: {comparison.told}.",
        "differences": tables,
        "charts": _charts(first, second),
    }
    write_text(path, rendered(COMPARISON, facts))
    return path


def _charts(first: Entry, second: Entry) -> list[Chart]:
    loss, held_out = (
        [
            curve
            for entry, colour in ((first, "first"), (second, "second"))
            for curve in curves_of(_lines(entry, kind), key, entry.label, colour, points=not smoothed, smoothed=smoothed)
        ]
        for key, kind, smoothed in (("loss", "interval_steps", True), ("eval_loss", "eval_loss", False))
    )
    note = "nats; bold: running mean" if any(curve.faint for curve in loss) else "nats"
    return [chart for chart in (Chart("Training loss", note, loss), Chart("Held-out loss", "nats", held_out)) if chart.curves]
