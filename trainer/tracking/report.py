"""report.html: a run on one page, from the files of its directory alone; readable while the run is still going on."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from trainer.atomic import write_text
from trainer.choices import groups
from trainer.mfu import CONVENTION
from trainer.sampling import beginning
from trainer.tracking import jsonl, sections
from trainer.tracking.charts import SERIES, Chart, curves_of, svg
from trainer.tracking.figures import number, percent, rate, readable, shown, stopped_early
from trainer.tracking.progress import duration
from trainer.tracking.sets import curves_of_sets, figures_of_sets
from trainer.tracking.summary import SUMMARY

REPORT, SAMPLE = "report.html", "sample.txt"
_EVENTS = 200


def write(run_dir: Path) -> Path:
    """Write report.html into a run directory and return its path. Whatever file is missing is left out of the page."""
    from trainer.tracking.page import TEMPLATE

    write_text(run_dir / REPORT, rendered(TEMPLATE, page(run_dir)))
    return run_dir / REPORT


def rendered(template: str, facts: dict[str, Any]) -> str:
    """A page of its facts, `charts` drawn."""
    from jinja2 import Environment
    from markupsafe import Markup

    def drawn(charts: list[Chart]) -> list[dict[str, str]]:
        return [{"title": chart.title, "note": chart.note, "svg": Markup(svg(chart))} for chart in charts]

    facts = facts | {"charts": drawn(facts["charts"])}
    if facts.get("profile"):
        facts["profile"] = facts["profile"] | {"charts": drawn(facts["profile"]["charts"])}
    # What is shown was written by models and by data: all of it is escaped.
    return Environment(autoescape=True, trim_blocks=False).from_string(template).render(facts)


def page(run_dir: Path) -> dict[str, Any]:
    """What the page shows."""
    config = _yaml(run_dir / "config.yaml")
    summary = jsonl.read_object(run_dir / SUMMARY)
    lines, events = jsonl.read(run_dir / jsonl.METRICS), jsonl.read(run_dir / jsonl.EVENTS)
    lines = [line for line in lines if isinstance(line.get("step"), int)]
    trained = jsonl.kept([line for line in lines if line.get("interval_steps")])
    evaluated = jsonl.kept([line for line in lines if line.get("eval_loss") is not None])
    terms = sorted({key for line in trained for key in line if key.endswith("_loss") and not key.startswith("eval_")})
    sets = figures_of_sets(lines, terms)
    apart = (*(f"eval_{name}_" for name in sets), "passes_")
    starts = [event for event in events if event.get("kind") == "start"]
    marks = [start["resumed_at"] for start in starts if start.get("resumed_at")]
    return {
        "name": config.get("name") or run_dir.name,
        "finished": bool(summary),
        "subtitle": _subtitle(config, summary, starts, [event for event in events if event.get("kind") == "early_stop"]),
        "tiles": tiles(summary, trained, evaluated, events),
        "comparisons": comparisons(summary),
        "charts": charts(trained, evaluated, lines, terms, sets, summary, marks),
        "resumed": bool(marks),
        "attempts": sections.attempts(events),
        "sets": sections.sets(lines, sets),
        "passes": sections.passes(summary, events),
        "profile": sections.profile(run_dir),
        "sample": _text(run_dir / SAMPLE),
        "samples": sections.samples(run_dir),
        "summary": [(readable(key), shown(key, value)) for key, value in summary.items() if not key.startswith(apart)],
        "events": [_event(event, events[0].get("time")) for event in events[-_EVENTS:]],
        "left_out": max(0, len(events) - _EVENTS),
        "hints": hints(run_dir, config, summary),
        "config": (run_dir / "config.yaml").read_text() if config else "",
        "convention": CONVENTION,
    }


def _subtitle(config: dict[str, Any], summary: dict[str, Any], starts: list[dict[str, Any]], early: list[dict[str, Any]]) -> str:
    model, last = config.get("model") or {}, (starts or [{}])[-1]
    sizes = [f"{key} {model[key]}" for key in ("layers", "hidden") if key in model]
    world = summary.get("world_size") or last.get("world_size")
    strategy = summary.get("strategy") or last.get("strategy")
    parts = [
        " ".join([str(model.get("name", "")), f"({', '.join(sizes)})" if sizes else ""]).strip(),
        (config.get("task") or {}).get("name"),
        f"data {config['data'].get('name')}" if config.get("data") else None,
        f"{strategy} on {world} process{'' if world == 1 else 'es'}" if world else strategy,
        (config.get("precision") or {}).get("name"),
        stopped_early(early[-1]) if early else None,
    ]
    return " · ".join(part for part in parts if part)


def tiles(
    summary: dict[str, Any], trained: list[dict[str, Any]], evaluated: list[dict[str, Any]], events: list[dict[str, Any]]
) -> list[dict[str, str]]:
    """The figures at the top; of an unfinished run those of its last lines."""
    last = trained[-1] if trained else {}
    now = {"steps": last.get("step"), **last, **(evaluated[-1] if evaluated else {}), **summary}
    times = [line["time"] for line in (*events, *trained, *evaluated) if isinstance(line.get("time"), (int, float))]
    wall = duration(max(times) - min(times)) if times else None
    found = [
        ("held-out loss", number(now.get("eval_loss")), "nats"),
        ("loss", number(now.get("loss")), f"at step {now['steps']:,}" if now.get("steps") else ""),
        ("bits per byte", number(now.get("bits_per_byte") or now.get("eval_bits_per_byte")), _beside_gzip(now)),
        ("throughput", rate(now.get("tokens_per_second")), "tokens a second, all devices"),
        ("MFU", percent(now.get("mfu")), "of the devices' bf16 peak"),
        ("goodput", percent(now.get("goodput")), f"of {wall}" if wall else ""),
        ("tokens", rate(now.get("tokens")), "in training"),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in found if value]


def _beside_gzip(figures: dict[str, Any]) -> str:
    return f"gzip: {figures['gzip_bits_per_byte']:.3f}" if figures.get("gzip_bits_per_byte") else "held-out text"


def comparisons(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's figure beside what needs no training."""
    found = []
    if summary.get("bits_per_byte"):
        rows = [("this model", summary["bits_per_byte"])]
        rows += [(f"{kind} -9", summary[f"{kind}_bits_per_byte"]) for kind in ("xz", "gzip") if summary.get(f"{kind}_bits_per_byte")]
        note = "Bits a byte of the held-out text costs; less is better. The compressors have seen nothing but that text."
        found.append(_comparison("Held-out text, compressed", rows, note, lambda value: f"{value:.3f} bits/byte"))
    if summary.get("masked_accuracy") is not None:
        rows = [("this model", summary["masked_accuracy"])]
        if summary.get("masked_accuracy_from_neighbour") is not None:
            rows.append(("most frequent neighbour", summary["masked_accuracy_from_neighbour"]))
        found.append(
            _comparison("Masked tokens found", rows, "Share of held-out masked tokens; more is better.", lambda value: f"{value:.1%}", 1.0)
        )
    if summary.get("next_sentence_accuracy") is not None:
        low, high = (summary.get(f"next_sentence_accuracy_{end}_99") for end in ("low", "high"))
        note = "Share of held-out pairs; half of them do follow."
        if low is not None and high is not None:
            note += f" 99 % interval: {low:.1%} to {high:.1%}."
        rows = [("this model", summary["next_sentence_accuracy"]), ("a coin", 0.5)]
        found.append(_comparison("Next sentence told", rows, note, lambda value: f"{value:.1%}", 1.0))
    return found


def _comparison(title: str, rows: list[tuple[str, float]], note: str, form: Any, full: float | None = None) -> dict[str, Any]:
    most = full or max(value for _, value in rows) or 1.0
    bars = [
        {"label": label, "value": form(value), "percent": 100 * value / most, "ours": index == 0}
        for index, (label, value) in enumerate(rows)
    ]
    return {"title": title, "note": note, "bars": bars}


Lines = list[dict[str, Any]]


def charts(
    trained: Lines, evaluated: Lines, lines: Lines, terms: list[str], sets: list[str], summary: dict[str, Any], marks: list[int]
) -> list[Chart]:
    """The curves that there are figures for. lines: of metrics.jsonl; trained, evaluated: those of steps and of the held-out part."""
    # The z-loss is no loss in nats, and would flatten the others.
    terms = [term for term in terms if not term.endswith("_z_loss")]
    loss = curves_of(trained, "loss", "training", smoothed=True) + curves_of(evaluated, "eval_loss", "held out", "second", points=True)
    found = [Chart("Loss", "the objective, nats; faint: each logged step, bold: their running mean", loss, marks=marks)]
    if len(terms) > 1:
        parts = [curves_of(trained, term, term.removesuffix("_loss"), colour)[0] for term, colour in zip(terms, SERIES, strict=False)]
        found.append(Chart("Loss by term", "nats a target", parts, marks=marks))
    found.append(Chart("Loss by source and set", "held out, the objective, nats", curves_of_sets(lines, sets), marks=marks))
    levels = {kind: summary[f"{kind}_bits_per_byte"] for kind in ("gzip", "xz") if summary.get(f"{kind}_bits_per_byte")}
    bits = curves_of(evaluated, "eval_bits_per_byte", "held out", "second", points=True)
    found.append(Chart("Bits per byte", "held-out text; dashed: compressors", bits, levels=levels))
    accuracies = sorted({key for line in evaluated for key in line if key.endswith("_accuracy")})
    accuracies = [key for key in accuracies if not key.startswith(tuple(f"eval_{name}_" for name in sets))]
    shares = [
        curve
        for key, colour in zip(accuracies, SERIES, strict=False)
        for curve in curves_of(evaluated, key, key.removeprefix("eval_").removesuffix("_accuracy").replace("_", " "), colour, points=True)
    ]
    found.append(Chart("Accuracy", "held-out", shares, unit="share", from_zero=True))
    speed = curves_of(trained, "tokens_per_second", "tokens a second")
    found.append(Chart("Throughput", "tokens a second over all devices, real ones only", speed, "tokens/s", marks=marks, from_zero=True))
    found.append(Chart("MFU", "share of the devices' bf16 peak", curves_of(trained, "mfu", "MFU"), "share", marks=marks, from_zero=True))
    norm = curves_of(trained, "grad_norm", "gradient norm", smoothed=True)
    found.append(Chart("Gradient norm", "before clipping", norm, marks=marks))
    found.append(Chart("Learning rate", "as the schedule has it", curves_of(trained, "learning_rate", "learning rate"), from_zero=True))
    return [chart for chart in found if any(curve.values for curve in chart.curves)]


# Task → a prompt (None: words of its data), what the model does with it, and the class of transformers that loads it.
_USES: dict[str, tuple[str | None, str, str]] = {
    "clm": (None, "Let it write.", "AutoModelForCausalLM"),
    "mlm": ("The [MASK] is here.", "Let it fill in words.", "AutoModelForMaskedLM"),
    "mlm_nsp": ("The [MASK] is here.", "Let it fill in words.", "AutoModelForPreTraining"),
    "denoising": ("The <extra_id_0> is here.", "Let it fill in spans.", "AutoModelForSeq2SeqLM"),
}


def hints(run_dir: Path, config: dict[str, Any], summary: dict[str, Any]) -> list[dict[str, str]]:
    """Commands that follow from this run."""
    run = f"run={relative(run_dir)}"
    task = (config.get("task") or {}).get("name", "")
    reads = dict(getattr(groups().get("task", {}).get(task), "fields", {}))
    prompt, does, kind = _USES.get(task, _USES["clm"])
    if prompt is None and (config.get("data") or {}).get("name") != "stdlib":
        prompt = beginning(_text(run_dir / SAMPLE))
    found = []
    has_model = (run_dir / "model").is_dir()
    if has_model and reads:
        answers = f"{shlex.join(['trainer', 'predict', run])} input=new.jsonl output=answers.jsonl"
        found.append(("Let it answer examples of a file.", answers))
    elif has_model:
        found.append((does, f"{shlex.join(['trainer', 'generate', run])} prompt={_quoted(prompt or 'def ')}"))
    if summary and config.get("steps"):
        found.append(("Train longer: the command of this run, and", f"steps={2 * config['steps']} resume.extend=true"))
    layers = (config.get("model") or {}).get("layers")
    if summary and layers:
        found.append(("Another size beside this run: its command, and", f"model.layers={2 * layers} name={run_dir.name}-larger"))
    if not summary:
        found.append(("Go on with this run.", "the same command again"))
    if has_model and not reads:
        path = f"{relative(run_dir)}/model"
        found.append(("Load it in Python.", f"from transformers import {kind}\nmodel = {kind}.from_pretrained({path!r})"))
    found.append(("Compute the held-out figures anew.", shlex.join(["trainer", "evaluate", run])))
    return [{"text": text, "command": command} for text, command in found]


def _quoted(word: str) -> str:
    """For a shell, in double quotes where that is enough."""
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'


def relative(path: Path) -> str:
    """As a person in the working directory would name it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


_GOOD, _BAD = ("finish", "checkpoint"), ("nan", "restart", "failure", "give_up", "killed", "fallback", "halt", "disk_full", "upload_failed")


def _event(event: dict[str, Any], first: float | None) -> dict[str, Any]:
    kind = str(event.get("kind", ""))
    rest = {
        key: value
        for key, value in event.items()
        if key not in ("time", "attempt", "step", "rank", "kind") and value not in (None, "", [], {})
    }
    after = duration(event["time"] - first) if isinstance(event.get("time"), (int, float)) and first is not None else ""
    step = event.get("step")
    return {
        "after": after,
        "attempt": event.get("attempt", ""),
        "step": f"{step:,}" if isinstance(step, int) else "",
        "kind": kind,
        "tone": "good" if kind in _GOOD else "bad" if kind in _BAD else "",
        "told": " · ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in rest.items()),
    }


def _short(value: Any) -> str:
    if isinstance(value, (list, dict)) and len(json.dumps(value, default=str)) > 120:
        return "(in events.jsonl)"
    text = f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 240 else text[:240] + "…"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
