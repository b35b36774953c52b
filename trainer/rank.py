"""What one rank runs: `python -m trainer.rank RUN_DIR`, started by the agent; or the command itself under another launcher.

Signals: under our agent a rank ignores them, because stopping is agreed; the kernel kills it when the agent ends. Under another launcher
it takes SIGTERM, SIGINT and SIGUSR1 as requests to save and stop.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError
from trainer.environment import RankEnv, agent_rank, foreign_rank
from trainer.process import die_with, outlive_terminal
from trainer.survival import FINISHED, HALTED, STOPPED
from trainer.survival.causes import record

if TYPE_CHECKING:
    from torch.distributed import Store

    from trainer.config import Config
    from trainer.distributed import World
    from trainer.run import RunDir
    from trainer.survival.stop import Stop

    Train = Callable[[Config, World, RunDir, Stop], int]

_FOREIGN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class RankError(Exception):
    """Wraps what went wrong on this rank with the step that it had started."""

    def __init__(self, step: int):
        super().__init__(f"failed at step {step}")
        self.step = step


def main(run_dir: str, train: Train | None = None, read: Callable[[Path], Any] | None = None) -> int:
    """A rank under our agent. Returns the exit code by which the agent knows how it ended (trainer/survival).

    train, read: what is run and how its configuration is read, if not the training loop and the frozen file.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    die_with(int(os.environ["TRAINER_AGENT_PID"]))
    outlive_terminal()
    faulthandler.enable()
    place = agent_rank(os.environ)
    assert place is not None, "started by the agent only"
    path = Path(run_dir)
    try:
        return train_in_place(path, place, (read or _read)(path / "config.yaml"), train or _train, path / "stop")
    except BaseException as error:
        step = error.step if isinstance(error, RankError) else None
        cause = error.__cause__ if isinstance(error, RankError) and error.__cause__ is not None else error
        final = isinstance(cause, ConfigError)
        record(path, place.rank, cause, step, final)
        traceback.print_exception(cause)
        return HALTED if final else 1


def foreign(words: list[str]) -> int:
    """A rank under torchrun, `accelerate launch`, deepspeed or srun: rank 0 composes and prepares for all, then all train.

    No process group exists meanwhile, so no time-out runs while rank 0 tokenizes.
    """
    from trainer.distributed import connect
    from trainer.foreign import opened

    place = foreign_rank(os.environ)
    assert place is not None, "started by another launcher only"
    faulthandler.enable()
    store = connect(place)
    with opened(words, place, store) as run:
        if run.config is None:
            return run.exit_code
        # The launcher counts attempts from 0 each time; the run's own count goes on.
        place = dataclasses.replace(place, attempt=run.attempt)
        try:
            code = train_in_place(run.path, place, run.config, _train, store=store)
            if code == FINISHED and place.rank == 0:
                from trainer.front_door import console
                from trainer.tracking.closing import closing

                closing(run.path, console)
        except RankError as wrapped:
            if isinstance(wrapped.__cause__, ConfigError):
                raise wrapped.__cause__ from None
            traceback.print_exc()
            # Not the interpreter's way out: engines and NCCL can wait there for peers that are gone.
            leave_process(1)
    # Slurm requeues a preempted job only if it ended with 0; the events say that it has not finished.
    return FINISHED if code == STOPPED and place.launcher == "slurm" else code


def train_in_place(path: Path, place: RankEnv, config: Any, train: Train, stop_file: Path | None = None, store: Store | None = None) -> int:
    """Take the place, train, leave it. Raises RankError from whatever training raised."""
    from trainer import distributed
    from trainer.run import RunDir
    from trainer.survival.stop import Stop

    world = distributed.start(config, place, store)
    stop = Stop(world, stop_file)
    if place.launcher != "agent":
        stop.request_on(*_FOREIGN_SIGNALS)
    try:
        code = train(config, world, RunDir(path), stop)
    except BaseException as error:
        raise RankError(stop.started) from error
    stop.close()
    distributed.stop(world)
    return code


def _read(path: Path) -> Config:
    from trainer.run import load_frozen

    return load_frozen(path)


def _train(config: Config, world: World, run: RunDir, stop: Stop) -> int:
    from trainer.checkpoint.files import CheckpointError
    from trainer.exchange import exchange
    from trainer.strategies.proof import ProofError
    from trainer.trainer import Outcome, Training

    try:
        training = Training(config, world, run, stop)
    except (CheckpointError, ProofError) as error:
        raise ConfigError(str(error)) from error  # the next attempt would find the same
    outcome = training.loop()
    if outcome is Outcome.finished:
        training.finish()
    else:
        training.trackers.finish()
        # The agent kills the ranks that are left soon after the first has halted; rank 0 may still be sending figures.
        exchange(world, "end", "")
    return {Outcome.finished: FINISHED, Outcome.stopped: STOPPED, Outcome.halted: HALTED}[outcome]


def leave_process(code: int) -> None:
    """End at once: torch and its engines have threads and destructors that can hang or abort a finished process."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave_process(main(sys.argv[1]))
