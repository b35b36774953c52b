"""Runs as tables: for a person at a terminal in colour, into a file or a pipe plainly, with every column whole."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.catalogue.entries import Entry
from trainer.tracking.figures import shown, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trainer.catalogue.checkpoints import Line
    from trainer.catalogue.cleaning import Leftover
    from trainer.catalogue.spread import Alike

_COLUMNS = ("name", "state", "steps", "loss", "eval_loss")
_PLACE = ("strategy", "world", "age", "digest")
# Of the held-out figures beside the loss, so many get a column of their own unasked.
_MEASURES = 2
_STYLES = {"running": "green", "stopped": "yellow", "halted": "red", "failed": "red", "new": "dim"}


def console() -> Console:
    """Where tables go."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=10_000)


def show(out: Console, table: Table) -> None:
    """Print a table; without the blanks that fill its last column up, where it is no terminal."""
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as drawn:
        out.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def listing(found: list[Entry], asked: Iterable[str], sort: str) -> Table:
    """A line a run. asked: keys that get a column beside the usual ones."""
    wanted = [key for key in (*asked, sort) if key not in (*_COLUMNS, *_PLACE)]
    columns = list(dict.fromkeys([*_COLUMNS, *_measures(found), *wanted, *_PLACE]))
    table = _table()
    for key in columns:
        numeric = all(isinstance(entry.fact(key), (int, float, type(None))) for entry in found)
        table.add_column(key, justify="right" if numeric else "left", no_wrap=True)
    for entry in sorted(found, key=lambda entry: _rank(entry.fact(sort))):
        table.add_row(*(_cell(entry, key) for key in columns))
    return table


def _measures(found: list[Entry]) -> list[str]:
    """Held-out figures that say how good a model is, beside its losses."""
    known = dict.fromkeys(key.removeprefix("eval_") for entry in found for key in entry.figures)
    kinds = ("accuracy", "f1", "bits_per_byte", "correlation", "exact_match")
    return [key for key in known if key.endswith(kinds) and not key.startswith(("gzip", "xz"))][:_MEASURES]


def _rank(value: Any) -> tuple[int, Any]:
    """Ascending, numbers before words; last what has nothing under the key."""
    if value is None:
        return 2, 0
    return (0, value) if isinstance(value, (int, float)) else (1, str(value))


def _cell(entry: Entry, key: str) -> str:
    value = entry.fact(key)
    if value is None:
        return ""
    if key == "age":
        return age(value)
    if key == "digest":
        return str(value)[:8]
    if key == "state":
        style = _STYLES.get(value)
        return f"[{style}]{value}[/]" if style else str(value)
    if key == "steps" and entry.config.get("steps"):
        return f"{value:,}/{entry.config['steps']:,}"
    # A setting is shown as it was given; a figure as one reads it.
    return escape(str(value) if key in entry.config else shown(key, value))


def pairs(title: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Values of two runs beside each other."""
    table = _table(escape(title), *map(escape, names))
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def spread(groups: list[Alike]) -> Table:
    """A line for runs that differ in what is drawn alone: mean ± standard deviation of each figure."""
    measured = [group.figures() for group in groups]
    figures = list(dict.fromkeys(key for each in measured for key in each))
    table = _table(*groups[0].settings, "runs")
    for key in figures:
        table.add_column(key.removeprefix("eval_") if key != "eval_loss" else key, justify="right", no_wrap=True)
    for group, each in zip(groups, measured, strict=True):
        cells = [f"{shown(key, each[key][0])} ± {shown(key, each[key][1])}" if key in each else "" for key in figures]
        table.add_row(*(escape(str(value)) for value in group.settings.values()), str(len(group.runs)), *cells)
    return table


def removable(left: list[Leftover]) -> Table:
    """What can go, and its sizes."""
    table = _table("run", "what", "why")
    table.add_column("size", justify="right")
    for each in left:
        table.add_row(escape(each.run.label), escape(str(each.path.relative_to(each.run.run.path))), each.why, size(each.size))
    return table


def checkpoints(lines: list[Line]) -> Table:
    """A line a checkpoint, and the held-out figures of its weights."""
    figures = list(dict.fromkeys(key for line in lines for key in line.metrics))
    # What was measured on the weights tells more than the loss of one step; without it that is all there is.
    figures = [key for key in figures if key.startswith("eval_")][:_MEASURES] or figures[:1]
    table = _table()
    for head in ("step", "age", "size", "strategy", "world", *figures, "state", "kept for"):
        table.add_column(
            head, justify="right" if head in ("step", "age", "size", "world", *figures) else "left", no_wrap=head != "kept for"
        )
    for line in lines:
        facts = line.about
        since = age(time.time() - facts["time"]) if isinstance(facts.get("time"), (int, float)) else ""
        place = [size(facts["bytes"]) if "bytes" in facts else "", *(str(facts.get(key, "")) for key in ("strategy", "world_size"))]
        measured = [shown(key, line.metrics[key]) if key in line.metrics else "" for key in figures]
        style = {"damaged": "red", "partial": "yellow", "good": "green"}.get(line.state)
        state = f"[{style}]{line.state}[/]" if style else line.state
        table.add_row(f"{line.step:,}", since, *place, *measured, state, escape(line.why or line.kept))
    return table


def _table(*heads: str) -> Table:
    return Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def age(seconds: float) -> str:
    """`42s`, `5m`, `3h`, `2d`: as a condition on the age is written."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds:.0f}s"
