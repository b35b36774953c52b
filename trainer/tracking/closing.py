"""The end of a run, told: its figures beside what needs no training, what the model writes, where everything is, what to try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from trainer.atomic import write_text
from trainer.config import to_dict
from trainer.run import RunDir, load_frozen
from trainer.tracking.figures import baselines, shown
from trainer.tracking.report import SAMPLE, hints, relative, write

T = TypeVar("T")


def closing(path: Path, console: Console) -> None:
    """Write sample.txt and report.html of a finished run, and print what a person wants to know of it."""
    run = RunDir(path)
    config = load_frozen(run.config_path)
    # A model of examples with labels writes nothing.
    sample = "" if config.task.fields else _extra(console, "sample", lambda: sample_of(run, config)) or ""
    if sample:
        write_text(run / SAMPLE, sample + "\n")
    page = _extra(console, "report", lambda: write(run.path))
    summary = run.summary or {}
    console.print()
    console.print(figures(summary, list(config.task.figures)))
    if sample:
        console.print("\n[bold]what the model writes[/]")
        console.print(Padding(escape(sample), (0, 2)), soft_wrap=False)
    console.print()
    if page is not None:
        console.print(f"[bold]report[/]  {escape(relative(page))}", soft_wrap=True)
    console.print(f"[bold]model[/]   {escape(relative(run / 'model'))}/", soft_wrap=True)
    console.print("\n[bold]what to try next[/]")
    for hint in hints(run.path, to_dict(config), summary)[:2]:
        console.print(f"  {escape(hint['text'])}\n    {escape(hint['command']).replace(chr(10), chr(10) + '    ')}", soft_wrap=True)


def _extra(console: Console, name: str, make: Callable[[], T]) -> T | None:
    """What make returns; where it fails, None and a line that says so: the run is finished and saved, and this is no part of it."""
    try:
        return make()
    except Exception as error:
        console.print(escape(f"no {name}: {type(error).__name__}: {error}".splitlines()[0]), soft_wrap=True)
        return None


def figures(summary: dict[str, Any], of_task: list[str]) -> Table:
    """The figures that matter, each beside its baseline where there is one. of_task: those that the task makes."""
    beside = baselines(summary) | {
        "tokens_per_second": "over all devices",
        "mfu": "of the devices' bf16 peak",
        "goodput": "of the time since the first start",
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    keys = (
        "loss",
        "eval_loss",
        *of_task,
        "tokens_per_second",
        "mfu",
        "goodput",
    )
    for key in keys:
        if summary.get(key) is not None:
            name = {"eval_loss": "held-out loss", "loss": f"loss at step {summary.get('steps') or 0:,}"}.get(key, key.replace("_", " "))
            table.add_row(name, shown(key, summary[key]), beside.get(key, ""))
    return table


def sample_of(run: RunDir, config: Any) -> str:
    """What the model in `model/` writes, or fills in. Raises whatever comes up: a plugin's model may be none that can be opened."""
    from trainer.data.corpus import open_corpus
    from trainer.generation import open_writer
    from trainer.sampling import texts

    resolved = run.placement
    corpus = open_corpus(resolved["corpus"], resolved["rows"], config)
    return texts(open_writer(run / "model", config.sequence_length), corpus, config, 1)[0]["text"]
