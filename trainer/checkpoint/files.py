"""Files and folders of a checkpoint: written aside, flushed, renamed; nothing partial is ever visible under a final name."""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
from pathlib import Path

from trainer.atomic import flush

MANIFEST, COMMIT = "manifest.json", "COMMIT"
_STEP = re.compile(r"step-(\d+)")
_SHARD = re.compile(r"rank-\d{5,}\.safetensors")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; says which file, what is wrong with it, and what can be done."""


class DiskFullError(CheckpointError):
    """A checkpoint that could not be written because there was no room for it."""


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:07d}"


def shard_of(rank: int) -> str:
    """The name of a rank's shard."""
    return f"rank-{rank:05d}.safetensors"


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint's folder; None for any other name."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def regular(folder: Path, name: str) -> Path:
    """A shard of this folder by the name that an index gives. Raises CheckpointError for anything but a plain file of the folder (S02)."""
    require_shard(folder, name)
    return plain(folder / name)


def require_shard(folder: object, name: str) -> None:
    """Raise CheckpointError for a name that could lead out of the folder, or to something else than a shard."""
    if not _SHARD.fullmatch(name):
        raise CheckpointError(
            f"{folder}: the manifest names the file {name!r}; allowed: rank-00000.safetensors and so on, in the folder itself"
        )


def plain(path: Path) -> Path:
    """The path of a regular file. Raises CheckpointError where it is missing, a link, or a device."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is not a regular file; a link or a device is not read")
    return path


def remove(folder: Path) -> None:
    """Delete a checkpoint's folder; taken out of sight first, so that a kill half-way leaves no checkpoint that looks whole."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    flush(folder.parent)
    shutil.rmtree(aside)
