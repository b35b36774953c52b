"""Curves of a run as SVG for the report: drawn once, coloured by the page, so that light and dark share one picture."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.tracking.figures import is_figure, size

# What matplotlib draws with → the page's colour of that name. The values stand for themselves nowhere else.
COLOURS = {
    "ink": "#010203",
    "muted": "#020304",
    "grid": "#030405",
    "first": "#040506",
    "second": "#050607",
    "third": "#060708",
    "fourth": "#070809",
    "fifth": "#08090a",
    "sixth": "#090a0b",
}
SERIES = ("first", "second", "third", "fourth", "fifth", "sixth")
# More curves than colours: solid, dashed, dotted.
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)))


@dataclass
class Curve:
    """One line of a chart. points=True: marked, for figures that come seldom. faint=True: behind the others. dash: of `DASHES`."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: str = "first"
    points: bool = False
    faint: bool = False
    dash: int = 0


@dataclass
class Chart:
    """A picture. unit: `tokens/s`, `share`, `bytes` or none.

    levels: label → value, drawn as dashed lines. marks: steps where an attempt began.
    """

    title: str
    note: str
    curves: list[Curve]
    unit: str = ""
    axis: str = "step"
    levels: dict[str, float] = field(default_factory=dict)
    marks: Sequence[float] = ()
    from_zero: bool = False


def svg(chart: Chart) -> str:
    """The picture as an SVG element, its colours given by the page's custom properties (`--ink`, `--first` …)."""
    return picture(chart.title, lambda axes: _draw(chart, axes))


def picture(title: str, draw: Callable[[Any], None], inches: tuple[float, float] = (5.6, 2.7)) -> str:
    """What `draw` draws on matplotlib's axes, in COLOURS, as such an element."""
    import matplotlib

    options: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.edgecolor": COLOURS["grid"],
        "axes.labelcolor": COLOURS["muted"],
        "text.color": COLOURS["ink"],
        "xtick.color": COLOURS["muted"],
        "ytick.color": COLOURS["muted"],
        "ytick.major.size": 0,
        "xtick.major.size": 3,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "grid.color": COLOURS["grid"],
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.labelcolor": COLOURS["muted"],
        "path.simplify": True,
    }
    with matplotlib.rc_context(options):
        from matplotlib.figure import Figure

        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(buffer.getvalue(), title)


def _draw(chart: Chart, axes: Any) -> None:
    for mark in chart.marks:
        axes.axvline(mark, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (1, 2)))
    for curve in chart.curves:
        axes.plot(
            curve.steps,
            curve.values,
            color=COLOURS[curve.colour],
            linewidth=1 if curve.faint else 1.8,
            alpha=0.35 if curve.faint else 1,
            label=None if curve.faint else curve.label,
            marker="o" if curve.points or len(curve.values) == 1 else None,
            markersize=4,
            linestyle=DASHES[curve.dash],
            solid_capstyle="round",
            solid_joinstyle="round",
        )
    low, high = _range(chart)
    if low is not None:
        axes.set_ylim(low, high)
    axes.margins(x=0.02)
    axes.grid(axis="y")
    axes.set_xlabel(chart.axis)
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, MultipleLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if chart.unit == "tokens/s":
        axes.yaxis.set_major_formatter(EngFormatter(sep="", places=None))
    elif chart.unit == "bytes":
        bottom, top = axes.get_ylim()
        axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(max(1.0, (top - bottom) / 6)))))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    elif chart.unit == "share":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    for label, level in chart.levels.items():
        axes.axhline(level, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        # The names of two that are close to each other stand apart.
        above = level == max(chart.levels.values())
        axes.annotate(label, (1, level), xycoords=("axes fraction", "data"), xytext=(0, 3 if above else -3), textcoords="offset points",
                      ha="right", va="bottom" if above else "top", color=COLOURS["muted"], fontsize=8)  # fmt: skip
    if sum(not curve.faint for curve in chart.curves) > 1:
        axes.legend(loc="best", fontsize=9, handlelength=1.4, borderaxespad=0.2)


def _range(chart: Chart) -> tuple[float | None, float | None]:
    """Limits that show the shape: the first steps of a loss may leave the picture at the top, the levels never do."""
    values = sorted(value for curve in chart.curves for value in curve.values)
    if not values:
        return None, None
    ends = [*chart.levels.values(), values[0], values[-1]]
    low, high = min(ends), max(ends)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if chart.from_zero else low - pad), high + pad


def curves_of(
    lines: list[dict[str, Any]], key: str, label: str, colour: str = "first", points: bool = False, smoothed: bool = False
) -> list[Curve]:
    """A curve, and its running mean where there are enough points for one."""
    known = [(line["step"], line[key]) for line in lines if is_figure(line.get(key))]
    steps, values = [step for step, _ in known], [value for _, value in known]
    if smoothed and len(values) >= 40:
        return [Curve(label, steps, values, colour, faint=True), Curve(label, steps, smooth(values), colour)]
    return [Curve(label, steps, values, colour, points)] if values else []


def smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Mean over a window of `share` of the curve around each point, narrower towards the ends, so that it does not lag behind."""
    half = int(len(values) * share / 2)
    sums = [0.0, *itertools.accumulate(values)]
    found = []
    for index in range(len(values)):
        reach = min(half, index, len(values) - 1 - index)
        found.append((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1))
    return found


def _themed(text: str, title: str) -> str:
    text = text[text.index("<svg") :]
    for name, value in COLOURS.items():
        text = text.replace(value, f"var(--{name})")
    # Fonts are the page's, sizes stay; and identifiers nobody refers to would repeat in every picture.
    text = re.sub(r"font-family: [^;\"]+;? ?", "", text)
    text = re.sub(r'\sid="([^"]+)"', lambda found: found.group() if f"#{found[1]}" in text else "", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*|<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', text, count=1)
