"""A source in parts, each prepared by whoever takes it first. Where they end depends on the files alone, never on who prepares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from trainer.data.segments import Format
from trainer.data.sources import SourceFile

# A part has at least so many bytes, where the source has; more where there would be too many parts to keep an eye on.
PART_BYTES = 256 << 20
_MOST_PARTS = 4096


@dataclass(frozen=True)
class Stretch:
    """What is read of a file in one go: all of it, or the records that begin in some of its bytes (file.start, file.stop).

    index: among all stretches of the source; number: of the file; size: bytes; part: the one that it belongs to.
    """

    index: int
    number: int
    file: SourceFile
    size: int
    part: int


def stretches(files: Sequence[SourceFile], sizes: Sequence[int], layout: Format, divide: bool) -> list[Stretch]:
    """All of a source in order. sizes: bytes of each file. divide: whether large files may be cut, where their format allows it."""
    found: list[Stretch] = []
    part = held = 0
    part_bytes = max(PART_BYTES, sum(sizes) // _MOST_PARTS)
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        count = size // part_bytes if divide and size >= 2 * part_bytes and layout.divisible(file) else 1
        borders = [size * index // count for index in range(count + 1)]
        for start, stop in pairwise(borders):
            piece = replace(file, start=start, stop=stop) if count > 1 else file
            found.append(Stretch(len(found), number, piece, stop - start, part))
            held += stop - start
            if held >= part_bytes:
                part, held = part + 1, 0
    return found


def key_of(found: Sequence[Stretch]) -> str:
    """A hash of where parts end."""
    borders = [(stretch.number, stretch.file.start, stretch.part) for stretch in found]
    return hashlib.sha256(repr(borders).encode()).hexdigest()[:12]


def parts_of(found: Sequence[Stretch]) -> list[list[Stretch]]:
    """The stretches of each part."""
    parts: list[list[Stretch]] = [[] for _ in range(found[-1].part + 1)] if found else []
    for stretch in found:
        parts[stretch.part].append(stretch)
    return parts
