"""Work that processes share, on one machine or on several that see one folder: who makes which target.

A target is a file or a folder; once it is there it is made. While it is made there lie beside it

    NAME.1.claim     who makes it, created exclusively: of several that try, every file system lets one succeed
    NAME.1.partial   what there is of it so far; renamed to NAME at the end

Where a maker is dead, whoever succeeds in creating NAME.2.claim follows it. So no claim is ever taken away, and none can be taken wrongly.
Dead is: on the same machine, who no longer holds the lock (flock) on its claim, which the kernel knows at once; on another machine, whose
claim has not been touched for a minute of our own clock. Locks of other machines are not asked: some file systems grant them to everybody.

Claims only save work. Who was silent for a minute and comes back makes the same bytes, in a folder of its own, and finds the target there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from trainer.atomic import flush

# What a folder that is being filled says of itself; what it tells is there is there.
JOURNAL = "journal.json"
_BEAT_SECONDS = 5.0
# Network file systems may show what another machine did some seconds late.
_SILENT_SECONDS = 60.0
_FIRST_PAUSE, _LAST_PAUSE = 0.02, 1.0
_BESIDE = re.compile(r"(.+)\.(\d+)\.(claim|partial)")


def this_boot() -> str:
    """This machine since it was started: as far as its kernel's locks reach."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


@dataclass(frozen=True)
class Holder:
    """Who has a claim. dead: as far as can be told; for_sure: not merely silent."""

    name: str
    dead: bool = False
    for_sure: bool = False


class Claim:
    """The right to make a target, kept alive until it is finished or released. follows: the generation that is dead for sure, or 0."""

    def __init__(self, target: Path, generation: int, file: TextIO, follows: int):
        self.target, self.generation, self.follows, self._file = target, generation, follows, file
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            # A closed file is a claim that has just ended.
            with contextlib.suppress(OSError, ValueError):
                os.utime(self._file.fileno())

    @property
    def aside(self) -> Path:
        """Where the target is made."""
        return _beside(self.target, self.generation, "partial")

    def emptied(self) -> Path:
        """An empty folder to make it in."""
        shutil.rmtree(self.aside, ignore_errors=True)
        self.aside.mkdir()
        return self.aside

    def adopted(self) -> Path:
        """A folder to make it in, with what earlier makers left there and told of in its journal."""
        newest = max(_generations(_names(self.target.parent), "partial").get(self.target.name, []), default=0)
        left = _beside(self.target, newest, "partial")
        if newest == self.follows and newest:
            left.rename(self.aside)
        elif newest and newest != self.generation and (left / JOURNAL).exists():
            self._copy(left)
        self.aside.mkdir(exist_ok=True)
        return self.aside

    def _copy(self, left: Path) -> None:
        """What a maker left who may come back and write on: the journal first, then files that have at least what it tells."""
        journal, copied = (left / JOURNAL).read_bytes(), self.aside.with_suffix(".copy")
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(left, copied)
        (copied / JOURNAL).write_bytes(journal)
        copied.rename(self.aside)

    def finish(self) -> None:
        """What lies aside is the target."""
        try:
            self.aside.rename(self.target)
        except OSError:
            # Made by somebody who took us for dead: the same.
            if not self.target.exists():
                raise
        flush(self.target.parent)
        names = _names(self.target.parent)
        for kind in ("partial", "claim"):
            for generation in _generations(names, kind).get(self.target.name, []):
                _remove(_beside(self.target, generation, kind))
        self._end()

    def release(self) -> None:
        """Leave the target, and what there is of it, to others."""
        _beside(self.target, self.generation, "claim").unlink(missing_ok=True)
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self._file.close()


class Work:
    """Targets of one folder, to be made by this process and any others."""

    def __init__(self, targets: Sequence[Path], silent_seconds: float = _SILENT_SECONDS):
        self.targets, self.folder, self.silent_seconds = list(targets), targets[0].parent, silent_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mine: list[Claim] = []
        self._seen: dict[Path, tuple[int, float]] = {}
        self._pause = _FIRST_PAUSE

    def left(self) -> list[Path]:
        """What is not made yet, in order. Where the folder is gone, all was made and used."""
        names = _names(self.folder)
        return [target for target in self.targets if target.name not in names] if names or self.folder.is_dir() else []

    def take(self) -> Claim | None:
        """The first target that nobody makes, else the first whose maker is dead; None while there is neither."""
        names = _names(self.folder)
        held, partial = _generations(names, "claim"), _generations(names, "partial")
        left = [target for target in self.targets if target.name not in names]
        for target in left:
            if target.name not in held and (claim := self._attempt(target, max(partial.get(target.name, [1])), 0)):
                return claim
        mine = {claim.target for claim in self._mine}
        for target in left:
            if target.name in held and target not in mine:
                newest = max(held[target.name])
                holder = self._holder(_beside(target, newest, "claim"))
                if holder and holder.dead and (claim := self._attempt(target, newest + 1, newest if holder.for_sure else 0)):
                    return claim
        return None

    def _attempt(self, target: Path, generation: int, follows: int) -> Claim | None:
        path = _beside(target, generation, "claim")
        try:
            file = open(path, "x", encoding="utf-8")  # noqa: SIM115 (closed with the claim)
        except (FileExistsError, FileNotFoundError):
            return None
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            locked = False
        # After the lock: who reads this may rely on it.
        json.dump({"boot": this_boot(), "locked": locked, "host": platform.node(), "process": os.getpid()}, file)
        file.flush()
        claim = Claim(target, generation, file, follows)
        if target.exists():
            # Made, and its claims removed, after we had looked.
            claim.release()
            return None
        self._mine = [*(mine for mine in self._mine if not mine.target.exists()), claim]
        self._pause = _FIRST_PAUSE
        return claim

    def _holder(self, path: Path) -> Holder | None:
        """Who has a claim, and whether that process lives; None where the claim has just gone."""
        try:
            # Opened, since that is when a network file system asks its server.
            with open(path, encoding="utf-8") as file:
                touched, text = os.fstat(file.fileno()).st_mtime_ns, file.read()
                told = json.loads(text) if text.endswith("}") else {}
                name = f"process {told.get('process', '?')} on {told.get('host', '?')}"
                if told.get("boot") == this_boot() and told["locked"]:
                    return Holder(name, dead=_is_free(file), for_sure=True)
        except FileNotFoundError:
            return None
        now = time.monotonic()
        if self._seen.setdefault(path, (touched, now))[0] != touched:
            self._seen[path] = (touched, now)
        return Holder(name, dead=now - self._seen[path][1] >= self.silent_seconds)

    def holders(self) -> str:
        """Who makes what is left, in words."""
        held = _generations(_names(self.folder), "claim")
        found = [self._holder(_beside(target, max(held[target.name]), "claim")) for target in self.left() if target.name in held]
        return ", ".join(dict.fromkeys(holder.name for holder in found if holder)) or "another process"

    def wait(self) -> None:
        """Let others work."""
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LAST_PAUSE)

    def release(self) -> None:
        """Leave everything unfinished to others."""
        for claim in self._mine:
            if not claim.target.exists():
                claim.release()


@contextmanager
def made_once(target: Path, say: Callable[[str], Any]) -> Iterator[Claim | None]:
    """The claim on a target to be made aside, finished at the end; None where it is made: one process makes it, others wait for it."""
    claim = None
    if not target.exists():
        work, told = Work([target]), False
        while (claim := work.take()) is None and work.left():
            if not told:
                say(f"waiting for {work.holders()}, which prepares the same data")
            told = True
            work.wait()
    try:
        yield claim
    except BaseException:
        if claim:
            claim.release()
        raise
    if claim:
        claim.finish()


def _beside(target: Path, generation: int, kind: str) -> Path:
    return target.with_name(f"{target.name}.{generation}.{kind}")


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def _generations(names: set[str], kind: str) -> dict[str, list[int]]:
    """The name of each target that has some of a kind beside it, and of which generations. names: of all in the folder."""
    found: dict[str, list[int]] = {}
    for name in names:
        match = _BESIDE.fullmatch(name)
        if match and match[3] == kind:
            found.setdefault(match[1], []).append(int(match[2]))
    return found


def _is_free(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
