"""`trainer report run=runs/quickstart`: write report.html anew; also of a run that still goes on."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.options import option, parse

SUMMARY = "write a run's report.html: curves, throughput, events, what to try next"


@dataclass
class Options:
    """What `report` takes."""

    run: str = option(help="run directory")


def run(words: list[str]) -> int:
    """Write the page and print where it is. Raises ConfigError where there is no such run."""
    options = parse(words, Options, "report")
    if options is None:
        return 0
    from trainer.front_door import existing
    from trainer.tracking.report import write

    print(write(existing(options.run).path))
    return 0
