"""From files to units of a few megabytes: the work items of prepare. Their borders depend on the content alone.

The reader only looks for borders and holds one unit at a time; documents are cut out of a unit by whoever works on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from trainer.data.files import BOM, open_text, prefix_hash
from trainer.data.sources import EVAL, TRAIN, Document, SourceFile

UNIT_BYTES = 1 << 20
_BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")
_LEADING_BLANK_LINES = re.compile(rb"(?:[ \t\r]*\n)+")


@dataclass
class Segment:
    """Text of one file: any number of whole documents, or one document or a part of it.

    offset: of its first byte in the decompressed file; line: its first line's number, from 1. split: where it goes, or None where each
    of its documents is to be parted by hash. opens, closes: it starts and ends with a document; where not both, it is a part of one.
    """

    file: int
    offset: int
    line: int
    text: bytes
    split: str | None
    opens: bool = True
    closes: bool = True

    @property
    def whole(self) -> bool:
        """Whether it holds whole documents."""
        return self.opens and self.closes


@dataclass
class Unit:
    """Segments that are worked on together."""

    index: int
    segments: list[Segment] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True)
class Parting:
    """What decides which documents are held out: those whose hash is below a threshold, or all bytes from a place (file, offset) on."""

    threshold: int = 0
    place: tuple[int, int] | None = None

    def split(self, hashed: int) -> str:
        return EVAL if hashed < self.threshold else TRAIN


def units(
    files: Sequence[SourceFile], document: Document, parting: Parting, prefixes: Sequence[int], unit_bytes: int = UNIT_BYTES
) -> Iterator[Unit]:
    """All text, in order, in units of about `unit_bytes`. prefixes: of each file, the hash that parts it where a document is a file."""
    unit = Unit(0)
    for number, file in enumerate(files):
        for segment in _segments(number, file, document, parting, prefixes[number], unit_bytes):
            if unit.segments and unit.size + len(segment.text) > unit_bytes:
                yield unit
                unit = Unit(unit.index + 1)
            unit.segments.append(segment)
            unit.size += len(segment.text)
    if unit.segments:
        yield unit


def _segments(number: int, file: SourceFile, document: Document, parting: Parting, prefix: int, unit_bytes: int) -> Iterator[Segment]:
    """The segments of one file: those of `_raw_segments`, each told its split and cut at the place of the parting."""
    current: str | None = None
    for segment in _raw_segments(number, file.path, document, unit_bytes):
        if parting.place is not None and file.split is None:
            yield from _cut(segment, parting.place)
            continue
        if file.split is not None:
            segment.split = file.split
        elif document is Document.file:
            segment.split = parting.split(prefix)
        elif not segment.whole:
            # A document too long for a unit: its first part decides, since the rest may not even be read yet.
            current = parting.split(prefix_hash(next(documents(segment, document)))) if segment.opens else current
            segment.split = current
        yield segment


def _cut(segment: Segment, place: tuple[int, int]) -> Iterator[Segment]:
    """A segment, parted at a place: before it training, after it held out."""
    file, offset = place
    inside = offset - segment.offset
    if segment.file != file or not 0 < inside < len(segment.text):
        segment.split = EVAL if (segment.file, segment.offset) >= place else TRAIN
        yield segment
        return
    head, tail = segment.text[:inside], segment.text[inside:]
    yield Segment(segment.file, segment.offset, segment.line, head, TRAIN, segment.opens, True)
    yield Segment(segment.file, offset, segment.line + head.count(b"\n"), tail, EVAL, True, segment.closes)


def _raw_segments(number: int, path: str, document: Document, unit_bytes: int) -> Iterator[Segment]:
    with open_text(path) as stream:
        pending = stream.read(unit_bytes)
        offset, line, opens, last = 0, 1, True, not pending
        if pending.startswith(BOM):
            pending, offset = pending[len(BOM) :], len(BOM)
        if last:
            yield Segment(number, 0, 1, b"", None)
        while pending:
            if not last and len(pending) <= unit_bytes:
                block = stream.read(unit_bytes)
                pending, last = pending + block, not block
                continue
            end, closes = _border(pending, unit_bytes, document, opens, last)
            text, pending = pending[:end], pending[end:]
            yield Segment(number, offset, line, text, None, opens, closes)
            offset, line, opens = offset + end, line + text.count(b"\n"), closes


def _border(text: bytes, limit: int, document: Document, opens: bool, last: bool) -> tuple[int, bool]:
    """Where the next segment ends, at most `limit` bytes on unless the text ends there, and whether a document ends there too."""
    if document is not Document.file:
        end = _first_end(text, limit, document) if not opens else _last_end(text, limit, document) if len(text) > limit or not last else 0
        if end:
            return end, True
    if last and len(text) <= limit:
        return len(text), True
    end = soft_border(text, 0, limit)
    # A blank line must not be parted, or neither segment would show that a document ends there.
    while document is Document.blank_line and end > 1 and (text[end : end + 1].isspace() or text[end] & 0xC0 == 0x80):
        end -= 1
    return end, False


def _last_end(text: bytes, limit: int, document: Document) -> int:
    """The end of the last document that ends within the limit, its separator included; 0 where none does."""
    if document is Document.line:
        return text.rfind(b"\n", 0, limit) + 1
    position = text.rfind(b"\n\n", 0, limit)
    if position >= 0:
        return position + 2
    return max((match.end() for match in _BLANK_LINES.finditer(text, 0, limit)), default=0)


def _first_end(text: bytes, limit: int, document: Document) -> int:
    if document is Document.line:
        return text.find(b"\n", 0, limit) + 1
    match = _BLANK_LINES.search(text, 0, limit)
    return match.end() if match else 0


def soft_border(text: bytes, start: int, limit: int) -> int:
    """Where to cut text inside a document so that its tokens stay the same: at a line end between two lines that neither are blank nor
    indented, else at any line end, a space, a character. Looks back from start + limit, no further than half the way.
    """
    stop, floor = start + limit, start + limit // 2
    position = stop
    while (position := text.rfind(b"\n", floor, position)) > floor:
        if not text[position - 1 : position].isspace() and not text[position + 1 : position + 2].isspace():
            return position + 1
    for mark in (b"\n", b" "):
        position = text.rfind(mark, floor, stop)
        if position > floor:
            return position + 1
    while stop > start + 1 and text[stop : stop + 1] and text[stop] & 0xC0 == 0x80:
        stop -= 1
    return stop


def documents(segment: Segment, document: Document) -> Iterator[bytes]:
    """The documents of a segment, or its part of one, without the line ends that part them."""
    if document is Document.file:
        yield segment.text
    elif document is Document.line:
        for line in segment.text.split(b"\n") if segment.whole else (segment.text.removesuffix(b"\n"),):
            yield line.removesuffix(b"\r")
    else:
        for text in _BLANK_LINES.split(segment.text) if segment.whole else (segment.text,):
            blank = _LEADING_BLANK_LINES.match(text) if segment.opens else None
            text = text[blank.end() :] if blank else text
            yield text.rstrip() if segment.closes else text


def parted(segment: Segment, document: Document, threshold: int) -> Iterator[tuple[str, bytes]]:
    """The documents of a segment that hold more than white space, each with its split."""
    parting = Parting(threshold)
    for text in documents(segment, document):
        if text and not text.isspace():
            yield segment.split or parting.split(prefix_hash(text)), text


@dataclass(frozen=True)
class Flaw:
    """A byte that is not text: where it stands. line and byte count from 1, the byte within its line; offset from 0 within the file."""

    file: int
    line: int
    byte: int
    offset: int
    value: int

    @property
    def what(self) -> str:
        return f"byte 0x{self.value:02x} is " + ("a zero: not a text file?" if self.value == 0 else "not UTF-8")


def without_flaws(segment: Segment) -> tuple[Segment, list[Flaw]]:
    """The segment without the lines that are not UTF-8 text, and the first flaw of each of those lines."""
    if is_text(segment.text):
        return segment, []
    flaws, kept, offset = [], [], segment.offset
    for number, line in enumerate(_lines(segment.text)):
        at = flaw_in(line)
        if at is None:
            kept.append(line)
        else:
            flaws.append(Flaw(segment.file, segment.line + number, at + 1, offset + at, line[at]))
        offset += len(line)
    clean = Segment(segment.file, segment.offset, segment.line, b"".join(kept), segment.split, segment.opens, segment.closes)
    return clean, flaws


def _lines(text: bytes) -> Iterator[bytes]:
    """Lines with their line feeds; no other byte ends one."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def is_text(text: bytes) -> bool:
    """Whether bytes are UTF-8 without a zero byte."""
    return flaw_in(text) is None


def flaw_in(text: bytes) -> int | None:
    """The index of the first byte that is not UTF-8 text."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        zero = text.find(b"\0", 0, error.start)
        return zero if zero >= 0 else error.start
    zero = text.find(b"\0")
    return zero if zero >= 0 else None
