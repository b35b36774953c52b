"""`trainer train [key=value …]`: train here, on all devices, or go on with the run that is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SUMMARY = "train a model, or go on with a run: the same command"


def run(words: list[str]) -> int:
    """Compose, prepare, launch, wait. A multirun (-m) launches one job after the other, until one is stopped or killed."""
    from trainer.environment import foreign_rank

    if foreign_rank(os.environ) is not None:
        # torchrun, accelerate launch, deepspeed or srun started this process: it is a rank, not the front door.
        from trainer.rank import foreign

        return foreign(words)
    from trainer.words import composed

    request = composed(words, "train")
    if request is None:
        return 0
    from trainer.front_door import console, train
    from trainer.survival import STOPPED

    code, paths = 0, []
    for number, config in enumerate(request):
        if len(request) > 1:
            console.rule(f"job {number + 1} of {len(request)}: {config.output_dir}")
        done = train(config)
        code = code or done.exit_code
        paths.append(done.path)
        if done.exit_code == STOPPED or done.exit_code >= 128:
            break
    if len(paths) > 1:
        _spread(paths)
    sys.stdout.flush()
    return code


def _spread(paths: list[Path]) -> None:
    """Print means over those jobs of a multirun that differ in what is drawn alone."""
    from trainer.catalogue import tables
    from trainer.catalogue.entries import Entry
    from trainer.catalogue.spread import alike
    from trainer.run import RunDir

    groups = alike(Entry(RunDir(path), path.name) for path in paths)
    if groups:
        console = tables.console()
        console.print("\n[bold]mean ± standard deviation[/] over jobs that differ in seed or data.draw alone", soft_wrap=True)
        tables.show(console, tables.spread(groups))
