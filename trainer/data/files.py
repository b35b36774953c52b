"""Text files: finding them, opening them, and the fingerprint of their content.

Two formats are read: UTF-8 text, and gzip of it, told by content and not by name. Nothing is unpacked, unpickled or executed.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from trainer.atomic import write_json
from trainer.choices import ConfigError, nearest

ALLOWED = "UTF-8 text, plain or gzip (.gz)"
# Formats that hold no text, or text only after unpacking. A pickle of protocol 0 looks like text, hence names and not content alone.
NOT_TEXT = frozenset(
    f".{suffix}"
    for names in (
        "pkl pickle joblib pt pth ckpt bin safetensors npy npz h5 hdf5 parquet arrow feather sqlite db",
        "zip tar tgz bz2 xz zst 7z rar so dll exe pyc pdf doc docx png jpg jpeg gif mp3 mp4",
    )
    for suffix in names.split(" ")
)
BOM = b"\xef\xbb\xbf"
# A document's side of the split depends on its first bytes only, so that it is known before a document larger than memory is read.
PREFIX_BYTES = 1 << 16
_BLOCK = 1 << 20


def find_files(given: str | Sequence[str], key: str) -> tuple[list[str], dict[str, int]]:
    """The text files that paths, folders and patterns name, sorted, each once; and what was left out of folders, by reason.

    Raises ConfigError (B13) where an entry names nothing, (S09) where a named file is of a format that is not read.
    """
    found: set[str] = set()
    dropped: dict[str, int] = {}
    for entry in [given] if isinstance(given, str) else given:
        path = os.path.expanduser(entry)
        if os.path.isdir(path):
            inside = list(_walk(path))
            kept = [file for file in inside if refusal(file) is None]
            if not kept:
                raise ConfigError(f"{key}: no text in folder {path} ({len(inside)} files looked at); allowed: {ALLOWED}")
            if len(kept) < len(inside):
                dropped["files that are not text"] = dropped.get("files that are not text", 0) + len(inside) - len(kept)
            found.update(kept)
            continue
        matches = [path] if os.path.lexists(path) else sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        if not matches:
            raise ConfigError(_not_found(path, entry, key))
        for file in matches:
            reason = refusal(file)
            if reason:
                raise ConfigError(f"{key}: {file}: {reason}; allowed: {ALLOWED}")
        found.update(matches)
    return sorted(os.path.normpath(path) for path in found), dropped


def _walk(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(root, name) for name in files if not name.startswith("."))


def _not_found(path: str, entry: str, key: str) -> str:
    folder = os.path.dirname(path) or "."
    if glob.has_magic(path):
        return f"{key}: {entry!r} matches no file, seen from {os.getcwd()}; put a pattern in quotes so that the shell leaves it alone"
    if not os.path.isdir(folder):
        return f"{key}: {entry!r} not found: there is no folder {folder}, seen from {os.getcwd()}; give an existing file, folder or pattern"
    hint = nearest(os.path.basename(path), sorted(os.listdir(folder)))
    return f"{key}: {entry!r} not found in {os.path.abspath(folder)}{hint or '; give an existing file, folder or pattern'}"


def refusal(path: str) -> str | None:
    """Why a file cannot be read as text, from its name and its first bytes; None where it can."""
    if not os.path.isfile(path):
        return "not a regular file"
    name = path[:-3] if path.endswith(".gz") else path
    suffix = os.path.splitext(name)[1].lower()
    if suffix in NOT_TEXT:
        return f"a {suffix} file is not text"
    with open_text(path) as stream:
        head = stream.read(1 << 12)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"
    if b"\0" in head:
        return f"binary (a zero byte at offset {head.index(0)})"
    return None


@contextmanager
def open_text(path: str) -> Iterator[BinaryIO]:
    """The bytes of a text file, decompressed. Raises ConfigError where it cannot be opened or the gzip stream is damaged."""
    try:
        with open(path, "rb", buffering=0) as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield io.BufferedReader(raw, _BLOCK)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: damaged gzip stream ({error}); copy or compress the file again") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def prefix_hash(text: bytes) -> int:
    """64 bits of a document's first bytes: equal documents have equal hashes, so they lie on the same side of a split."""
    return int.from_bytes(hashlib.blake2b(text[:PREFIX_BYTES], digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Fingerprint:
    """A file's content: digest of the decompressed bytes, their number (a byte-order mark apart), and the hash of the first of them."""

    digest: str
    size: int
    mark: int
    prefix: int
    blank: bool


def fingerprint(path: str) -> Fingerprint:
    """Read a file and fingerprint what it holds. Compressed or not makes no difference."""
    digest, size, head, blank = hashlib.blake2b(digest_size=16), 0, b"", True
    with open_text(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
            if len(head) < PREFIX_BYTES + len(BOM):
                head += block[: PREFIX_BYTES + len(BOM)]
            blank = blank and not block.removeprefix(BOM).strip()
    mark = len(BOM) if head.startswith(BOM) else 0
    return Fingerprint(digest.hexdigest(), size - mark, mark, prefix_hash(head[mark:]), blank)


def fingerprints(paths: Sequence[str], cache: Path, threads: int, advance: Callable[[int], Any] = lambda size: None) -> list[Fingerprint]:
    """The fingerprint of every file, in order; files unchanged since an earlier call are not read again.

    cache: a folder. advance: called with the bytes of each file once it is known.
    """
    memory = cache / (hashlib.sha256("\0".join(map(os.path.abspath, paths)).encode()).hexdigest()[:32] + ".json")
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    now = time.time_ns()

    def one(path: str) -> tuple[list[int], Fingerprint]:
        status = os.stat(path)
        state = [status.st_size, status.st_mtime_ns, status.st_ino]
        entry = known.get(path)
        found = Fingerprint(**entry["content"]) if entry and entry["state"] == state else fingerprint(path)
        advance(status.st_size)
        return state, found

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(one, paths))
    # A file written within the clock's grain of now could change again without its time showing it.
    entries = {
        path: {"state": state, "content": asdict(found)}
        for path, (state, found) in zip(paths, results, strict=True)
        if now - state[1] > 2_000_000_000
    }
    cache.mkdir(parents=True, exist_ok=True)
    write_json(memory, entries)
    return [found for _, found in results]
