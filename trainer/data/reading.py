"""From files to units of a few megabytes: the work items of prepare. Their borders depend on the content alone.

The reader only looks for borders and holds one unit at a time; documents are cut out of a unit by whoever works on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trainer.data.fingerprints import prefix_hash
from trainer.data.parts import Stretch
from trainer.data.segments import Cut, Format, Place, Segment
from trainer.data.sources import EVAL, TRAIN

if TYPE_CHECKING:
    from trainer.data.duplicates import Repeated

UNIT_BYTES = 1 << 20


@dataclass
class Unit:
    """Segments that are worked on together. size: bytes of the files that they stand for."""

    index: int
    segments: list[Segment] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True)
class Parting:
    """What decides which documents are held out: those whose hash is below a threshold, or all from a place on.

    together: of examples, the field that is hashed, so that those that agree in it stay together; of those without it, all of them is."""

    threshold: int = 0
    place: Place | None = None
    together: str | None = None

    def hashed(self, text: bytes) -> int:
        shared = json.loads(text).get(self.together) if self.together else None
        return prefix_hash(text if shared is None else json.dumps(shared).encode())

    def split(self, hashed: int) -> str:
        return EVAL if hashed < self.threshold else TRAIN


def units(
    stretches: Iterable[Stretch],
    layout: Format,
    parting: Parting,
    prefixes: Sequence[int],
    unit_bytes: int = UNIT_BYTES,
    repeated: Repeated | None = None,
) -> Iterator[Unit]:
    """All text of some stretches, in order, in units of about `unit_bytes`. prefixes: of each file, the hash that parts it where a
    document is a file. repeated: the documents that are marked as such."""
    unit, held = Unit(0), 0
    for stretch in stretches:
        found = segments(stretch, layout, parting, prefixes[stretch.number], unit_bytes)
        for segment in found if repeated is None else repeated.marked(stretch, found):
            if unit.segments and held + len(segment.text) > unit_bytes:
                yield unit
                unit, held = Unit(unit.index + 1), 0
            unit.segments.append(segment)
            unit.size += segment.size
            held += len(segment.text)
    if unit.segments:
        yield unit


def segments(stretch: Stretch, layout: Format, parting: Parting, prefix: int, unit_bytes: int) -> Iterator[Segment]:
    """The segments of a stretch, each told its split, and cut at the place of the parting. prefix: the hash that parts its file."""
    current: str | None = None
    file = stretch.file
    for segment in layout.segments(stretch.number, file, unit_bytes):
        if parting.place is not None and file.split is None:
            yield from layout.parted(segment, parting.place)
            continue
        if file.split is not None:
            segment.split = file.split
        elif layout.whole_files:
            segment.split = parting.split(prefix)
        elif not segment.whole:
            # A document too long for a unit: its first part decides, since the rest may not even be read yet.
            if segment.opens:
                first = layout.documents(segment).texts
                current = parting.split(parting.hashed(first[0] if first else b""))
            segment.split = current
        yield segment


def splits(cut: Cut, segment: Segment, parting: Parting) -> Iterator[tuple[str, bytes]]:
    """The documents of a segment that repeat no earlier one, each with its split."""
    repeated = set(segment.repeated)
    for index, text in enumerate(cut.texts):
        if index not in repeated:
            yield segment.split or parting.split(parting.hashed(text)), text
