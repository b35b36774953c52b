"""JSON: one object a line (jsonl), or one array of objects."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, ClassVar

from trainer.choices import ConfigError
from trainer.data.opening import BOM, is_plain, lines_before, open_text, seek_line
from trainer.data.records import LONGEST, Records, Unreadable, gathered, kind_of, value_at
from trainer.data.segments import Segment
from trainer.data.sources import SourceFile

_BLOCK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class JsonRecords(Records):
    """Objects of JSON files, parsed by whoever works on them."""

    kind: ClassVar[str] = "json"

    def text_of(self, record: Any) -> Any:
        if isinstance(record, str) and not self.examples:
            return record
        if not isinstance(record, dict):
            mend = "write one object a line, such as {" + json.dumps(self.columns[0]) + ': "…"}'
            raise Unreadable(f"{kind_of(record)}, not an object", mend, "lines that are no object")
        return [value_at(record, column) for column in self.columns]

    def divisible(self, file: SourceFile) -> bool:
        return is_plain(file.path) and not is_array(file.path)

    def segments(self, number: int, file: SourceFile, unit_bytes: int) -> Iterator[Segment]:
        with open_text(file.path) as stream:
            if is_array(file.path):
                yield from _of_array(number, file, stream, unit_bytes)
            else:
                yield from _of_lines(number, file, stream, unit_bytes)


def is_array(path: str) -> bool:
    """Whether a JSON file is one array and not one object a line."""
    with open_text(path) as stream:
        while block := stream.read(1 << 12).removeprefix(BOM):
            if not block.isspace():
                return block.lstrip().startswith(b"[")
    return False


def _of_lines(number: int, file: SourceFile, stream: BinaryIO, unit_bytes: int) -> Iterator[Segment]:
    offset, line = seek_line(stream, file.start), 1
    begin = offset
    while block := stream.read(unit_bytes if file.stop is None else max(0, min(unit_bytes, file.stop - offset))):
        if not block.endswith(b"\n"):
            block += stream.readline(LONGEST)
        if len(block) > LONGEST:
            last = line + block.count(b"\n") + lines_before(file.path, begin)
            raise ConfigError(f"data: {file.shown}:{last}: a line of more than {LONGEST >> 20} MB; data=jsonl reads one object a line")
        if offset == 0 and block.startswith(BOM):
            block, offset = block[len(BOM) :], len(BOM)
        yield Segment(number, offset, line, block, size=len(block), after=begin)
        offset, line = offset + len(block), line + block.count(b"\n")
    if not offset:
        yield Segment(number, 0, 1, b"")


def _of_array(number: int, file: SourceFile, stream: BinaryIO, unit_bytes: int) -> Iterator[Segment]:
    array = _Array(stream, file)
    # Line ends between tokens mean nothing, and inside a string there are none.
    lines = ((text.replace("\n", " ").encode("utf-8", "surrogateescape"), line) for text, line in array.elements())
    yield from gathered(number, lines, lambda: array.read, unit_bytes)


class _Array:
    """The elements of one JSON array, of which some megabytes are held. read: bytes so far, a byte-order mark apart."""

    def __init__(self, stream: BinaryIO, file: SourceFile):
        self.stream, self.file, self.read = stream, file, 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.line, self.before, self.ended = "", 0, 1, 0, False

    def elements(self) -> Iterator[tuple[str, int]]:
        """The text of each element and the line that it starts on. Raises ConfigError where the array is broken."""
        parse = json.JSONDecoder().raw_decode
        self._expect("[")
        if self._next() == "]":
            self.at += 1
            return self._end()
        while True:
            self._next()
            while True:
                try:
                    _, end = parse(self.text, self.at)
                    break
                except json.JSONDecodeError as error:
                    # What the block's end cut off is no fault; a string without an end says where it begins.
                    cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - 12
                    if self.ended or not cut_off:
                        raise self._broken(error.msg, error.pos) from error
                    self._fill()
            yield self.text[self.at : end], self.line
            self._advance(end)
            if self._expect(",]") == "]":
                return self._end()

    def _end(self) -> None:
        if self._next():
            raise self._broken("text after the end of the array", self.at)

    def _expect(self, allowed: str) -> str:
        found = self._next()
        if not found or found not in allowed:
            raise self._broken(f"Expecting {' or '.join(map(repr, allowed))}", self.at)
        self.at += 1
        return found

    def _next(self) -> str:
        """The next character that is no blank, at `self.at`; nothing at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            assert space is not None
            self._advance(space.end())
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._fill()

    def _advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def _fill(self) -> None:
        """Drop what is done with and read on, twice as much where one element is longer than what is held."""
        if len(self.text) - self.at > LONGEST:
            raise self._broken(f"a record of more than {LONGEST >> 20} MB", self.at)
        begin = self.text.rfind("\n", 0, self.at) + 1
        self.before = self._bytes(begin, self.at) + (0 if begin else self.before)
        block = self.stream.read(max(_BLOCK, len(self.text) - self.at))
        self.ended = not block
        if not self.read:
            block = block.removeprefix(BOM)
        self.read += len(block)
        self.text = self.text[self.at :] + self.decoder.decode(block, final=self.ended)
        self.at = 0

    def _bytes(self, start: int, stop: int) -> int:
        return len(self.text[start:stop].encode("utf-8", "surrogateescape"))

    def _broken(self, what: str, at: int) -> ConfigError:
        begin = self.text.rfind("\n", 0, at) + 1
        line = self.line + (self.text.count("\n", self.at, at) if at > self.at else 0)
        byte = self._bytes(begin, at) + (0 if begin else self.before) + 1
        return ConfigError(
            f"data: {self.file.shown}:{line}:{byte}: broken JSON: {what}; mend the file: it is one array, so nothing behind this place can "
            "be read, and data.on_error=skip cannot leave it out. One object a line (jsonl) has no such weakness"
        )


def first_records(file: SourceFile, count: int = 100) -> list[dict[str, Any]]:
    """The first objects of a JSON file, to see what columns there are. What is broken is left for those who read all of it."""
    found = []
    layout = JsonRecords()
    with_text = (segment for segment in layout.segments(0, file, 1 << 16) if segment.text.strip())
    for segment in islice(with_text, 1):
        for line in islice(segment.text.split(b"\n"), count):
            try:
                record = json.loads(line) if line.strip() else None
            except ValueError:
                continue
            if isinstance(record, dict):
                found.append(record)
    return found
