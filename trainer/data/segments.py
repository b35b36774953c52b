"""What a reader hands on: segments of files, and the formats that know how documents lie in them.

A format is used on two sides. The reader asks it for segments, whose borders depend on the content alone and are cheap to find; whoever
works on a segment asks it for the documents inside, where the costly part of parsing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from trainer.data.sources import EVAL, TRAIN, SourceFile


@dataclass
class Segment:
    """A stretch of one file: any number of whole documents, or one document or a part of it.

    text: in the form that its format gave it. size: bytes of the file that it stands for. offset: of its first byte in the decompressed
    file; line: its first line's number (of tables: row), from 1; lines: that of each record, where they do not follow one by one.
    after: the byte that lines are counted from, where the reader began there and not at the start of the file.
    split: where it goes, or None where each of its documents is to be parted by hash. opens, closes: it starts and ends with a document;
    where not both, it is a part of one. repeated: which of its documents repeat an earlier one and are left out.
    """

    file: int
    offset: int
    line: int
    text: bytes
    split: str | None = None
    opens: bool = True
    closes: bool = True
    size: int = 0
    lines: list[int] | None = None
    repeated: list[int] = field(default_factory=list)
    after: int = 0

    @property
    def whole(self) -> bool:
        """Whether it holds whole documents."""
        return self.opens and self.closes


@dataclass(frozen=True)
class Flaw:
    """What cannot be read, and where: file, line (of tables: row) and byte within it, from 1.

    what: the fault and how to mend it. reason: under what it is counted where it is left out. after: as in a segment.
    """

    file: int
    line: int
    byte: int | None
    what: str
    mend: str
    reason: str
    after: int = 0


@dataclass
class Cut:
    """The documents of a segment, in order, and what was left out of them: flaws, and reason → count."""

    texts: list[bytes] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where held-out text begins: a file; where in it, as its format counts; and the byte inside the document there."""

    file: int
    at: int
    inside: int = 0


@dataclass(frozen=True)
class Format:
    """How documents are cut out of files. Its fields are plain values: workers are told of it in JSON."""

    kind: ClassVar[str] = ""
    # Whether documents are ids that another program made (token_files.py), and not text.
    tokens: ClassVar[bool] = False

    @property
    def whole_files(self) -> bool:
        """Whether a document is a file."""
        return False

    @property
    def examples(self) -> bool:
        """Whether a document is an example with labels: its fields, as JSON."""
        return False

    def learnable(self, text: bytes) -> bytes:
        """What of a document a tokenizer is trained on."""
        return text

    def segments(self, number: int, file: SourceFile, unit_bytes: int) -> Iterator[Segment]:
        """All of a file in order, about `unit_bytes` at a time. Raises ConfigError where the rest of the file cannot be read."""
        raise NotImplementedError

    def divisible(self, file: SourceFile) -> bool:
        """Whether reading can begin at a record amid the file: whether `segments` heeds the file's start and stop."""
        return False

    def documents(self, segment: Segment) -> Cut:
        """The documents of a segment, or its part of one."""
        raise NotImplementedError

    def tail(self, files: Sequence[SourceFile], sizes: Sequence[int], share: float) -> Place:
        """Where the last `share` of all text begins. sizes: decompressed bytes of each file."""
        raise NotImplementedError

    def parted(self, segment: Segment, place: Place) -> Iterator[Segment]:
        """A segment with its split, cut in two where the place lies inside it: training before, held out after."""
        raise NotImplementedError


def cut_out(layout: Format, segment: Segment) -> Cut:
    """What a format finds in a segment; its flaws know from where their lines are counted."""
    cut = layout.documents(segment)
    if segment.after:
        cut.flaws = [replace(flaw, after=segment.after) for flaw in cut.flaws]
    return cut


def parted_bytes(segment: Segment, place: Place) -> Iterator[Segment]:
    """A segment that holds a file's own bytes, with its split, cut at a place that counts bytes."""
    inside = place.at - segment.offset
    if segment.file != place.file or not 0 < inside < len(segment.text):
        segment.split = EVAL if (segment.file, segment.offset) >= (place.file, place.at) else TRAIN
        yield segment
        return
    head, tail = segment.text[:inside], segment.text[inside:]
    yield replace(segment, text=head, split=TRAIN, closes=True, size=len(head))
    line = segment.line + head.count(b"\n")
    yield replace(segment, offset=place.at, line=line, text=tail, split=EVAL, opens=True, size=len(tail))


def tail_place(sizes: Sequence[int], blocks: Callable[[int, int], Iterator[bytes]], share: float) -> tuple[int, int]:
    """The first line end (text, offset after it) that leaves at most a share of all bytes behind it.

    sizes: bytes of each text; blocks: reads text n from an offset on. Where no further line ends, the place itself, moved to a
    character's start.
    """
    start = sum(sizes) - int(share * sum(sizes))
    number = 0
    while number < len(sizes) - 1 and start >= sizes[number]:
        start -= sizes[number]
        number += 1
    offset, first = start, b""
    for block in blocks(number, start):
        first = first or block
        position = block.find(b"\n")
        if position >= 0:
            if offset + position + 1 < sizes[number]:
                return number, offset + position + 1
            break
        offset += len(block)
    if number + 1 < len(sizes):
        return number + 1, 0
    while first[:1] and first[0] & 0xC0 == 0x80:
        start, first = start + 1, first[1:]
    return number, start
