"""A rank of `trainer rehearse`: trains as ever, until its plan has it kill the whole job with SIGKILL, at a moment of a kind.

Moments are told from what the process does with files, by an audit hook, so that nothing of a run knows that it is rehearsed: a save
begins where its folder `.step-….partial` is made, its shards are written where the manifest is opened, it is over where COMMIT has its
name; a step is consumed where the ledger is opened. Only rank 0 kills; the agent's end takes the other ranks with it, wherever they are.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from trainer.tracking.jsonl import EVENTS, METRICS

PLAN = "TRAINER_REHEARSAL"
KILLS = "kills.jsonl"


class Moment(str, Enum):
    """When a job is killed."""

    first_step = "first_step"  # in the first step after a start
    step = "step"  # at any later time
    save = "save"  # while shards are being written
    commit = "commit"  # when they are written, and COMMIT is not


@dataclass(frozen=True)
class Plan:
    """One kill. after: the step from which on it is due. draw: in [0, 1), where within the moment. seconds: of a step, and of a save."""

    number: int
    moment: Moment
    after: int
    draw: float
    step_seconds: float
    save_seconds: float
    front_door: int = 0

    def text(self) -> str:
        """For the environment of the process that carries it out."""
        return json.dumps(asdict(self))


def plan_of(text: str) -> Plan:
    """The plan that `text()` gave."""
    fields = json.loads(text)
    return Plan(**(fields | {"moment": Moment(fields["moment"])}))


def plans(kills: int, steps: int, save_every: int, seed: int, step_seconds: float, save_seconds: float) -> list[Plan]:
    """The kills of a rehearsal: three in ten inside a save, of them a third between the last shard and COMMIT; one in ten in a first step.

    They are due at random steps in ascending order, each early enough for a save to follow.
    """
    draw = random.Random(seed)
    commits, firsts = -(-kills // 10), -(-kills // 10)
    saves = max(0, -(-3 * kills // 10) - commits)
    kinds = [Moment.commit] * commits + [Moment.save] * saves + [Moment.first_step] * firsts
    kinds = (kinds + [Moment.step] * max(0, kills - len(kinds)))[:kills]
    draw.shuffle(kinds)
    last = max(1, steps - save_every)
    due = sorted(draw.randrange(last) for _ in range(kills))
    return [
        Plan(number, kind, after, draw.random(), step_seconds, save_seconds)
        for number, (kind, after) in enumerate(zip(kinds, due, strict=True), start=1)
    ]


class Watch:
    """Sees what this process opens, makes and renames, and kills when it is time."""

    def __init__(self, plan: Plan, run: Path):
        from trainer.survival.attempts import newest_committed

        self.plan, self.run = plan, run
        self.step = self.base = max(0, newest_committed(run / "checkpoints"))
        self.built = self.saving = self.written = False
        self.lock = threading.Lock()
        self.timer: threading.Timer | None = None

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            self._opened(str(arguments[0]), str(arguments[1]))
        elif event == "os.mkdir":
            if self._is_partial(name := Path(str(arguments[0]))) and name.parent.name == "checkpoints":
                self._save_begins()
        elif event == "os.rename" and Path(str(arguments[1])).name == "COMMIT":
            self._commit_is_due(0.66)
            self.saving = self.written = False

    def _opened(self, path: str, mode: str) -> None:
        name = os.path.basename(path)
        if name == METRICS and mode == "None":  # by a descriptor: to append
            self.built = True
        elif name == EVENTS and mode == "None" and self.built:
            self._started()
        elif "manifest.json" in name and "w" in mode:
            self._manifest_is_due()
        elif "COMMIT" in name and "w" in mode:
            self._commit_is_due(0.33)
        elif name == "rank-00000.jsonl" and os.path.basename(os.path.dirname(path)) == "ledger" and "a" in mode:
            self._consumed()

    @staticmethod
    def _is_partial(path: Path) -> bool:
        return path.name.startswith(".step-") and path.name.endswith(".partial")

    @property
    def _due(self) -> bool:
        return self.step >= self.plan.after

    def _started(self) -> None:
        # The first event after the log of metrics is opened is that of the start: then come the steps.
        if self.timer is None and self.plan.moment is Moment.first_step:
            self._in(self.plan.draw * self.plan.step_seconds)

    def _consumed(self) -> None:
        if self.plan.moment is Moment.first_step:
            self.kill()
        self.step += 1
        if self.plan.moment is Moment.step and self._due and self.timer is None:
            self._in(2 * self.plan.draw * self.plan.step_seconds)

    def _save_begins(self) -> None:
        self.saving, self.written = True, False
        if self.plan.moment is Moment.save and self._due:
            self._in(self.plan.draw * self.plan.save_seconds)

    def _manifest_is_due(self) -> None:
        if self.plan.moment is Moment.save and self.timer is not None:
            self.kill()  # at the latest
        self.written = self.saving
        self._commit_is_due(0.0)

    def _commit_is_due(self, part: float) -> None:
        """The stretch between the last shard and COMMIT has three points at which files change; the draw says at which of them."""
        if self.plan.moment is Moment.commit and self._due and part <= self.plan.draw < part + 0.34:
            self.kill()

    def _in(self, seconds: float) -> None:
        self.timer = threading.Timer(seconds, self.kill)
        self.timer.daemon = True
        self.timer.start()

    def where(self) -> Moment:
        """In which moment this process is."""
        if self.saving:
            return Moment.commit if self.written else Moment.save
        return Moment.first_step if self.step == self.base else Moment.step

    def kill(self) -> None:
        """Note it, then end the job at once: front door, agent, and with the agent all ranks."""
        self.lock.acquire()  # never released: whoever comes second waits for the end
        line = {"kill": self.plan.number, "planned": self.plan.moment, "moment": self.where(), "step": self.step, "time": time.time()}
        file = os.open(self.run.parent / KILLS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(file, (json.dumps(line) + "\n").encode())
        os.fsync(file)
        for process in (self.plan.front_door, int(os.environ["TRAINER_AGENT_PID"]), os.getpid()):
            os.kill(process, signal.SIGKILL)
        time.sleep(60)


def install(run: Path) -> None:
    """Watch this process, where it is the one that kills."""
    text = os.environ.get(PLAN)
    if text and os.environ["RANK"] == "0":
        sys.addaudithook(Watch(plan_of(text), run))


if __name__ == "__main__":
    from trainer.rank import leave_process, main

    install(Path(sys.argv[1]))
    leave_process(main(sys.argv[1]))
