"""Checkpoints in another place too: a path, or a URL that fsspec knows (s3://, gs://, az://, file:// …).

They are written here first and uploaded from there, each rank its shard, COMMIT last. A resume that finds none here takes the newest there:
the ranks share out its blocks to fetch and sum all of them, and then each fetches what else it reads, into files below the run's
checkpoints that the next save removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.files import COMMIT, MANIFEST, CheckpointError, folder_of, step_of
from trainer.checkpoint.retention import Found, kept_for
from trainer.checkpoint.shards import BLOCK, share
from trainer.choices import ConfigError

if TYPE_CHECKING:
    from trainer.checkpoint.store import Written
    from trainer.settings import DefaultCheckpoint

_AT_ONCE = 8


class Remote:
    """Folders step-… below a URL. Raises ConfigError where fsspec does not know it, or lacks a package for it."""

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        try:
            # What another process wrote a moment ago is asked for, not remembered.
            self.files, self.root = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise ConfigError(f"checkpoint.path: {url!r}: {error}; `pip install` what it names") from error
        except ValueError as error:
            raise ConfigError(f"checkpoint.path: {url!r}: {error}; allowed: a path, s3://, gs:// and what else fsspec knows") from error

    def verify(self) -> None:
        """Raise ConfigError where nothing can be written there."""
        probe = f"{self.root.rstrip('/')}/.writable"
        try:
            self.files.makedirs(self.root, exist_ok=True)
            self.files.pipe_file(probe, b"")
            self.files.rm_file(probe)
        except Exception as error:  # each protocol has errors of its own
            raise ConfigError(
                f"checkpoint.path: {self.url!r} cannot be written to: {type(error).__name__}: {error}; check the address and your "
                "rights there, or leave checkpoint.path out"
            ) from error

    def place(self, step: int, name: str = "") -> str:
        return "/".join(filter(None, (self.root.rstrip("/"), folder_of(Path(), step).name, name)))

    def committed(self) -> list[Found]:
        """The checkpoints there, oldest first, and what COMMIT tells of each."""
        try:
            names = [str(name) for name in self.files.ls(self.root, detail=False)]
        except FileNotFoundError:
            return []
        found = []
        for step in sorted(step for name in names if (step := step_of(Path(name.rstrip("/")))) is not None):
            # A folder without it was not uploaded to the end, or is being removed.
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                found.append(Found(step, Path(self.place(step)), json.loads(self.files.cat_file(self.place(step, COMMIT)))["about"]))
        return found

    def upload(self, folder: Path, names: list[str]) -> None:
        """Copy files of a local checkpoint, in this order."""
        step = step_of(folder)
        assert step is not None, folder
        self.files.makedirs(self.place(step), exist_ok=True)
        for name in names:
            self.files.put_file(str(folder / name), self.place(step, name))

    def begin(self, step: int) -> None:
        """What lies there of this step is none from now on."""
        self._remove(step)

    def commit(self, written: Written, rules: DefaultCheckpoint) -> None:
        """Make it count there, and keep there what would be kept here."""
        self.upload(written.path, [MANIFEST, COMMIT])
        found = self.committed()
        kept = {each.step for each in kept_for([each for each in found if each.step <= written.step], rules) if each.reasons}
        for each in found:
            if each.step not in kept:
                self._remove(each.step)

    def clear(self) -> None:
        """Remove all checkpoints there, and nothing else."""
        for each in self.committed():
            self._remove(each.step)

    def _remove(self, step: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(self.place(step, COMMIT))
        with contextlib.suppress(FileNotFoundError):
            self.files.rm(self.place(step), recursive=True)

    def text(self, step: int, name: str) -> bytes:
        """A small file whole. Raises CheckpointError where it is not there."""
        try:
            return bytes(self.files.cat_file(self.place(step, name)))
        except FileNotFoundError:
            raise CheckpointError(f"{self.url}: {self.place(step, name)} is missing") from None

    def size(self, step: int, name: str) -> int:
        try:
            return int(self.files.info(self.place(step, name))["size"])
        except FileNotFoundError:
            raise CheckpointError(f"{self.url}: {self.place(step, name)} is missing") from None


def cache_of(root: Path, step: int) -> Path:
    """Where blocks of a remote checkpoint lie; the first save removes it, as it does what killed saves have left."""
    return root / f".{folder_of(root, step).name}.fetched"


class Fetched:
    """The parts of a remote checkpoint's files that were asked for, as sparse local files; each block is summed before it is used."""

    def __init__(self, remote: Remote, step: int, folder: Path):
        self.remote, self.step, self.folder = remote, step, folder
        self._files: dict[str, dict[str, Any]] = {}
        self._here: dict[str, set[int]] = {}

    def verify(self, shards: list[dict[str, Any]], part: int = 0, parts: int = 1) -> None:
        """Check the sizes of all of these files, and have one of `parts` equal shares of their blocks here.

        Raises CheckpointError naming the first file that is not as it was written.
        """
        for shard in shards:
            size = self.remote.size(self.step, shard["file"])
            if size != shard["bytes"]:
                raise CheckpointError(f"{self.remote.place(self.step, shard['file'])} has {size:,} bytes, {shard['bytes']:,} were written")
        self._files = {shard["file"]: shard for shard in shards}
        self._here = {name: set() for name in self._files}
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, blocks in groupby(share(shards, part, parts), key=lambda block: str(block[0]["file"])):
            self._fetch(name, {number for _, number in blocks})

    def ensure(self, name: str, start: int, end: int) -> None:
        """Have these bytes of a verified file here. Raises CheckpointError where they are not what was written."""
        self._fetch(name, set(range(start // BLOCK, -(-end // BLOCK))))

    def _fetch(self, name: str, numbers: set[int]) -> None:
        wanted = sorted(numbers - self._here[name])
        if not wanted:
            return
        # Several ranks of a node share the file: each writes what the others would.
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(descriptor, self._files[name]["bytes"])
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda number: self._block(descriptor, name, number), wanted))
        finally:
            os.close(descriptor)
        self._here[name].update(wanted)

    def _block(self, descriptor: int, name: str, number: int) -> None:
        shard, start = self._files[name], number * BLOCK
        size = min(BLOCK, shard["bytes"] - start)
        # Fetched by another rank, or by an attempt before; a hole reads as zeros.
        if _sum(os.pread(descriptor, size, start)) == shard["blocks"][number]:
            return
        data = self.remote.files.cat_file(self.remote.place(self.step, name), start=start, end=start + size)
        if _sum(data) != shard["blocks"][number]:
            raise CheckpointError(
                f"{self.remote.url}: {self.remote.place(self.step, name)} does not have the checksum that it was written with, at byte "
                f"{start:,} or after"
            )
        os.pwrite(descriptor, data, start)


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
