"""CoNLL: a word a line with its columns, a blank line between sentences; and CoNLL-U, whose columns have names.

A record is a sentence: of every column the list of its words' values. CoNLL's columns are numbered from 1, the last is also called `last`.
CoNLL-U: https://universaldependencies.org/format.html; of a sentence also its comments (`text`, `sent_id`) and those of its document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, ClassVar

from trainer.data.opening import BOM, open_text
from trainer.data.records import LONGEST, Records, Unreadable, as_line, gathered
from trainer.data.segments import Segment
from trainer.data.sources import SourceFile

LAST = "last"
UNIVERSAL = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


@dataclass(frozen=True)
class ConllRecords(Records):
    """Sentences of words with columns, parted by tabs where a line has one, else by blanks."""

    kind: ClassVar[str] = "conll"

    def text_of(self, record: Any) -> Any:
        # A sentence that is none says so.
        if "what" in record:
            raise Unreadable(**record)
        return [record.get(column) for column in self.columns]

    def segments(self, number: int, file: SourceFile, unit_bytes: int) -> Iterator[Segment]:
        with open_text(file.path) as stream:
            lines = Lines(stream)
            records = ((as_line(record), line) for record, line in self.sentences(lines))
            yield from gathered(number, records, lambda: lines.read, unit_bytes)

    def sentences(self, lines: Lines) -> Iterator[tuple[dict[str, Any], int]]:
        """Every sentence by its columns, or what is wrong with it, and the line it starts on."""
        for rows, line in _blocks(lines):
            words = [row.split("\t") if "\t" in row else row.split() for row in rows if not row.startswith("-DOCSTART-")]
            widths = {len(word) for word in words}
            if len(widths) > 1:
                what = f"words with {' and '.join(map(str, sorted(widths)))} columns in one sentence"
                yield {"what": what, "mend": "give every word the same columns", "reason": "broken sentences"}, line
            elif words:
                columns = {str(place): list(values) for place, values in enumerate(zip(*words, strict=True), 1)}
                yield columns | {LAST: columns[str(len(columns))]}, line


@dataclass(frozen=True)
class ConlluRecords(ConllRecords):
    """Sentences of CoNLL-U; parts of contracted words and words that are not written are left out."""

    kind: ClassVar[str] = "conllu"

    def sentences(self, lines: Lines) -> Iterator[tuple[dict[str, Any], int]]:
        document: dict[str, Any] = {}
        for rows, line in _blocks(lines):
            about: dict[str, Any] = {}
            for row in rows:
                key, equals, value = row.removeprefix("#").partition("=")
                if row.startswith("#") and equals:
                    about[key.strip()] = value.strip()
            if any(key.startswith("newdoc") for key in about):
                document = {}
            document |= {key: value for key, value in about.items() if key.startswith("newdoc")}
            words = [row.split("\t") for row in rows if not row.startswith("#")]
            broken = next((word for word in words if len(word) != len(UNIVERSAL)), None)
            if broken is not None:
                what = f"a word with {len(broken)} columns in a sentence, not {len(UNIVERSAL)}"
                yield {"what": what, "mend": "part the columns by tabs", "reason": "broken sentences"}, line
                continue
            # 1-2 is written for the words 1 and 2 together, and 1.1 is not written at all.
            words = [word for word in words if word[0].isdecimal()]
            if words:
                columns: dict[str, Any] = {name: list(values) for name, values in zip(UNIVERSAL, zip(*words, strict=True), strict=True)}
                yield columns | document | about, line


class Lines:
    """The lines of a stream. read: bytes so far."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.read = stream, 0

    def __iter__(self) -> Iterator[str]:
        while line := self.stream.readline(LONGEST):
            if not self.read:
                line = line.removeprefix(BOM)
            self.read += len(line)
            yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")


def _blocks(lines: Lines) -> Iterator[tuple[list[str], int]]:
    """Lines between blank ones, and the number of the first."""
    block: list[str] = []
    first = 1
    for number, line in enumerate(lines, 1):
        if line.strip():
            first = first if block else number
            block.append(line)
        elif block:
            yield block, first
            block = []
    if block:
        yield block, first


def conll_columns(file: SourceFile, layout: ConllRecords, count: int = 20) -> dict[str, bool]:
    """The columns of the first sentences."""
    with open_text(file.path) as stream:
        found = [record for record, _ in islice(layout.sentences(Lines(stream)), count) if "what" not in record]
    return {column: not _numbers(values) for record in found for column, values in record.items()}


def _numbers(values: Any) -> bool:
    text: str = json.dumps(values)
    return not any(character.isalpha() for character in text)
