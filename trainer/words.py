"""The words of a verb that composes a run: its flags, the multirun, and what `--help` and `--cfg job` print."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.table import Table

from trainer.choices import Choice, base, groups
from trainer.composition import available, compose, compose_tree, parse, sweep
from trainer.config import GROUPS, Config


def composed(words: list[str], verb: str) -> list[Config] | None:
    """The configurations that the words ask for: one, or one a job of a multirun. None: they asked for help or for the YAML."""
    if "--help" in words or "-h" in words:
        overrides = [word for word in words if not word.startswith("-")]
        show_help(verb, overrides)
        return None
    if "--cfg" in words:
        from omegaconf import OmegaConf

        at = words.index("--cfg")
        print(OmegaConf.to_yaml(compose_tree(words[:at] + words[at + 2 :]), resolve=True), end="")
        return None
    if "-m" in words or "--multirun" in words:
        overrides = [word for word in words if word not in ("-m", "--multirun")]
        return multirun(overrides)
    return [compose(*words)]


def multirun(overrides: list[str]) -> list[Config]:
    """One configuration a job; each has a run directory below the common one, named by the overrides that vary, sorted."""
    varying = {override.key_or_group for override in parse(overrides) if override.is_sweep_override()}
    jobs = []
    for job in sweep(overrides):
        config = compose(*job)
        own = sorted(word.lstrip("+").replace("/", "_") for word in job if word.lstrip("+").split("=", 1)[0] in varying)
        jobs.append(dataclasses.replace(config, output_dir=f"{config.output_dir}/{','.join(own)}") if own else config)
    return jobs


def show_help(verb: str, overrides: list[str]) -> None:
    """Groups with their names, and the options of the composition that the words give."""
    console = Console(highlight=False)
    console.print(f"usage: trainer {verb} [group=name …] [key=value …] [-m] [--cfg job]\n")
    config = compose(*(overrides if any("=" in word for word in overrides) else ["steps=1"]))
    table = Table("group", "names", box=None, pad_edge=False, header_style="bold")
    for group in (*GROUPS, "experiment"):
        table.add_row(group, ", ".join(available(group)))
    console.print(table)
    options = Table("key", "value", "meaning", box=None, pad_edge=False, header_style="bold")
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
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
