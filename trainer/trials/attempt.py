"""One launch of a rehearsed run: `python -m trainer.trials.attempt CONFIG`, a front door that can be killed."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path


def main(path: Path) -> int:
    """Train what the file holds to its end. Returns the exit code."""
    from trainer.choices import load_choices
    from trainer.config import load
    from trainer.front_door import launched
    from trainer.run import RunDir
    from trainer.trials.killing import PLAN, plan_of
    from trainer.trials.launching import Killed, here

    load_choices(launchers=True)
    if os.environ.get(PLAN):
        os.environ[PLAN] = dataclasses.replace(plan_of(os.environ[PLAN]), front_door=os.getpid()).text()
    config = load(path)
    config = dataclasses.replace(config, launcher=here(config, Killed))
    run = RunDir(config.output_dir)
    with run.locked() as lock:
        return launched(config, run, lock.fileno()).exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
