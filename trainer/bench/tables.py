"""Benches as tables: for a person at a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.bench.cells import UNKNOWN, Cell, Scaling, State, common, varying
from trainer.bench.communication import HOW
from trainer.bench.comparison import CONFIDENCE, Comparison, Verdict
from trainer.bench.results import RATE, Results, spread, values
from trainer.bench.scaling import curves
from trainer.catalogue.tables import show
from trainer.mfu import CONVENTION
from trainer.tracking.figures import rate, size

if TYPE_CHECKING:
    from trainer.bench.scaling import Point


@dataclass(frozen=True)
class Column:
    """A figure of a cell. text: of one value. spreads: shown with the smallest and the largest of the repeats."""

    head: str
    key: str
    text: Callable[[float], str]
    spreads: bool = False


def _share(value: float) -> str:
    return f"{value:.1%}"


def _milliseconds(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


COLUMNS = (
    Column("tokens/s", RATE, rate, spreads=True),
    Column("padded/s", "padded_per_second", rate),
    Column("samples/s", "samples_per_second", lambda value: f"{value:,.1f}"),
    Column("ms a step", "step_milliseconds", _milliseconds),
    Column("CPU ms", "cpu_milliseconds", _milliseconds),
    Column("MFU", "mfu", _share),
    Column("memory", "memory_bytes", size),
    Column("data wait", "data_wait", _share),
    Column("comm. in flight", "communication_in_flight", _share),
    Column("exposed", "communication_exposed", _share),
    Column("compile", "compile_seconds", _seconds),
    Column("start", "start_seconds", _seconds),
    Column("tokens/J", "tokens_per_joule", lambda value: f"{value:,.1f}"),
    Column("syncs a step", "host_syncs_per_step", lambda value: f"{value:g}"),
)


def text_of(cell: Cell, column: Column) -> str:
    """The median over repeats; with the smallest and the largest, where there are several and the column shows them. "" of nothing."""
    found = spread(values(cell, column.key))
    if found is None:
        return ""
    middle = column.text(found.median)
    if not column.spreads or found.low == found.high:
        return middle
    return f"{middle} ({column.text(found.low)} – {column.text(found.high)})"


def used(cells: Sequence[Cell]) -> list[Column]:
    """The columns that any cell has a figure for; a time that nobody took is none."""
    kept = [column for column in COLUMNS if any(values(cell, column.key) for cell in cells)]
    compiled = any(any(values(cell, "compile_seconds")) for cell in cells)
    # What the host computes says little of a step that a GPU takes.
    dropped = ("" if compiled else "compile_seconds", "cpu_milliseconds" if _on_gpu(cells) else "")
    return [column for column in kept if column.key not in dropped]


def _on_gpu(cells: Sequence[Cell]) -> bool:
    return any(repeat["clock"] == "device events" for cell in cells for repeat in cell.repeats)


def heads(results: Results) -> list[str]:
    """The settings that tell the cells apart, and the micro-batch where it was found."""
    apart = varying(results.cells) or ["model"]
    finds = "micro_batch" not in apart and any(cell.settings.get("micro_batch") == "auto" for cell in results.cells)
    return [*apart, "micro_batch"] if finds else apart


def settings_of(results: Results, cell: Cell) -> list[str]:
    """Of one cell, what `heads` names."""
    told = cell.settings
    if told.get("micro_batch") == "auto" and cell.micro_batch:
        told = told | {"micro_batch": f"auto: {cell.micro_batch}"}
    return [told.get(key, UNKNOWN) for key in heads(results)]


def said(cell: Cell) -> str:
    """Of a cell that was not measured to its end, why."""
    if cell.state is State.pending:
        return f"not finished: {len(cell.repeats)} repeats so far"
    return "" if cell.state is State.measured else f"{cell.state.value}: {cell.reason}"


def about(results: Results) -> list[str]:
    """Lines above a table: what is common to all cells, how and on what it was measured."""
    plan, where = results.plan, results.conditions
    shared = ", ".join(f"{key}={value}" for key, value in common(results.cells).items() if value and key not in heads(results))
    devices = f"{where['devices']} × {where['device']}" if where.get("devices") else f"{where['device']}, {where['cores']} cores"
    if (nodes := where.get("nodes", 1)) > 1:
        devices = f"{devices} on {nodes} nodes" if where.get("devices") else f"{nodes} nodes, each {devices}"
    if (launcher := where.get("launcher", "local")) != "local":
        devices = f"{devices}, started by {launcher}"
    versions = where.get("versions", {})
    return [
        shared,
        f"median of {plan.repeats} repeats (smallest – largest), each {plan.steps} steps after {plan.warmup} of warm-up, "
        "in processes of its own, cells in turns",
        f"{devices}; torch {versions.get('torch', '?')}, commit {where.get('commit') or 'unknown'}",
    ]


def notes(results: Results) -> list[str]:
    """What the columns mean, of those that are there."""
    keys = {column.key for column in used(results.measured)}
    found = ["tokens: real ones; padded: rows × sequence_length, as loops that pad count"] if "padded_per_second" in keys else []
    found += [CONVENTION] if "mfu" in keys else []
    found += [HOW] if "communication_exposed" in keys else []
    on_gpu = _on_gpu(results.measured)
    found += ["CPU ms: CPU time a step of all threads of all ranks: the load of others is not in it"] if "cpu_milliseconds" in keys else []
    if "memory_bytes" in keys:
        found.append("memory: the most that tensors took on a device" if on_gpu else "memory: the most a process has held, code included")
    missing = dict.fromkeys(told for cell in results.measured for repeat in cell.repeats if (told := repeat.get("energy_missing")))
    found += [f"no energy: {told}" for told in missing]
    if "host_syncs_per_step" in keys:
        how = "as CUDA warns of them" if on_gpu else "operations that would make the host wait for a GPU"
        found.append(f"syncs: {how}, log lines left out")
    if any(any(values(cell, "compile_seconds_within")) for cell in results.measured):
        found.append("something was still compiled within the measured steps: give more warmup=…")
    return found


def show_results(out: Console, results: Results) -> None:
    """The table of a bench, the scaling where there is some, and what was not measured."""
    for line in about(results):
        out.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
    columns, apart = used(results.measured), heads(results)
    table = _table(*apart)
    for column in columns:
        table.add_column(column.head, justify="right", no_wrap=True)
    for cell in results.cells:
        if cell.repeats:
            table.add_row(*map(escape, settings_of(results, cell)), *(escape(text_of(cell, column)) for column in columns))
    if results.measured:
        out.print()
        show(out, table)
    if found := curves(results.cells):
        out.print()
        show(out, _scaling(found, results.plan.scaling))
    out.print()
    for cell in results.cells:
        if told := said(cell):
            out.print(f"[{'red' if cell.state is State.failed else 'yellow'}]{escape(cell.label)}[/]: {escape(told)}", soft_wrap=True)
    for note in notes(results):
        out.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def _scaling(found: list[list[Point]], scaling: Scaling) -> Table:
    table = _table(f"{scaling.value} scaling", "processes")
    for head in ("tokens/s", "efficiency"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in scaling_rows(found):
        table.add_row(*map(escape, row))
    return table


def scaling_rows(found: list[list[Point]]) -> list[list[str]]:
    """Cell, processes, rate, efficiency with its spread: a line a point."""
    rows = []
    for curve in found:
        for point in curve:
            each = point.efficiency
            told = f"{each.median:.1%} ({each.low:.1%} – {each.high:.1%})" if point.cell is not point.base else "100%"
            name = " ".join(part for part in point.base.label.split() if not part.startswith("processes="))
            middle = spread(values(point.cell, RATE))
            rows.append([name, str(point.cell.world), rate(middle.median if middle else None), told])
    return rows


def show_comparison(out: Console, found: Comparison) -> None:
    """Ratios, intervals, verdicts; what else differs first."""
    for warning in found.warnings:
        out.print(f"[yellow]differs:[/] {escape(warning)}", soft_wrap=True)
    table = _table(found.figure.replace("_", " "))
    for head in (found.first.name, found.second.name, "ratio", f"{CONFIDENCE:.0%} interval"):
        table.add_column(escape(head), justify="right", no_wrap=True)
    table.add_column("verdict")
    styles = {Verdict.faster: "green", Verdict.slower: "red", Verdict.unknown: "yellow"}
    for row, pair in zip(comparison_rows(found), found.pairs, strict=True):
        style = styles.get(pair.ratio.verdict)
        table.add_row(*map(escape, row[:-1]), f"[{style}]{row[-1]}[/]" if style else row[-1])
    if found.pairs:
        show(out, table)
    for lost in found.lost:
        out.print(f"[red]{escape(lost.label)}[/]: {escape(lost.reason)}, a regression", soft_wrap=True)
    for line in found.alone:
        out.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
    out.print(verdict(found), soft_wrap=True)


def comparison_rows(found: Comparison) -> list[list[str]]:
    """Cell, medians of both, ratio, interval, verdict."""
    text = next((column.text for column in COLUMNS if column.key == found.figure), rate)
    rows = []
    for pair in found.pairs:
        medians = [spread(values(cell, found.figure)) for cell in (pair.first, pair.second)]
        ratio = pair.ratio
        interval = f"{ratio.low:.3f} – {ratio.high:.3f}" if ratio.low is not None and ratio.high is not None else "–"
        told = f"{ratio.verdict.value}, a regression" if pair.regression else ratio.verdict.value
        rows.append([pair.label, *(text(each.median) if each else "" for each in medians), f"{ratio.ratio:.3f}", interval, told])
    return rows


def verdict(found: Comparison) -> str:
    """The comparison in a sentence or two."""
    slower, judged = len(found.regressions), len(found.judged)
    told = [f"{len(found.lost)} of the cells that {found.first.name} has are not measured in {found.second.name}"] if found.lost else []
    if slower:
        told.append(f"{slower} of {judged} cells slower by more than {found.threshold:.0%}, beyond the noise")
    elif judged:
        told.append(f"no cell of {judged} is slower by more than {found.threshold:.0%} beyond the noise")
    if unknown := len(found.pairs) - judged:
        told.append(f"{unknown if judged else 'no verdict: all'} cells have too few repeats; each needs two or more in both benches")
    return "; ".join(told)


def markdown(results: Results) -> str:
    """The same as a document."""
    columns, apart = used(results.measured), heads(results)
    lines = [f"# {results.name}", "", f"`{results.command}`", "", *(f"{line}  " for line in about(results)), ""]
    rows = [[*settings_of(results, cell), *(text_of(cell, column) for column in columns)] for cell in results.measured]
    if rows:
        lines += [_markdown([*apart, *(column.head for column in columns)], len(apart), rows), ""]
    if found := curves(results.cells):
        scaled = _markdown([f"{results.plan.scaling.value} scaling", "processes", "tokens/s", "efficiency"], 1, scaling_rows(found))
        lines += [scaled, ""]
    left_out = [f"- {cell.label}: {told}" for cell in results.cells if (told := said(cell))]
    lines += [*left_out, ""] if left_out else []
    return "\n".join([*lines, *(f"{note}  " for note in notes(results))]).rstrip() + "\n"


def _markdown(head: list[str], texts: int, rows: list[list[str]]) -> str:
    """A Markdown table; the first columns are text, the others figures."""
    ruler = "|" + "---|" * texts + "---:|" * (len(head) - texts)
    first, *others = (f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in (head, *rows))
    return "\n".join([first, ruler, *others])


def _table(*names: Any) -> Table:
    return Table(*map(escape, names), box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
