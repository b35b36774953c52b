"""What can be removed of runs: checkpoints that a finished run no longer needs, and what killed processes left half-written."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.catalogue.checkpoints import rules
from trainer.catalogue.entries import Entry
from trainer.checkpoint.files import COMMIT, remove, step_of
from trainer.checkpoint.retention import held, started_from
from trainer.checkpoint.store import committed, folders
from trainer.choices import ConfigError

# Files and folders that are written aside under a hidden name with a number of their writer, and renamed when they are whole.
_ASIDE = re.compile(r"\..+\.(\d+|old)")
# A report can be written beside a run that nobody holds.
_STALE_SECONDS = 600.0


@dataclass(frozen=True)
class Leftover:
    """Something that can go. size: bytes on the disk."""

    run: Entry
    path: Path
    why: str
    size: int


def leftovers(runs: Iterable[Entry], keep: int, every: Iterable[Entry]) -> list[Leftover]:
    """What of these runs can be removed; nothing of a running one.

    keep: newest checkpoints that a finished run keeps. every: all runs there are; a checkpoint that one of them still starts from stays.
    """
    starts = started_from(each.run.path for each in every)
    return [left for entry in runs if entry.state != "running" for left in _of(entry, entry.state == "finished", keep, starts)]


def _of(entry: Entry, finished: bool, keep: int, starts: dict[Path, str]) -> list[Leftover]:
    root = entry.run.checkpoints
    whole = committed(root)
    found = []
    if finished:
        older = held(root, rules(entry), starts)[: max(0, len(whole) - keep)]
        found += [(each.folder, "checkpoint of a finished run") for each in older if not each.promised]
    # A resume may still want an older checkpoint than the newest: of a run that is not finished, none goes.
    known = {folder for _, folder in whole}
    found += [(folder, "checkpoint without COMMIT: never whole") for _, folder in folders(root) if not (folder / COMMIT).is_file()]
    if root.is_dir():
        found += [(path, "left by a save that was killed") for path in root.glob(".step-*") if path not in known]
    stale = time.time() - _STALE_SECONDS
    asides = [path for path in entry.run.path.iterdir() if _ASIDE.fullmatch(path.name) and path.lstat().st_mtime < stale]
    found += [(path, "left by a process that was killed") for path in asides]
    return [Leftover(entry, path, why, size_of(path)) for path, why in found]


def delete(left: list[Leftover], keep: int, every: Iterable[Entry]) -> tuple[int, list[str]]:
    """Remove what is still removable when its run is held. Returns the bytes freed, and what was left alone and why."""
    freed, spared = 0, []
    for label in dict.fromkeys(each.run.label for each in left):
        mine = [each for each in left if each.run.label == label]
        entry = mine[0].run
        try:
            with entry.run.locked():
                # Looked at anew: it may have gone on, and ended, since the first look.
                still = {
                    each.path for each in _of(entry, entry.run.summary is not None, keep, started_from(each.run.path for each in every))
                }
                for each in mine:
                    if each.path in still:
                        _remove(each.path)
                        freed += each.size
        except ConfigError as error:
            spared.append(f"{label}: {str(error).split(';')[0]}")
    return freed, spared


def _remove(path: Path) -> None:
    if step_of(path) is not None:
        remove(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files below a folder; links are not followed."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)
