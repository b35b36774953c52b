"""A rank of `trainer bench`: the training loop for so many steps, and what was measured of it in a file. No evaluation, no checkpoint."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from trainer.rank import leave_process, main
from trainer.survival import FINISHED, STOPPED

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.run import RunDir
    from trainer.survival.stop import Stop

WINDOW = "TRAINER_BENCH"
FOLDER = "bench"


def train(config: Config, world: World, run: RunDir, stop: Stop) -> int:
    """The loop up to its last wanted step. Raises ConfigError for what another attempt would find again."""
    from trainer.atomic import write_json
    from trainer.bench.measuring import Left, Watch
    from trainer.bench.window import Window
    from trainer.choices import ConfigError
    from trainer.strategies.proof import ProofError
    from trainer.trainer import Training

    watch = Watch(stop, world, Window(**json.loads(os.environ[WINDOW])))
    try:
        training = Training(config, world, run, watch)  # type: ignore[arg-type]
    except ProofError as error:
        raise ConfigError(str(error)) from error
    watch.attach(training)
    try:
        training.loop()
    except Left as left:
        training.trackers.finish()
        if left.stopped:
            return STOPPED
    else:
        raise AssertionError("the budget is longer than what is measured")
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    write_json(folder / f"rank-{world.rank:05d}.json", watch.figures.as_dict())
    return FINISHED


if __name__ == "__main__":
    leave_process(main(sys.argv[1], train))
