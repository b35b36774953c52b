"""The fingerprint of files: what they hold, read once and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.atomic import write_json
from trainer.data.claims import Claim, Work
from trainer.data.opening import BOM, open_text

# A document's side of the split depends on its first bytes only, so that it is known before a document larger than memory is read.
PREFIX_BYTES = 1 << 16
_BLOCK = 1 << 20
_GROUP_BYTES, _MOST_GROUPS = 64 << 20, 1024


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

    cache: a folder; several calls on one share the reading. advance: called with the bytes of each file once it is known.
    """
    states = [_state(path) for path in paths]
    names = [[path, *state] for path, state in zip(map(os.path.abspath, paths), states, strict=True)]
    # A file written within the clock's grain of now could change again without its time showing it.
    settled = time.time_ns() - 2_000_000_000
    folder = cache / hashlib.sha256(json.dumps([path for path, *_ in names]).encode()).hexdigest()[:32]
    groups: dict[Path, range] = {}
    alone: list[range] = []
    for group in _groups([size for size, *_ in states]):
        if all(states[number][1] < settled for number in group):
            told = json.dumps([binary, [names[number] for number in group]])
            groups[folder / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"] = group
        else:
            alone.append(group)

    def read(group: range) -> list[Fingerprint]:
        found = []
        for number in group:
            found.append(fingerprint(paths[number], binary))
            advance(states[number][0])
        return found

    found: dict[range, list[Fingerprint]] = {}
    with ThreadPoolExecutor(threads) as pool:
        found |= zip(alone, pool.map(read, alone), strict=True)
        mine = _read_together(groups, read, pool, threads) if groups else set()
    for target, group in groups.items():
        found[group] = [Fingerprint(**entry) for entry in json.loads(target.read_text())]
        if target not in mine:
            advance(sum(states[number][0] for number in group))
    return [each for group in sorted(found, key=lambda group: group.start) for each in found[group]]


def _state(path: str) -> tuple[int, int, int]:
    """What changes with a file: its size, the time of its last change, what holds it."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def _groups(sizes: Sequence[int]) -> Iterator[range]:
    """Numbers of consecutive files that are read under one claim."""
    start = held = 0
    enough = max(_GROUP_BYTES, sum(sizes) // _MOST_GROUPS)
    for number, size in enumerate(sizes):
        held += size
        if held >= enough or number == len(sizes) - 1:
            yield range(start, number + 1)
            start, held = number + 1, 0


def _read_together(
    groups: dict[Path, range], read: Callable[[range], list[Fingerprint]], pool: ThreadPoolExecutor, threads: int
) -> set[Path]:
    """Have each group read by somebody, who writes its target; returns the targets that were written here."""
    work, taking, mine = Work(list(groups)), threading.Lock(), set[Path]()

    def take() -> Claim | None:
        with taking:
            return work.take()

    def read_free() -> None:
        while claim := take():
            write_json(claim.aside, [asdict(each) for each in read(groups[claim.target])])
            claim.finish()
            mine.add(claim.target)

    try:
        while True:
            for done in [pool.submit(read_free) for _ in range(threads)]:
                done.result()
            if not work.left():
                return mine
            work.wait()
    finally:
        work.release()
