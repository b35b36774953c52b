"""Starts and watches a node's ranks: `python -m trainer.agent RUN_DIR --processes 2`, started by a launcher.

A rank that dies takes its attempt with it: the others are killed, the root cause is shown first, and the run restarts from its newest
checkpoint, unless restarts have stopped making progress. Only the agent takes signals: SIGINT, SIGTERM and SIGHUP ask the ranks to save and
stop; a SIGINT after any of these kills them. Never imports torch.

Exit codes: 0 finished, 128 + signal when stopped and saved, 75 when stopped by the stop file, 78 when a restart would not help,
137 when killed by that SIGINT, else 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from trainer.atomic import write_text
from trainer.node import Node
from trainer.process import STOPPING, outlive_terminal
from trainer.run import RunDir
from trainer.survival import FINISHED, HALTED, KILLED, STOPPED
from trainer.survival.attempts import newest_committed, next_attempt
from trainer.survival.causes import Failure, root

_POLL_SECONDS = 0.05
# After the first rank has failed, its peers fail too: their accounts are waited for this long, so that the earliest is found.
_ACCOUNT_SECONDS = 1.0


@dataclass
class Agent:
    """One node's part of a launch.

    restarts: how many without a new checkpoint in between. front_door: the process whose end saves and stops the run.
    """

    run: RunDir
    node: Node
    restarts: int = 3
    front_door: int | None = None
    _asked: signal.Signals | None = field(default=None, init=False)
    _kill: bool = field(default=False, init=False)

    def supervise(self) -> int:
        """Attempts until the run ends. Returns the exit code."""
        stop_file = self.run / "stop"
        stop_file.unlink(missing_ok=True)
        for number in STOPPING:
            signal.signal(number, self._take)
        # The launcher has held them until here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        attempt, mark, spent = next_attempt(self.run), newest_committed(self.run.checkpoints), 0
        while True:
            self.run.event("launch", attempt=attempt, world_size=self.node.processes, newest_checkpoint=mark)
            self.node.start(attempt)
            try:
                codes, failures = self._watch()
            finally:
                self.node.kill()
                stop_file.unlink(missing_ok=True)
            ended = self._ended(codes, failures, attempt)
            if ended is not None:
                return ended
            newest = newest_committed(self.run.checkpoints)
            spent = 1 if newest > mark else spent + 1
            mark = max(mark, newest)
            if spent > self.restarts:
                _say(f"giving up: {self.restarts} restarts brought no new checkpoint (survival.restarts={self.restarts})")
                self.run.event("give_up", attempt=attempt, restarts=self.restarts)
                return 1
            start = f"the checkpoint of step {newest}" if newest >= 0 else "the beginning, as there is no checkpoint"
            _say(f"restarting from {start} (restart {spent} of {self.restarts} without progress)")
            attempt += 1
            self.run.event("restart", attempt=attempt, from_step=max(newest, 0), restart=spent)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        # SIGTERM may come several times, from a service manager to all processes and from the front door; only a Ctrl-C after it kills.
        if number == signal.SIGINT and self._asked is not None:
            self._kill = True
        self._asked = self._asked or signal.Signals(number)

    def _watch(self) -> tuple[list[int | None], list[Failure]]:
        """Until all ranks have ended, or one has failed. Returns the exit codes (None: still running) and the failures."""
        told = False
        deadline: float | None = None
        while True:
            if self.front_door is not None and os.getppid() != self.front_door:
                self._asked = self._asked or signal.SIGHUP
            if self._asked is not None and not told:
                told = True
                write_text(self.run / "stop", self._asked.name)
                self.run.event("stop_request", signal=self._asked.name)
                _say(f"{self._asked.name}: saving a checkpoint, then stopping; Ctrl-C (again) stops at once, without saving")
            codes = self.node.poll()
            failed = [rank for rank, code in enumerate(codes) if code not in (None, FINISHED, STOPPED)]
            if failed and deadline is None:
                deadline = time.monotonic() + _ACCOUNT_SECONDS
            late = deadline is not None and time.monotonic() > deadline
            if self._kill or late or None not in codes:
                return codes, [self.node.failure(rank) for rank in failed]
            time.sleep(_POLL_SECONDS)

    def _ended(self, codes: list[int | None], failures: list[Failure], attempt: int) -> int | None:
        """The agent's exit code if the run ends with this attempt; None if it is to be restarted."""
        if self._kill:
            _say("killed without saving; the newest checkpoint stands")
            self.run.event("killed", attempt=attempt)
            return KILLED
        if not failures:
            if STOPPED not in codes:
                return FINISHED
            _say("stopped and saved; the same command goes on")
            return 128 + self._asked if self._asked is not None else STOPPED
        cause = root(failures)
        halted = HALTED in codes
        if halted and not cause.final:
            _say(f"halted by policy; {self.run / 'events.jsonl'} says why")
            return HALTED
        _say(f"{cause}")
        if cause.details:
            _say(cause.details.rstrip())
        _say(f"its log: {self.node.log(cause.rank)}")
        self.run.event("failure", attempt=attempt, rank=cause.rank, step=cause.step, host=cause.host, reason=cause.reason)
        if halted:
            return HALTED
        if self._asked is not None:
            _say("it failed while it was stopping; the newest checkpoint stands")
            return 1
        return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(words: list[str] | None = None) -> int:
    """The agent of one node."""
    parser = argparse.ArgumentParser(prog="trainer.agent", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--processes", type=int, required=True, help="ranks on this node")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of a rank; default: its share of the cores")
    parser.add_argument("--restarts", type=int, default=3, help="restarts without a new checkpoint in between")
    parser.add_argument("--front-door", type=int, help="process whose end saves and stops the run")
    parser.add_argument("--module", default="trainer.rank", help="what a rank runs")
    options = parser.parse_args(words)
    outlive_terminal()
    run = RunDir(options.run_dir)
    node = Node(run.path, options.processes, options.device, options.threads, options.module)
    return Agent(run, node, options.restarts, options.front_door).supervise()


if __name__ == "__main__":
    sys.exit(main())
