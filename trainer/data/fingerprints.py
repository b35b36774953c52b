"""The fingerprint of files: what they hold, read once and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.atomic import write_json
from trainer.data.opening import BOM, open_text

# A document's side of the split depends on its first bytes only, so that it is known before a document larger than memory is read.
PREFIX_BYTES = 1 << 16
_BLOCK = 1 << 20


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


def fingerprint(path: str, binary: bool = False) -> Fingerprint:
    """Read a file and fingerprint what it holds. Of text, compressed or not makes no difference."""
    digest, size, head, blank = hashlib.blake2b(digest_size=16), 0, b"", True
    with open(path, "rb") if binary else open_text(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
            if len(head) < PREFIX_BYTES + len(BOM):
                head += block[: PREFIX_BYTES + len(BOM)]
            blank = blank and not binary and not block.removeprefix(BOM).strip()
    mark = len(BOM) if head.startswith(BOM) and not binary else 0
    return Fingerprint(digest.hexdigest(), size - mark, mark, prefix_hash(head[mark:]), blank)


def fingerprints(
    paths: Sequence[str], cache: Path, threads: int, advance: Callable[[int], Any] = lambda size: None, binary: bool = False
) -> list[Fingerprint]:
    """The fingerprint of every file, in order; files unchanged since an earlier call are not read again.

    cache: a folder. advance: called with the bytes of each file once it is known.
    """
    memory = cache / (hashlib.sha256("\0".join([str(binary), *map(os.path.abspath, paths)]).encode()).hexdigest()[:32] + ".json")
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    now = time.time_ns()

    def one(path: str) -> tuple[list[int], Fingerprint]:
        status = os.stat(path)
        state = [status.st_size, status.st_mtime_ns, status.st_ino]
        entry = known.get(path)
        found = Fingerprint(**entry["content"]) if entry and entry["state"] == state else fingerprint(path, binary)
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
