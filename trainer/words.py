"""The words of a verb that composes a run: its flags, the multirun, and what `--help` and `--cfg job` print."""

from __future__ import annotations

import dataclasses

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from trainer.choices import Choice, ConfigError, base, groups
from trainer.composition import available, compose_tree, parse, sweep, to_config
from trainer.config import BUDGETS, GROUPS, UNNAMEABLE, Config

_FLAGS = ("-h", "--help", "-m", "--multirun", "--cfg")


def composed(words: list[str], verb: str) -> list[Config] | None:
    """The configurations that the words ask for: one, or one a job of a multirun. None: they asked for help or for the YAML."""
    overrides, flags = split(words)
    if flags & {"-h", "--help"}:
        show_help(verb, overrides)
        return None
    several = bool(flags & {"-m", "--multirun"})
    if not several and (word := next((override.input_line for override in parse(overrides) if override.is_sweep_override()), None)):
        key, value = word.split("=", 1)
        raise ConfigError(f"{key}: {value} is several values; add -m to run each, or quote one that holds commas: '{key}=\"{value}\"'")
    trees = job_trees(overrides) if several else [compose_tree(overrides)]
    if "--cfg" in flags:
        for number, tree in enumerate(trees):
            print("---\n" * (number > 0) + OmegaConf.to_yaml(tree, resolve=True), end="")
        return None
    if verb == "prepare":
        # The same data serves every budget.
        trees = [with_budget(tree) for tree in trees]
    return [to_config(tree) for tree in trees]


def split(words: list[str]) -> tuple[list[str], set[str]]:
    """(overrides, flags). Raises ConfigError where `--cfg` is followed by something else than `job`."""
    overrides, flags, rest = [], set(), iter(words)
    for word in rest:
        if word not in _FLAGS:
            overrides.append(word)
            continue
        flags.add(word)
        if word == "--cfg" and (what := next(rest, None)) != "job":
            raise ConfigError(f"--cfg: {'nothing' if what is None else repr(what)} after it; allowed: --cfg job")
    return overrides, flags


def multirun(overrides: list[str]) -> list[Config]:
    """One configuration a job."""
    return [to_config(tree) for tree in job_trees(overrides)]


def job_trees(overrides: list[str]) -> list[DictConfig]:
    """One composition a job, set apart by the overrides that vary, sorted: its name, and its run directory below the common one."""
    varying = {override.key_or_group for override in parse(overrides) if override.is_sweep_override()}
    trees = []
    for job in sweep(overrides):
        tree = compose_tree(job)
        own = sorted(word.lstrip("+") for word in job if word.lstrip("+").split("=", 1)[0] in varying)
        if own:
            # The directory is computed from the common name, so it comes first.
            tree.output_dir = "/".join([tree.output_dir, ",".join(own).replace("/", "_")])
            tree.name = UNNAMEABLE.sub("_", ",".join([tree.name, *(word for word in own if not word.startswith("name="))]))
        trees.append(tree)
    return trees


def with_budget(tree: DictConfig) -> DictConfig:
    """The composition with a budget of one step where it has none."""
    if all(tree[key] is None for key in BUDGETS):
        tree.steps = 1
    return tree


def show_help(verb: str, overrides: list[str]) -> None:
    """Groups with their names, and the options of the composition that the words give."""
    console = Console(highlight=False)
    console.print(f"usage: trainer {verb} [group=name …] [key=value …] [-m] [--cfg job]\n", markup=False)
    console.print("-m runs every combination of the values that commas part: optim.lr=1e-3,3e-3 seed=1,2", markup=False)
    console.print("--cfg job prints the whole configuration and does nothing more; with -m that of each job\n", markup=False)
    tree = compose_tree(override.input_line or "" for override in parse(overrides) if not override.is_sweep_override())
    budget = {key: tree[key] for key in BUDGETS}
    config = to_config(with_budget(tree))
    table = Table("group", "names", box=None, pad_edge=False, header_style="bold")
    for group in (*GROUPS, "experiment"):
        table.add_row(group, ", ".join(available(group)))
    console.print(table)
    options = Table("key", "value", "meaning", box=None, pad_edge=False, header_style="bold")
    for field in dataclasses.fields(Config):
        value = budget.get(field.name, getattr(config, field.name))
        if field.name in groups():
            continue
        if dataclasses.is_dataclass(value):
            _rows(options, field.name, value)
        else:
            options.add_row(field.name, str(value), field.metadata.get("help", ""))
    for group in GROUPS:
        chosen = getattr(config, group)
        options.add_row(f"[bold]{group}={chosen.name}[/]", "", (type(chosen).__doc__ or base(group).__doc__ or "").splitlines()[0])
        _rows(options, group, chosen)
    console.print()
    console.print(options)


def _rows(table: Table, prefix: str, value: object) -> None:
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        if not (isinstance(value, Choice) and field.name == "name"):
            inner = getattr(value, field.name)
            table.add_row(f"{prefix}.{field.name}", str(getattr(inner, "value", inner)), field.metadata.get("help", ""))
