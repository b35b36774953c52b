"""bench.html, bench.md and throughput.png of a bench, and its mirror at Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.atomic import write_text
from trainer.bench import tables
from trainer.bench.cells import State
from trainer.bench.pictures import rates_svg, scaling_svg, write_png
from trainer.bench.results import RATE, Results, spread, values
from trainer.bench.scaling import curves
from trainer.tracking.page import HEAD

if TYPE_CHECKING:
    from trainer.bench.cells import Cell
    from trainer.bench.opening import Request

PAGE, MARKDOWN, PICTURE = "bench.html", "bench.md", "throughput.png"

TEMPLATE = (
    HEAD
    + """<body>
<main>
<header>
<h1>{{ name }}<span class="state{{ '' if complete else ' open' }}">{{ 'complete' if complete else 'not complete' }}</span></h1>
{% for line in about %}<p>{{ line }}</p>
{% endfor %}</header>

<section class="tiles">
{% for tile in tiles %}<div class="tile"><span>{{ tile.label }}</span><b>{{ tile.value }}</b><em>{{ tile.note }}</em></div>
{% endfor %}</section>

{% if rates %}<h2>Tokens a second <small>bars: medians; dots: repeats</small></h2>
<figure class="card">{{ rates }}</figure>{% endif %}

{% if scaling %}<h2>{{ scaling_kind }} scaling</h2>
<figure class="card"><figcaption>Tokens a second by processes
<span>faint: so many times what the fewest processes reach</span></figcaption>{{ scaling }}</figure>
<div class="card scroll below"><table style="white-space:nowrap">
<tr><th></th><th class="number">processes</th><th class="number">tokens/s</th><th class="number">efficiency</th></tr>
{% for row in scaling_rows %}<tr><td>{{ row[0] }}</td>{% for value in row[1:] %}<td class="number">{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}

{% if shares %}<h2>Where the time goes <small>share of a step</small></h2>
<div class="card scroll"><div class="bars" style="min-width:560px">
{% for row in shares %}<div class="ours"><span>{{ row.label }}</span>
<span style="display:flex;height:16px;border-radius:4px;overflow:hidden;background:var(--grid)">
{% for part in row.parts %}<i style="width:{{ '%.2f' % part.percent }}%;background:var(--{{ part.colour }});border-radius:0"></i>
{% endfor %}</span><b>{{ row.told }}</b></div>
{% endfor %}</div><p class="note">
<span style="color:var(--first)">■</span> everything else: forward, backward, update ·
<span style="color:var(--second)">■</span> communication that nothing hides ·
<span style="color:var(--sixth)">■</span> waiting for data</p></div>{% endif %}

<h2>Cells</h2>
<div class="card scroll"><table style="white-space:nowrap">
<tr>{% for head in text_heads %}<th>{{ head }}</th>{% endfor %}{% for head in heads %}<th class="number">{{ head }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for value in row.texts %}<td>{{ value }}</td>{% endfor %}
{% for value in row.figures %}<td class="number">{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>

{% if left_out %}<h2>Not measured</h2>
<div class="card scroll"><table>
{% for cell in left_out %}<tr><td>{{ cell.label }}</td><td><span class="kind {{ cell.tone }}">{{ cell.state }}</span></td>
<td class="wide">{{ cell.reason }}</td></tr>
{% endfor %}</table></div>{% endif %}

<h2>Measured with</h2>
<div class="card"><dl class="pairs" style="margin:0">
{% for key, value in conditions %}<div><dt>{{ key }}</dt><dd>{{ value }}</dd></div>
{% endfor %}</dl></div>
<div class="card below"><pre>{{ command }}</pre></div>
<footer>{% for note in notes %}{{ note }}<br>{% endfor %}Every repeat: results.json.</footer>
</main>
</body>
</html>
"""
)


def write(results: Results, folder: Path) -> None:
    """Write the page, the document and the picture."""
    from jinja2 import Environment

    write_text(folder / MARKDOWN, tables.markdown(results))
    write_text(folder / PAGE, Environment(autoescape=True).from_string(TEMPLATE).render(facts(results)))
    if results.measured:
        write_png(results, folder / PICTURE)


def facts(results: Results) -> dict[str, Any]:
    """What the page shows."""
    from markupsafe import Markup

    columns, cells = tables.used(results.measured), results.measured
    rows = [{"texts": tables.settings_of(results, cell), "figures": [tables.text_of(cell, column) for column in columns]} for cell in cells]
    found = curves(results.cells)
    return {
        "name": results.name,
        "complete": results.complete,
        "about": tables.about(results),
        "tiles": tiles(results),
        "rates": Markup(rates_svg(cells)) if cells else "",
        "scaling": Markup(scaling_svg(results)),
        "scaling_kind": results.plan.scaling.value.capitalize(),
        "scaling_rows": tables.scaling_rows(found),
        "shares": [_shares(cell) for cell in cells],
        "text_heads": tables.heads(results),
        "heads": [column.head for column in columns],
        "rows": rows,
        "left_out": [_left_out(cell) for cell in results.cells if tables.said(cell)],
        "conditions": _conditions(results.conditions),
        "command": results.command,
        "notes": tables.notes(results),
    }


def tiles(results: Results) -> list[dict[str, str]]:
    """The best of each figure, and of which cell it is."""
    found = []
    best = [
        ("fastest", RATE, max, "tokens/s"),
        ("highest MFU", "mfu", max, ""),
        ("least memory", "memory_bytes", min, ""),
        ("most a joule", "tokens_per_joule", max, "tokens"),
    ]
    columns = {column.key: column for column in tables.COLUMNS}
    for label, key, pick, unit in best:
        medians = [(middle.median, cell) for cell in results.measured if (middle := spread(values(cell, key)))]
        if medians:
            value, cell = pick(medians, key=lambda pair: pair[0])
            found.append({"label": label, "value": f"{columns[key].text(value)} {unit}".strip(), "note": cell.label})
    done = sum(cell.state is State.measured for cell in results.cells)
    note = f"of {len(results.cells)}, {results.plan.repeats} repeats each"
    return [*found, {"label": "cells measured", "value": str(done), "note": note}]


def _shares(cell: Cell) -> dict[str, Any]:
    """Of a step: waiting for data, communication that nothing hides, the rest."""
    middle = {key: spread(values(cell, key)) for key in ("data_wait", "communication_exposed")}
    data, talk = (min(1.0, found.median) if found else 0.0 for found in middle.values())
    parts = [("first", max(0.0, 1 - data - talk)), ("second", talk), ("sixth", data)]
    told = [f"{100 * talk:.1f}% comm." if middle["communication_exposed"] else "", f"{100 * data:.1f}% data"]
    return {
        "label": cell.label,
        "parts": [{"colour": colour, "percent": 100 * share} for colour, share in parts],
        "told": ", ".join(part for part in told if part),
    }


def _left_out(cell: Cell) -> dict[str, str]:
    pending = cell.state is State.pending
    return {
        "label": cell.label,
        "state": "not finished" if pending else cell.state.value,
        "reason": f"{len(cell.repeats)} repeats so far" if pending else cell.reason,
        "tone": "bad" if cell.state is State.failed else "",
    }


def _conditions(found: dict[str, Any]) -> list[tuple[str, str]]:
    from trainer.tracking.figures import size

    plain = [
        (key, value) for key, value in found.items() if not isinstance(value, dict) and value not in (None, 0) and key != "memory_bytes"
    ]
    told = [*plain, ("memory of the host", size(found["memory_bytes"])), *found.get("versions", {}).items()]
    return [(str(key), str(value)) for key, value in told]


def mirror(results: Results, request: Request) -> None:
    """The medians at Weights & Biases, where tracking says so; offline by itself."""
    from trainer.settings import WandbMode

    settings: Any = request.tracking.tracking
    if settings.wandb is WandbMode.off or not results.measured:
        return
    from trainer.tracking.weights_biases import WeightsAndBiases

    about = {"command": results.command, "conditions": results.conditions}
    mirrored = WeightsAndBiases(settings, about, request.folder, results.name, print)
    summary: dict[str, Any] = {}
    for number, cell in enumerate(results.measured, start=1):
        medians = {column.key: found.median for column in tables.COLUMNS if (found := spread(values(cell, column.key)))}
        mirrored.log(number, medians)
        summary |= {f"{cell.label}/{key}": value for key, value in medians.items()}
    # No run waits for it: there is time.
    mirrored.finish(summary, seconds=60.0)
