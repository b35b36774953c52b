"""A rank of `trainer parity`: the training loop and a checkpoint at its end, without evaluation, export and summary."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from trainer.rank import leave_process, main
from trainer.survival import FINISHED, HALTED, STOPPED

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.run import RunDir
    from trainer.survival.stop import Stop


def train(config: Config, world: World, run: RunDir, stop: Stop) -> int:
    """The loop, and its state saved. Raises ConfigError for what another attempt would find again."""
    from trainer.checkpoint.files import CheckpointError
    from trainer.choices import ConfigError
    from trainer.strategies.proof import ProofError
    from trainer.trainer import Outcome, Training

    try:
        training = Training(config, world, run, stop)
    except (CheckpointError, ProofError) as error:
        raise ConfigError(str(error)) from error
    outcome = training.loop()
    training.trackers.finish()
    return {Outcome.finished: FINISHED, Outcome.stopped: STOPPED, Outcome.halted: HALTED}[outcome]


if __name__ == "__main__":
    leave_process(main(sys.argv[1], train))
