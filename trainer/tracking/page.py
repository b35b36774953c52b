"""The pages that we write: HTML and its style, without a script and without anything from elsewhere."""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ name }} · Shardloom</title>
<style>
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #16191d; --muted: #5c6570; --grid: #e3e6ea; --line: #e3e6ea;
  --first: #1f6feb; --second: #d9580d; --third: #1a7f5a;
  --fourth: #8b4fd8; --fifth: #b3831a; --sixth: #c2417c; --good: #1a7f5a; --bad: #c4281c; --soft: #eef3fd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1216; --card: #171b21; --ink: #e7eaee; --muted: #98a2ae; --grid: #2a3038; --line: #2a3038;
    --first: #6ea8ff; --second: #f59a5b; --third: #4cc79a;
    --fourth: #b794f6; --fifth: #e0b64f; --sixth: #f08bb4; --good: #4cc79a; --bad: #ff7b6e; --soft: #1c2635;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
header h1 { margin: 0; font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; overflow-wrap: anywhere; }
header p { margin: 6px 0 0; color: var(--muted); }
h2 { font-size: 18px; letter-spacing: -0.01em; margin: 40px 0 14px; }
h2 small { font-weight: 400; font-size: 13px; color: var(--muted); margin-left: 8px; letter-spacing: 0; }
.state {
  display: inline-block; padding: 1px 10px; border-radius: 99px; margin-left: 10px; vertical-align: 6px;
  font-size: 13px; font-weight: 600; color: var(--card); background: var(--good);
}
.state.open { background: var(--second); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(156px, 1fr)); gap: 12px; margin-top: 26px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 14px 16px; }
.tile b {
  display: block; font-size: 25px; line-height: 1.25; font-weight: 650; letter-spacing: -0.02em; font-variant-numeric: tabular-nums;
}
.tile span { color: var(--muted); font-size: 13px; }
.tile em { display: block; font-style: normal; color: var(--muted); font-size: 12px; }
.card { padding: 18px 20px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 14px; }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: 8px; }
figcaption span { display: block; font-weight: 400; font-size: 12.5px; color: var(--muted); }
svg { width: 100%; height: auto; display: block; font-family: inherit; }
svg * { stroke-linejoin: round; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 10px 14px; align-items: center; }
.bars i { display: block; height: 16px; border-radius: 4px; background: var(--grid); min-width: 2px; }
.bars .ours i { background: var(--first); }
.bars .ours { font-weight: 650; }
.bars > div { display: contents; }
.bars b { font-variant-numeric: tabular-nums; font-weight: inherit; }
.note { color: var(--muted); font-size: 13px; margin: 12px 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: 12.5px; }
th, td { padding: 6px 14px 6px 0; border-top: 1px solid var(--line); vertical-align: top; }
tr:first-child > * { border-top: 0; }
th.number, td.number { text-align: right; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.code { font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
td.bar { width: 22%; }
td.bar i { display: block; height: 10px; margin-top: 6px; border-radius: 3px; background: var(--first); min-width: 1px; }
.below { margin-top: 14px; }
h3 { font-size: 13px; font-weight: 500; color: var(--muted); margin: 16px 0 6px; }
pre.soft { background: var(--soft); border-radius: 8px; padding: 9px 12px; margin-bottom: 8px; }
td.wide { overflow-wrap: anywhere; }
.pairs { columns: 2 360px; column-gap: 36px; }
.pairs div {
  display: flex; justify-content: space-between; gap: 16px; padding: 5px 0; font-size: 14px;
  border-bottom: 1px solid var(--line); break-inside: avoid;
}
.pairs dt { color: var(--muted); }
.pairs dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.kind { font-weight: 600; } .kind.bad { color: var(--bad); } .kind.good { color: var(--good); }
pre {
  margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
.next { display: grid; gap: 14px; margin: 0; } .next p { margin: 0 0 4px; }
.next pre { background: var(--soft); border-radius: 8px; padding: 9px 12px; }
details summary { cursor: pointer; color: var(--muted); } details pre { margin-top: 12px; }
footer { margin-top: 44px; color: var(--muted); font-size: 12.5px; }
@media print { :root { --page: #fff; } .card, .tile { break-inside: avoid; } }
</style>
</head>
"""

# The report of a run.
TEMPLATE = (
    HEAD
    + """<body>
<main>
<header>
<h1>{{ name }}<span class="state{{ '' if finished else ' open' }}">{{ 'finished' if finished else 'not finished' }}</span></h1>
<p>{{ subtitle }}</p>
</header>

<section class="tiles">
{% for tile in tiles %}<div class="tile"><span>{{ tile.label }}</span><b>{{ tile.value }}</b><em>{{ tile.note }}</em></div>
{% endfor %}</section>

{% for comparison in comparisons %}<h2>{{ comparison.title }}</h2>
<div class="card"><div class="bars">
{% for bar in comparison.bars %}<div{% if bar.ours %} class="ours"{% endif %}>
<span>{{ bar.label }}</span><i style="width:{{ '%.1f' % bar.percent }}%"></i><b>{{ bar.value }}</b>
</div>
{% endfor %}</div><p class="note">{{ comparison.note }}</p></div>
{% endfor %}

<h2>Curves{% if resumed %} <small>dotted: the run went on from a checkpoint</small>{% endif %}</h2>
{% if charts %}<div class="charts">
{% for chart in charts %}<figure class="card"><figcaption>{{ chart.title }}<span>{{ chart.note }}</span></figcaption>
{{ chart.svg }}</figure>
{% endfor %}</div>{% else %}<div class="card">No figures yet: the first line of metrics.jsonl comes after log_every steps.</div>{% endif %}

{% if sets %}<h2>Evaluation sets</h2>
<div class="card scroll"><table>
<tr><th></th>{% for head in sets.heads %}<th class="number">{{ head }}</th>{% endfor %}</tr>
{% for name, values in sets.rows %}<tr><td>{{ name }}</td>{% for value in values %}<td class="number">{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endif %}

{% if passes %}<h2>Passes <small>how often the rows of each source were gone through</small></h2>
<div class="card"><div class="bars">
{% for bar in passes %}<div class="ours">
<span>{{ bar.label }}</span><i style="width:{{ '%.1f' % bar.percent }}%"></i><b>{{ bar.value }}</b>
</div>
{% endfor %}</div></div>
{% endif %}

{% if sample or samples %}<h2>What the model writes</h2>
{% if sample %}<div class="card"><pre>{{ sample }}</pre></div>
{% endif %}{% if samples %}<div class="card{{ ' below' if sample else '' }}"><details{{ '' if sample else ' open' }}>
<summary>on the way</summary>
{% for each in samples %}<h3>step {{ each.step }}</h3>{% for text in each.texts %}<pre class="soft">{{ text }}</pre>{% endfor %}
{% endfor %}</details></div>
{% endif %}{% endif %}

{% if profile %}<h2>Profile <small>{{ profile.where }}</small></h2>
<div class="card scroll"><table>
<tr><th>operation</th><th class="number">calls a step</th><th class="number">ms a step</th>
<th class="number">share</th><th></th><th class="number">memory kept</th></tr>
{% for row in profile.rows %}<tr><td class="code">{{ row.name }}</td><td class="number">{{ row.calls }}</td>
<td class="number">{{ row.milliseconds }}</td><td class="number">{{ '%.1f' % row.percent }}%</td>
<td class="bar"><i style="width:{{ '%.1f' % row.percent }}%"></i></td><td class="number">{{ row.bytes }}</td></tr>
{% endfor %}</table><p class="note">An operation's own time, without those that it calls. In profile/: {{ profile.files|join(', ') }};
open a trace at chrome://tracing or ui.perfetto.dev.</p></div>
{% if profile.charts %}<div class="charts below">
{% for chart in profile.charts %}<figure class="card"><figcaption>{{ chart.title }}<span>{{ chart.note }}</span></figcaption>
{{ chart.svg }}</figure>
{% endfor %}</div>{% endif %}
{% endif %}

{% if summary %}<h2>Summary</h2>
<div class="card"><dl class="pairs" style="margin:0">
{% for key, value in summary %}<div><dt>{{ key }}</dt><dd>{{ value }}</dd></div>
{% endfor %}</dl></div>
{% endif %}

{% if attempts %}<h2>Attempts <small>{{ attempts|length }}</small></h2>
<div class="card scroll"><table>
<tr><th class="number">attempt</th><th class="number">from step</th><th class="number">to step</th>
<th>processes</th><th class="number">lasted</th><th>ended</th></tr>
{% for each in attempts %}<tr><td class="number">{{ each.number }}</td>
<td class="number">{{ each.begin }}</td><td class="number">{{ each.end }}</td>
<td>{{ each.ran }}</td><td class="number">{{ each.lasted }}</td>
<td class="wide"><span class="kind {{ each.tone }}">{{ each.ended }}</span></td></tr>
{% endfor %}</table></div>
{% endif %}

{% if events %}<h2>Events <small>{{ events|length }}
{% if left_out %} of {{ events|length + left_out }}, the rest in events.jsonl{% endif %}</small></h2>
<div class="card scroll"><table>
<tr><th class="number">after</th><th class="number">attempt</th><th class="number">step</th><th>event</th><th></th></tr>
{% for event in events %}<tr>
<td class="number">{{ event.after }}</td><td class="number">{{ event.attempt }}</td><td class="number">{{ event.step }}</td>
<td><span class="kind {{ event.tone }}">{{ event.kind }}</span></td><td class="wide">{{ event.told }}</td>
</tr>
{% endfor %}</table></div>
{% endif %}

<h2>What to try next</h2>
<div class="card next">
{% for hint in hints %}<div><p>{{ hint.text }}</p><pre>{{ hint.command }}</pre></div>
{% endfor %}</div>

{% if config %}<h2>Configuration</h2>
<div class="card"><details><summary>config.yaml</summary><pre>{{ config }}</pre></details></div>
{% endif %}

<footer>{{ convention }}<br>Goodput: time in steps whose result is still in the weights / time since the run's first start.</footer>
</main>
</body>
</html>
"""
)

# Two runs beside each other.
COMPARISON = (
    HEAD
    + """<body>
<main>
<header><h1>{{ name }}</h1><p>{{ told }}</p></header>

{% for title, rows in differences if rows %}<h2>{{ title }}</h2>
<div class="card scroll"><table>
<tr><th></th><th class="number">{{ first }}</th><th class="number">{{ second }}</th></tr>
{% for row in rows %}<tr><td>{{ row[0] }}</td>{% for value in row[1:] %}<td class="number wide">{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}

<h2>Curves</h2>
{% if charts %}<div class="charts">
{% for chart in charts %}<figure class="card"><figcaption>{{ chart.title }}<span>{{ chart.note }}</span></figcaption>
{{ chart.svg }}</figure>
{% endfor %}</div>{% else %}<div class="card">No figures yet.</div>{% endif %}
</main>
</body>
</html>
"""
)
