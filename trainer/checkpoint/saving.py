"""Saves that the loop does not wait for: state is copied at a step's border, and written while training goes on.

    save      this rank's pieces are copied to host memory; the loop waits for that alone
    behind    a thread writes them, agrees with the other ranks over the host-side store, commits, and removes what is kept no longer
    ended     how it went, asked at every step's border

One save is under way at a time: the next one, and the end of a run, wait for it.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.checkpoint.files import CheckpointError, DiskFullError, shard_of
from trainer.checkpoint.retention import make_room, prune
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.store import Snapshot, Written, agreed, write
from trainer.choices import ConfigError

if TYPE_CHECKING:
    from trainer.checkpoint.remote import Remote
    from trainer.distributed import World
    from trainer.settings import DefaultCheckpoint


@dataclass(frozen=True)
class Ended:
    """How a save ended, the same on every rank but for the seconds.

    written: None where the disk was full and the run goes on without. stall, background: seconds that the loop waited, and that the
    writing took beside it. full: what there is to tell of a full disk. upload: why it is not in the other place too.
    """

    step: int
    written: Written | None
    stall_seconds: float
    background_seconds: float
    full: str = ""
    upload: str = ""


class Saver:
    """The saves of a run on this rank.

    starts: which checkpoints other runs start from, asked before one is removed. remote: where they are copied to.
    """

    def __init__(
        self,
        root: Path,
        rules: DefaultCheckpoint,
        world: World,
        starts: Callable[[], Mapping[Path, str]] = dict,
        remote: Remote | None = None,
    ):
        self.root, self.rules, self.world, self.starts, self.remote = root, rules, world, starts, remote
        self._staging = Staging(world.device)
        # A connection of the thread's own: its waiting must not hold up the loop's words.
        store = world.store.clone() if world.store is not None and rules.asynchronous else world.store  # type: ignore[attr-defined]
        self._behind = dataclasses.replace(world, store=store)
        self._thread: threading.Thread | None = None
        self._outcome: Ended | BaseException | None = None
        self._stall = 0.0
        self._told: list[Ended] = []

    def save(self, take: Callable[[], Snapshot]) -> None:
        """Save what `take` gives; returns as soon as the state may change, or when it is committed where saves are not asynchronous.

        Raises what `ended` raises of the save before, which is waited for.
        """
        begun = time.perf_counter()
        self._join()
        taken = take()
        if self.rules.asynchronous:
            taken = dataclasses.replace(taken, pieces=self._staging.copied(taken.pieces))
        self._thread = threading.Thread(target=self._run, args=(taken,), name="checkpoint", daemon=True)
        self._thread.start()
        if not self.rules.asynchronous:
            self._thread.join()
        self._stall = time.perf_counter() - begun

    def wait(self) -> None:
        """Until no save is under way. Raises what `ended` raises."""
        begun = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
            self._stall += time.perf_counter() - begun
        self._join()

    def ended(self) -> list[Ended]:
        """The saves that have ended since the last call, each once; next to nothing where there is none.

        Raises CheckpointError where one failed, ConfigError where the disk was full and the policy is to halt.
        """
        if self._thread is not None and not self._thread.is_alive():
            self._join()
        told, self._told = self._told, []
        return told

    def _join(self) -> None:
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        assert self._outcome is not None
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        self._told.append(dataclasses.replace(self._outcome, stall_seconds=self._stall))

    def _run(self, taken: Snapshot) -> None:
        begun = time.perf_counter()
        notes: list[str] = []
        try:
            written = self._write(taken, notes)
            upload = self._upload(written) if written is not None and self.remote is not None else ""
            if written is not None and self.world.leads:
                prune(self.root, self.rules, taken.step, self.starts)
            seconds = time.perf_counter() - begun if self.rules.asynchronous else 0.0
            self._outcome = Ended(taken.step, written, 0.0, seconds, "; ".join(notes), upload)
        except BaseException as error:  # the loop is to hear of it, whatever it is
            self._outcome = error

    def _write(self, taken: Snapshot, notes: list[str]) -> Written | None:
        written = None
        try:
            written = write(self.root, taken, self._behind)
        except DiskFullError as error:
            notes.append(str(error))
            if self.rules.on_full.value == "halt":
                raise ConfigError(self.refusal(taken.step, str(error))) from error
            if self.rules.on_full.value == "prune":
                written = self._again(taken, notes)
        return written

    def _upload(self, written: Written) -> str:
        """Copy a checkpoint to the other place, each rank its shard, COMMIT last; why that failed, the same on every rank."""
        world, remote, rules = self._behind, self.remote, self.rules
        assert remote is not None
        failure = f"{written.path.name} is not in {remote.url}"
        shard = shard_of(world.rank)
        try:
            agreed(world, "checkpoint/there", lambda: remote.begin(written.step) if world.leads else None, failure)
            agreed(world, "checkpoint/upload", lambda: remote.upload(written.path, [shard]), failure)
            agreed(world, "checkpoint/done", lambda: remote.commit(written, rules) if world.leads else None, failure)
        except CheckpointError as error:
            return str(error)
        return ""

    def _again(self, taken: Snapshot, notes: list[str]) -> Written | None:
        """Give up older checkpoints for this one; all ranks do the same, as all know the same."""
        if self.world.leads:
            gone = make_room(self.root, self.rules, self.starts)
            notes.append(f"removed to make room: {', '.join(f'step {step}' for step in gone) or 'nothing'}")
        try:
            return write(self.root, taken, self._behind)
        except DiskFullError as error:
            notes.append(str(error))
            return None

    def refusal(self, step: int, reason: str) -> str:
        """Why a run cannot go on without this save."""
        return (
            f"checkpoint.on_full={self.rules.on_full.value}: step {step} is not saved: {reason}. Older checkpoints in {self.root} are as "
            "they were; free some space there, and the same command goes on from the newest"
        )
