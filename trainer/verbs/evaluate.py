"""`trainer evaluate run=runs/quickstart`: the figures of a trained model, computed anew.

trainer evaluate run=runs/reviews split=train
trainer evaluate run=runs/reviews set=books
trainer evaluate run=runs/reviews input=test.jsonl
trainer evaluate run=runs/reviews strategy=fsdp processes=2
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError, find, load_choices
from trainer.options import option, parse, require_device

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.run import RunDir

SUMMARY = "compute a run's figures anew, on any split, set or file"

SPLITS = ("eval", "train")
# Of more labels a matrix fits no terminal; the file has it.
_MATRIX = 16


@dataclass
class Options:
    """What `evaluate` takes."""

    run: str = option(help="run directory")
    split: str = option("eval", help="of the run's own data: eval (what is held out, and the named sets) or train")
    set: str | None = option(None, help="one of the run's sets alone: held_out, or a name below evals")
    input: str | None = option(None, help="other files instead: of examples, or of text; a path, folder or pattern")
    strategy: str | None = option(None, help="how the model is placed: ddp, fsdp, zero3 …; default: one process")
    processes: int | None = option(None, help="how many, on this machine; default: all GPUs, 2 on the CPU")
    device: str | None = option(None, help="cpu or cuda; default: as the run has it")

    def __post_init__(self) -> None:
        require_device(self.device)
        if self.split not in SPLITS:
            raise ConfigError(f"split: {self.split!r}; allowed: {', '.join(SPLITS)}")
        given = [key for key, is_given in (("split=train", self.split == "train"), ("set", self.set), ("input", self.input)) if is_given]
        if len(given) > 1:
            raise ConfigError(f"{given[0]} and {given[1]}: each says what is evaluated on; give one of them")


def run(words: list[str]) -> int:
    """Print the figures, beside those that the run recorded, and keep them. Raises ConfigError where there is no such run, no model yet,
    or nothing to evaluate on."""
    options = parse(words, Options, "evaluate")
    if options is None:
        return 0
    from trainer.evaluating import evaluate, own_sets, set_of_files
    from trainer.front_door import finished
    from trainer.run import load_frozen

    found = finished(options.run)
    frozen = load_frozen(found.config_path)
    sets = [set_of_files(options.input, frozen)] if options.input else own_sets(found, options.split, options.set)
    done = evaluate(found, placed(frozen, options), sets)
    _print(done.figures, (found.summary or {}) if options.input is None and options.split == "eval" else {}, options.set is None)
    for name, tables in done.tables.items():
        _print_tables(tables, name)
    _keep(found, [each.name for each in sets], done.figures, done.tables)
    return 0


def held_out(run: RunDir, device: str | None = None) -> dict[str, Any]:
    """Figures of `model/` on the held-out split of the run's own data and on its named sets, in this process."""
    from trainer.evaluating import evaluate, own_sets
    from trainer.run import load_frozen

    config = placed(load_frozen(run.config_path), Options(str(run.path), device=device))
    return evaluate(run, config, own_sets(run, "eval", None)).figures


def placed(config: Config, options: Options) -> Config:
    """The configuration with the placement that is asked for. Raises ConfigError where there is none of that name."""
    load_choices(launchers=True)
    strategy = find("strategy", options.strategy or ("single" if options.processes in (None, 1) else "ddp"))()
    if strategy.processes is not None and options.processes not in (None, strategy.processes):  # type: ignore[attr-defined]
        raise ConfigError(f"processes: {options.processes}, but strategy={options.strategy} is {strategy.processes} process")  # type: ignore[attr-defined]
    launcher = find("launcher", "local")(processes=options.processes)  # type: ignore[call-arg]
    device = config.device if options.device is None else find("device", options.device)()
    return replace(config, strategy=strategy, launcher=launcher, device=device)  # type: ignore[arg-type]


def _print(figures: dict[str, Any], recorded: dict[str, Any], baselines: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from trainer.tracking.figures import shown

    table = Table("held out" if recorded else "figure", box=None, pad_edge=False, header_style="bold")
    table.add_column("now", justify="right")
    if recorded:
        table.add_column("in summary.json", justify="right")
    for key, value in figures.items():
        beside = [shown(key, recorded.get(key))] if recorded else []
        table.add_row(key.removeprefix("eval_").replace("_", " ") if not recorded else key.replace("_", " "), shown(key, value), *beside)
    for key, value in recorded.items() if baselines else ():
        if value is not None and key.endswith(("gzip_bits_per_byte", "xz_bits_per_byte", "_from_neighbour")):
            table.add_row(key.replace("_", " "), "", shown(key, value), style="dim")
    Console(highlight=False).print(table)


def _print_tables(tables: dict[str, Any], name: str) -> None:
    """Figures by label, and how labels are confused."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    rows = {label: row for label, row in tables.get("by_label", {}).items() if isinstance(row, dict)}
    if rows:
        columns = list(next(iter(rows.values())))
        table = Table("label", title=f"by label{f', {name}' if name else ''}", title_justify="left", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right")
        for label, row in rows.items():
            table.add_row(label, *(f"{row[column]:,.0f}" if column == "support" else f"{row[column]:.3f}" for column in columns))
        console.print("", table)
    labels, counts = (tables.get("confusion", {}).get(key, []) for key in ("labels", "counts"))
    if 1 < len(labels) <= _MATRIX:
        table = Table("true, below; predicted, beside", title="confusion", title_justify="left", box=None, pad_edge=False)
        for label in labels:
            table.add_column(label, justify="right")
        for number, (label, row) in enumerate(zip(labels, counts, strict=True)):
            table.add_row(label, *(f"[bold]{count:,}[/]" if place == number else f"{count:,}" for place, count in enumerate(row)))
        console.print("", table)


def _keep(run: RunDir, names: list[str], figures: dict[str, Any], tables: dict[str, Any]) -> None:
    """`evaluation/NAME.json` of each set: its figures, and what stands beside them."""
    from trainer.atomic import write_json
    from trainer.evaluating import HELD_OUT
    from trainer.tracking.report import relative

    (run / "evaluation").mkdir(exist_ok=True)
    others = tuple(f"eval_{name}_" for name in names if name)
    for name in names:
        mine = {key: value for key, value in figures.items() if (key.startswith(f"eval_{name}_") if name else not key.startswith(others))}
        path = run / "evaluation" / f"{name or HELD_OUT}.json"
        write_json(path, {"figures": mine, **tables.get(name, {})})
        print(relative(path))
