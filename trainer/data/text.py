"""Text files: UTF-8, a document being a file, a paragraph or a line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, ClassVar

from trainer.data.opening import BOM, is_plain, open_text, seek_line, skip
from trainer.data.segments import Cut, Flaw, Format, Place, Segment, parted_bytes, tail_place
from trainer.data.sources import Document, SourceFile

_BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")
_LEADING_BLANK_LINES = re.compile(rb"(?:[ \t\r]*\n)+")
_WHITE_SPACE = re.compile(rb"[ \n]+")
# A comma or a full stop before an ideograph.
_CLAUSE_END = re.compile("(?:，|。|；|！|？)".encode() + rb"(?=[\xe4-\xe9])")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class TextFormat(Format):
    """Documents as runs of bytes. One that is longer than a unit comes in several segments, cut where its tokens stay the same."""

    kind: ClassVar[str] = "text"
    document: Document = Document.file

    @property
    def whole_files(self) -> bool:
        return self.document is Document.file

    def divisible(self, file: SourceFile) -> bool:
        return self.document is not Document.file and is_plain(file.path)

    def segments(self, number: int, file: SourceFile, unit_bytes: int) -> Iterator[Segment]:
        with open_text(file.path) as stream:
            begin, end = self._stretch(file, stream)

            def read() -> bytes:
                return stream.read(unit_bytes if end is None else max(0, min(unit_bytes, end - stream.tell())))

            pending = read()
            offset, line, opens, last = begin, 1, True, not pending
            if not begin and pending.startswith(BOM):
                pending, offset = pending[len(BOM) :], len(BOM)
            if last:
                yield Segment(number, begin, 1, b"")
            while pending:
                if not last and len(pending) <= unit_bytes:
                    block = read()
                    pending, last = pending + block, not block
                    continue
                cut, closes = _border(pending, unit_bytes, self.document, opens, last)
                text, pending = pending[:cut], pending[cut:]
                yield Segment(number, offset, line, text, opens=opens, closes=closes, size=len(text), after=begin)
                offset, line, opens = offset + cut, line + text.count(b"\n"), closes

    def _stretch(self, file: SourceFile, stream: BinaryIO) -> tuple[int, int | None]:
        """Where the documents begin and end that are meant, None being the end of the file; the stream is sent to the first."""
        if file.stop is None:
            return 0, None
        if self.document is Document.line:
            stop = seek_line(stream, file.stop)
            return seek_line(stream, file.start), stop
        # A document that goes on over all of these bytes belongs to those where it begins; they alone look for its end.
        begin: int | None = _seek_blank_line(stream, file.start, file.stop) if file.start else 0
        if begin is None:
            return 0, 0
        end = _seek_blank_line(stream, file.stop)
        return stream.seek(begin), end

    def documents(self, segment: Segment) -> Cut:
        clean, flaws = without_flaws(segment)
        return Cut([text for text in documents(clean, self.document) if text and not text.isspace()], flaws)

    def tail(self, files: Sequence[SourceFile], sizes: Sequence[int], share: float) -> Place:
        def blocks(number: int, start: int) -> Iterator[bytes]:
            with open_text(files[number].path) as stream:
                skip(stream, start)
                while block := stream.read(_BLOCK):
                    yield block

        return Place(*tail_place(sizes, blocks, share))

    def parted(self, segment: Segment, place: Place) -> Iterator[Segment]:
        yield from parted_bytes(segment, place)


def _seek_blank_line(stream: BinaryIO, place: int, stop: float = math.inf) -> int | None:
    """Go behind the first blank line that begins at a byte or after it; returns where that is, or the end of the file. None where no
    blank line begins before `stop`."""
    at = line = seek_line(stream, place)
    blank = True
    while line < stop and (block := stream.readline(_BLOCK)):
        at += len(block)
        blank = blank and not block.strip(b" \t\r\n")
        if block.endswith(b"\n"):
            if blank:
                return at
            line, blank = at, True
    return None if line >= stop else at


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
    if document is Document.blank_line and not is_between_words(text, end):
        while end > 1 and (text[end : end + 1].isspace() or text[end] & 0xC0 == 0x80):
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
    indented, else before a space, at any line end, at the end of a clause, at a character. Looks back from start + limit, no further than
    half the way.
    """
    stop, floor = start + limit, start + limit // 2
    return (
        _even_line_end(text, floor, stop)
        or _space(text, floor, stop)
        or text.rfind(b"\n", floor + 1, stop) + 1
        or _clause_end(text, floor, stop)
        or _character(text, start, stop)
    )


def piece_border(text: bytes, start: int, limit: int) -> int:
    """As soft_border, before a space first: there also such tokenizers cut as put a space before a text that has none."""
    stop, floor = start + limit, start + limit // 2
    return (
        _space(text, floor, stop)
        or _even_line_end(text, floor, stop)
        or _white_space(text, floor, stop)
        or _clause_end(text, floor, stop)
        or _character(text, start, stop)
    )


def _even_line_end(text: bytes, floor: int, stop: int) -> int:
    """The last line end between two lines that neither are blank nor indented; 0 where there is none."""
    position = stop
    while (position := text.rfind(b"\n", floor, position)) > floor:
        if not text[position - 1 : position].isspace() and not text[position + 1 : position + 2].isspace():
            return position + 1
    return 0


def _space(text: bytes, floor: int, stop: int) -> int:
    """The last single space between two words, which belongs to the second; 0 where there is none."""
    position = stop
    while (position := text.rfind(b" ", floor, position)) > floor:
        if is_between_words(text, position):
            return position
    return 0


def is_between_words(text: bytes, position: int) -> bool:
    """Whether a space stands there with neither white space nor an end beside it."""
    before = text[max(0, position - 4) : position].decode(errors="ignore")[-1:]
    after = text[position + 1 : position + 5].decode(errors="ignore")[:1]
    return text[position : position + 1] == b" " and bool(before and after) and not (before.isspace() or after.isspace())


def _white_space(text: bytes, floor: int, stop: int) -> int:
    """Where the last run of spaces and line ends begins; 0 where there is none."""
    starts = (match.start() for match in _WHITE_SPACE.finditer(text, floor, stop) if match.start() > floor)
    return max((at for at in starts if not text[max(0, at - 4) : at].decode(errors="ignore")[-1:].isspace()), default=0)


def _clause_end(text: bytes, floor: int, stop: int) -> int:
    """The end of the last Chinese clause with a letter after it; 0 where there is none."""
    return max((match.end() for match in _CLAUSE_END.finditer(text, floor, stop)), default=0)


def _character(text: bytes, start: int, stop: int) -> int:
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
            flaws.append(bad_bytes(segment.file, segment.line + number, line, at, offset))
        offset += len(line)
    return replace(segment, text=b"".join(kept)), flaws


def bad_bytes(file: int, line: int, text: bytes, at: int, offset: int | None) -> Flaw:
    """The flaw of a byte that is not text. text: its line; at: its place there; offset: of the line in the decompressed file.

    Where the offset is None, the line is not as it stands in the file, and the place in it means nothing.
    """
    what = f"byte 0x{text[at]:02x} is " + ("a zero: not a text file?" if text[at] == 0 else "not UTF-8")
    where = "" if offset is None else f", at offset {offset + at}"
    mend = "convert the file to UTF-8 (iconv -f ENCODING -t UTF-8)"
    return Flaw(file, line, None if offset is None else at + 1, f"{what}{where}", mend, "lines that are not UTF-8")


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
