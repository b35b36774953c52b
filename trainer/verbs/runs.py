"""`trainer runs`: the runs there are; `diff a b`: how two differ; `spread`: means over seeds and draws; `checkpoints`: what one has
saved; `clean`: remove what can go.

trainer runs 'loss<2' strategy=ddp name=quick*
trainer runs diff quickstart wide
trainer runs spread data.shots=8
trainer runs checkpoints run=quickstart verify=true
trainer runs clean name=quick* keep=1 yes=true
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError
from trainer.options import option, parse, usage

if TYPE_CHECKING:
    from trainer.catalogue.conditions import Condition

SUMMARY = (
    "list runs, compare two of them (diff), average over draws (spread), check what one has saved (checkpoints), remove what can go (clean)"
)

WORDS = ("diff", "spread", "checkpoints", "clean")

_GRAMMAR = """  CONDITION    KEY = != < <= > >= VALUE, quoted for the shell: 'loss<2' strategy=ddp name=quick* 'optim.lr>=1e-3' 'age<2d'"""
_DIFF = """usage: trainer runs diff RUN RUN [root=…]
  RUN          a run directory, or a run's name below root"""


@dataclass
class Options:
    """What `runs` takes, beside conditions."""

    root: str = option("runs", help="folder that is searched")
    sort: str = option("age", help="column to sort by")

    def __post_init__(self) -> None:
        if not Path(self.root).is_dir():
            raise ConfigError(f"root: {self.root}: no such folder; `trainer train` makes runs/ where it is started")


@dataclass
class CleanOptions(Options):
    """What `runs clean` takes, beside conditions."""

    keep: int = option(1, help="newest checkpoints that a finished run keeps; with 0 it can be loaded, but not extended")
    yes: bool = option(False, help="remove without asking")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep < 0:
            raise ConfigError(f"keep: {self.keep}; at least 0")


@dataclass
class CheckpointsOptions:
    """What `runs checkpoints` takes."""

    run: str = option(help="a run directory, or a run's name below root")
    verify: bool = option(False, help="read every file and compare its checksums; exit code 1 where one is damaged")
    root: str = option("runs", help="folder of the runs")


def run(words: list[str]) -> int:
    """List, compare, check or clean. Raises ConfigError for words that are none of its own."""
    if words[:1] == ["diff"]:
        return _diff(words[1:])
    if words[:1] == ["spread"]:
        return _spread(words[1:])
    if words[:1] == ["checkpoints"]:
        return _checkpoints(words[1:])
    if words[:1] == ["clean"]:
        return _clean(words[1:])
    asked = _asked(words, Options, "runs")
    if asked is None:
        return 0
    options, conditions = asked
    from trainer.catalogue import tables
    from trainer.catalogue.conditions import selected
    from trainer.catalogue.entries import entries

    found = selected(entries(Path(options.root)), conditions)
    console = tables.console()
    if found:
        tables.show(console, tables.listing(found, (each.key for each in conditions), options.sort))
    else:
        console.print(f"no run in {options.root}{' meets all conditions' if conditions else ''}", markup=False)
    return 0


def _asked(words: list[str], kind: type[Any], verb: str) -> tuple[Any, list[Condition]] | None:
    """Options and conditions; None where help was asked for, and printed."""
    if {"-h", "--help"} & set(words):
        print(usage(kind, verb).replace(verb, f"{verb} [CONDITION …]", 1), _GRAMMAR, sep="\n")
        if verb == "runs":
            print(f"\nalso:\n{_DIFF}\nusage: trainer runs spread [CONDITION …] [root=…]")
            print("usage: trainer runs checkpoints run=… [verify=true] [root=…]")
            print("usage: trainer runs clean [CONDITION …] [keep=…] [yes=true]")
        return None
    from trainer.catalogue.conditions import condition

    own = [word for word in words if word.partition("=")[0] in {field.name for field in fields(kind)}]
    return parse(own, kind, verb), [condition(word) for word in words if word not in own]


def _spread(words: list[str]) -> int:
    """Print means over runs that differ in what is drawn alone."""
    asked = _asked(words, Options, "runs spread")
    if asked is None:
        return 0
    options, conditions = asked
    from trainer.catalogue import tables
    from trainer.catalogue.conditions import selected
    from trainer.catalogue.entries import entries
    from trainer.catalogue.spread import alike

    groups = alike(selected(entries(Path(options.root)), conditions))
    console = tables.console()
    if groups:
        console.print("mean ± standard deviation over runs that differ in seed or data.draw alone")
        tables.show(console, tables.spread(groups))
    else:
        console.print("no two finished runs differ in seed or data.draw alone")
    return 0


def _diff(words: list[str]) -> int:
    """Print how two runs differ, and where the picture is."""
    if {"-h", "--help"} & set(words):
        print(_DIFF)
        return 0
    names = [word for word in words if not word.startswith("root=")]
    if len(names) != 2:
        raise ConfigError(f"runs diff: two runs are needed, {len(names)} given\n{_DIFF}")
    options = parse([word for word in words if word not in names], Options, "runs diff")
    assert options is not None
    from trainer.catalogue import tables
    from trainer.catalogue.comparison import compare, picture
    from trainer.catalogue.entries import named
    from trainer.tracking.figures import shown
    from trainer.tracking.report import relative

    comparison = compare(*(named(name, Path(options.root)) for name in names))
    console = tables.console()
    for role, title in (("identity", "what is computed"), ("placement", "where and how")):
        rows = [(key, str(first), str(second)) for key, first, second in comparison.differences[role]]
        if rows:
            tables.show(console, tables.pairs(f"{title} ({role})", comparison.labels, rows))
        else:
            console.print(f"[bold]{title} ({role})[/]: no difference")
        console.print()
    figures = [(key, shown(key, first), shown(key, second)) for key, first, second in comparison.figures]
    if figures:
        tables.show(console, tables.pairs("figures", comparison.labels, figures))
        console.print()
    console.print(f"[bold]training loss[/]: {comparison.told}", soft_wrap=True)
    console.print(f"[bold]picture[/]: {relative(picture(comparison))}", soft_wrap=True)
    return 0


def _checkpoints(words: list[str]) -> int:
    """Show what a run has saved, and whether it is whole."""
    options = parse(words, CheckpointsOptions, "runs checkpoints")
    if options is None:
        return 0
    from trainer.catalogue import tables
    from trainer.catalogue.checkpoints import checkpoints
    from trainer.catalogue.entries import entries, named

    root = Path(options.root)
    entry = named(options.run, root)
    console = tables.console()
    lines = checkpoints(entry, entries(root) if root.is_dir() else [], options.verify)
    if not lines:
        console.print(f"no checkpoint in {entry.run.checkpoints}", markup=False)
        return 0
    tables.show(console, tables.checkpoints(lines))
    damaged = sum(line.state == "damaged" for line in lines)
    if damaged:
        console.print(f"{damaged} of {len(lines)} damaged: a resume passes over them to the newest that is whole", soft_wrap=True)
    return int(damaged > 0)


def _clean(words: list[str]) -> int:
    """Show what can go, ask, remove."""
    asked = _asked(words, CleanOptions, "runs clean")
    if asked is None:
        return 0
    options, conditions = asked
    from trainer.catalogue import tables
    from trainer.catalogue.cleaning import delete, leftovers
    from trainer.catalogue.conditions import selected
    from trainer.catalogue.entries import entries
    from trainer.tracking.figures import size

    every = entries(Path(options.root))
    left = leftovers(selected(every, conditions), options.keep, every)
    console = tables.console()
    if not left:
        console.print("nothing to remove")
        return 0
    tables.show(console, tables.removable(left))
    console.print(f"together {size(sum(each.size for each in left))}")
    if not options.yes and not _agreed():
        console.print("nothing was removed; yes=true removes it")
        return 0
    freed, spared = delete(left, options.keep, every)
    for text in spared:
        console.print(f"left alone: {text}", soft_wrap=True, markup=False)
    console.print(f"removed {size(freed)}")
    return 0


def _agreed() -> bool:
    return sys.stdin.isatty() and input("remove all this? [y/N] ").strip().lower() in ("y", "yes")
