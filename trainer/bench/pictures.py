"""Pictures of a bench: each cell's rate with the spread of its repeats, and how rates grow with the processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.bench.cells import Cell
from trainer.bench.results import RATE, Results, spread, values
from trainer.bench.scaling import Point, curves
from trainer.tracking.charts import COLOURS, SERIES, Chart, Curve, picture, svg
from trainer.tracking.figures import rate

# For a file that stands alone, where no page gives colours.
_PLAIN = {"ink": "#16191d", "muted": "#5c6570", "grid": "#e3e6ea", "first": "#1f6feb"}
_WIDE = 7.6


def bars(cells: Sequence[Cell], colours: dict[str, str] = COLOURS, key: str = RATE) -> Any:
    """Draws a bar a cell, and a point a repeat. Returns what draws on axes."""

    def draw(axes: Any) -> None:
        from matplotlib.ticker import EngFormatter

        rates = [values(cell, key) for cell in cells]
        places = range(len(cells))
        medians = [found.median for each in rates if (found := spread(each))]
        axes.barh(places, medians, height=0.62, color=colours["first"], alpha=0.85)
        for place, each in zip(places, rates, strict=True):
            # The repeats themselves, apart from each other: a line between two ends would hide how they lie.
            offsets = [place + 0.36 * (number / max(1, len(each) - 1) - 0.5) for number in range(len(each))]
            axes.plot(each, offsets, "o", markersize=2.6, color=colours["ink"], alpha=0.75, markeredgewidth=0)
            axes.annotate(rate(medians[place]), (max(each), place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(places, [cell.label for cell in cells], fontsize=8.5)
        axes.invert_yaxis()
        axes.set_xlim(0, max(map(max, rates)) * 1.12)
        axes.grid(axis="x")
        axes.xaxis.set_major_formatter(EngFormatter(sep="", places=None))
        axes.set_xlabel("tokens/s")

    return draw


def rates_svg(cells: Sequence[Cell]) -> str:
    """The bars as an element of a page."""
    return picture("Tokens a second", bars(cells), (_WIDE, height(cells)))


def height(cells: Sequence[Cell]) -> float:
    """Inches that so many bars take."""
    return 0.75 + 0.34 * len(cells)


def scaling_chart(found: list[list[Point]]) -> Chart:
    """Rates over processes, and N times the first as faint lines."""
    lines: list[Curve] = []
    for number, curve in enumerate(found):
        worlds = [float(point.cell.world) for point in curve]
        rates = [middle.median for point in curve if (middle := spread(values(point.cell, RATE)))]
        colour, dash = SERIES[number % len(SERIES)], number // len(SERIES) % 3
        ideal = [rates[0] * world / worlds[0] for world in worlds]
        name = " ".join(part for part in curve[0].base.label.split() if not part.startswith("processes=")) or "tokens/s"
        lines += [Curve("", worlds, ideal, colour, faint=True), Curve(name, worlds, rates, colour, points=True, dash=dash)]
    note = "median; faint: so many times the smallest number of processes"
    return Chart("Tokens a second by processes", note, lines, unit="tokens/s", axis="processes", from_zero=True)


def scaling_svg(results: Results) -> str:
    """The curves as an element of a page; "" where every cell has one number of processes."""
    found = curves(results.cells)
    return svg(scaling_chart(found)) if found else ""


def write_png(results: Results, path: Path) -> None:
    """The bars as a file of their own."""
    from matplotlib.figure import Figure

    cells = results.measured
    figure = Figure(figsize=(_WIDE, height(cells)), layout="constrained", dpi=160)
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)
    bars(cells, _PLAIN)(axes)
    figure.savefig(path)
