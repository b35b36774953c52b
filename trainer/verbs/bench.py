"""`trainer bench [key=value,value …]`: measure the throughput of every combination; `trainer bench compare A B`: two of them side by side.

trainer bench model=gpt2_small,bert_base precision=fp32,bf16 micro_batch=auto,8
trainer bench strategy=ddp,zero2,fsdp processes=1,2,4 scaling=weak
trainer bench compare runs/bench-before runs/bench-after threshold=0.05
torchrun --nnodes=2 --nproc-per-node=8 … -m trainer bench processes=1,2,4,8,16 scaling=weak
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.choices import ConfigError
from trainer.environment import RankEnv, foreign_rank
from trainer.options import option, parse, taken, usage

if TYPE_CHECKING:
    from trainer.bench.cells import Plan
    from trainer.bench.launching import Machines
    from trainer.bench.results import Results

SUMMARY = "measure throughput: models, strategies, precisions, micro-batches, processes; compare two benches"

INTERRUPTED = 130


@dataclass
class Options:
    """What `bench` takes beside the words of a run."""

    repeats: int = option(5, help="launches of each cell, in turns")
    steps: int = option(20, help="measured steps of a launch")
    warmup: int = option(5, help="steps before them")
    processes: str | None = option(None, help="numbers of processes, with commas; default: what the launcher chooses")
    scaling: str = option("strong", help="strong: more processes share the global batch; weak: each brings one of its own")


@dataclass
class CompareOptions:
    """What `bench compare A B` takes."""

    threshold: float = option(0.03, help="a cell that is slower by more than this share, beyond the noise, is a regression")
    figure: str = option(
        "tokens_per_second", help="what is compared; also samples_per_second, mfu, tokens_per_joule, tokens_per_cpu_second"
    )


def run(words: list[str]) -> int:
    """Returns 0; 1 where a cell was refused or failed, or a comparison found a regression or no verdict at all; 130 where interrupted."""
    if words[:1] == ["compare"]:
        return _compare(words[1:])
    own, rest = taken(words, Options)
    if {"-h", "--help"} & set(rest):
        print(usage(Options, "bench [key=value,value …]"))
        print("  and the words of `trainer train`, several values with commas. Results lie in runs/bench-NAME.")
        print(usage(CompareOptions, "bench compare A B"))
        return 0
    place = foreign_rank(os.environ)
    if place is not None and place.rank > 0:
        from trainer.bench.supervising import follow

        return follow(place)
    with _machines(place) as machines:
        return _measured(own, rest, machines)


@contextlib.contextmanager
def _machines(place: RankEnv | None) -> Iterator[Machines]:
    """What ranks are started on: this machine, or what another launcher gave, whose rank 0 is here."""
    if place is None:
        from trainer.bench.launching import HERE

        yield HERE
        return
    from trainer.bench.crew import assembled

    with assembled(place) as crew:
        yield crew


def _measured(own: list[str], rest: list[str], machines: Machines) -> int:
    options = parse(own, Options, "bench")
    assert options is not None
    plan = plan_of(options)
    from trainer.bench import page, tables
    from trainer.bench.cells import State
    from trainer.bench.opening import opened, requested
    from trainer.bench.rounds import measure
    from trainer.catalogue.tables import console
    from trainer.run import RunDir

    out = console()
    request = requested(rest, plan, machines)
    with RunDir(request.folder).locked():
        results = opened(request)
        for cell in results.cells:
            if cell.state is State.refused:
                out.print(f"[yellow]{cell.label}[/]: refused: {cell.reason}", soft_wrap=True)
        whole = measure(results, request.folder, lambda line: out.print(line, markup=False, soft_wrap=True), machines)
        out.print()
        tables.show_results(out, results)
        page.write(results, request.folder)
        if whole:
            page.mirror(results, request)
    out.print(f"{request.folder / page.PAGE}", soft_wrap=True)
    if not whole:
        out.print("interrupted; the same command measures what is missing")
        return INTERRUPTED
    return int(any(cell.state in (State.refused, State.failed) for cell in results.cells))


def plan_of(options: Options) -> Plan:
    """The plan that the options ask for. Raises ConfigError."""
    from trainer.bench.cells import Plan, Scaling

    words = [word for word in (options.processes or "").split(",") if word]
    if not all(word.isdecimal() for word in words):
        raise ConfigError(f"processes: {options.processes}; allowed: numbers from 1, with commas")
    if options.scaling not in list(Scaling.__members__):
        raise ConfigError(f"scaling: {options.scaling}; allowed: {', '.join(Scaling.__members__)}")
    counts = tuple(dict.fromkeys(map(int, words)))
    return Plan(options.repeats, options.steps, options.warmup, counts, Scaling(options.scaling))


def two(words: list[str]) -> tuple[list[str], CompareOptions]:
    """The two folders or files, and the options. Raises ConfigError where they are not two."""
    own, rest = taken(words, CompareOptions)
    options = parse(own, CompareOptions, "bench compare")
    if len(rest) != 2 or options is None:
        raise ConfigError(
            f"bench compare: {' '.join(rest) or 'nothing'}; name two benches: trainer bench compare runs/bench-a runs/bench-b"
        )
    return rest, options


def _compare(words: list[str]) -> int:
    if {"-h", "--help"} & set(words):
        print(usage(CompareOptions, "bench compare A B"))
        return 0
    names, options = two(words)
    from trainer.bench.comparison import compare
    from trainer.bench.results import load
    from trainer.bench.tables import show_comparison
    from trainer.catalogue.tables import console

    first, second = (_named(load(Path(name)), name) for name in names)
    found = compare(first, second, options.threshold, options.figure)
    show_comparison(console(), found)
    return int(not found.passes)


def _named(results: Results, name: str) -> Results:
    """Called as it was typed: two benches of one command have the same name."""
    results.name = name.rstrip("/")
    return results
