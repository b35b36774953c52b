"""CSV and TSV: rows under a header. Python's csv finds the rows, since only a parser knows which line ends stand inside quotes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, ClassVar

from trainer.choices import ConfigError, nearest
from trainer.data.opening import BOM, open_text
from trainer.data.records import LONGEST, Records, Unreadable, as_line, gathered
from trainer.data.segments import Segment
from trainer.data.sources import SourceFile

# Where a quotation mark is never closed, all that follows is one field: nothing behind it can be told apart.
_LOST = ("unexpected end of data", "field larger than field limit")


@dataclass(frozen=True)
class CsvRecords(Records):
    """Rows of CSV files: the wanted fields, as lists. delimiter, quote: one character each; quote may be empty."""

    kind: ClassVar[str] = "csv"
    delimiter: str = ","
    quote: str = '"'

    def text_of(self, record: Any) -> Any:
        # No cell is an object: that is how the reader tells of a row that is none.
        if isinstance(record, dict):
            raise Unreadable(**record)
        return record

    def segments(self, number: int, file: SourceFile, unit_bytes: int) -> Iterator[Segment]:
        with open_text(file.path) as stream:
            rows = Rows(file, stream, self.delimiter, self.quote)
            yield from gathered(number, self._records(rows), lambda: rows.read, unit_bytes)

    def _records(self, rows: Rows) -> Iterator[tuple[bytes, int]]:
        header = rows.header()
        missing = [column for column in self.columns if column not in header]
        if missing:
            raise ConfigError(f"data.columns.text: {rows.file.shown} has no column {missing[0]!r}{nearest(missing[0], header)}")
        places = [header.index(column) for column in self.columns]
        for row, line in rows.rows():
            if isinstance(row, str):
                mend = f"mend it, or give data.quote and data.delimiter (now {self.quote!r} and {self.delimiter!r})"
                yield as_line({"what": f"broken row: {row}", "mend": mend, "reason": "broken rows"}), line
            elif len(row) != len(header):
                what = f"a row of {len(row)} fields under a header of {len(header)}"
                mend = f"quote fields that hold {self.delimiter!r}, or give another data.delimiter or data.quote"
                yield as_line({"what": what, "mend": mend, "reason": "rows of another length"}), line
            else:
                yield as_line([row[place] for place in places]), line


class Rows:
    """The rows of a stream. read: bytes so far, a byte-order mark apart."""

    def __init__(self, file: SourceFile, stream: BinaryIO, delimiter: str, quote: str):
        self.file, self.read = file, 0
        csv.field_size_limit(LONGEST)
        quoting: Any = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
        self.reader = csv.reader(self._lines(stream), delimiter=delimiter, strict=True, **quoting)

    def _lines(self, stream: BinaryIO) -> Iterator[str]:
        while line := stream.readline(LONGEST):
            if not self.read:
                line = line.removeprefix(BOM)
            self.read += len(line)
            yield line.decode("utf-8", "surrogateescape")

    def header(self) -> list[str]:
        """The names of the columns: the first row."""
        row, _ = next(self.rows(), ([], 1))
        if isinstance(row, str):
            raise ConfigError(f"data: {self.file.shown}:1: the header is broken: {row}; give data.quote and data.delimiter")
        return [name.strip() for name in row]

    def rows(self) -> Iterator[tuple[list[str] | str, int]]:
        """The fields of every row, or what is wrong with it, and its first line. Raises ConfigError where the rest is lost."""
        while True:
            line = self.reader.line_num + 1
            try:
                row = next(self.reader)
            except StopIteration:
                return
            except csv.Error as error:
                if str(error).startswith(_LOST):
                    raise ConfigError(
                        f"data: {self.file.shown}:{line}: {error}: a quotation mark is opened here and not closed; mend the row, or set "
                        "data.quote='' where quotation marks mean nothing"
                    ) from error
                yield str(error), line
                continue
            if row:
                yield row, line


def first_rows(file: SourceFile, delimiter: str, quote: str, count: int = 100) -> tuple[list[str], list[list[str]]]:
    """The header, and the first rows that have its length."""
    with open_text(file.path) as stream:
        rows = Rows(file, stream, delimiter, quote)
        header = rows.header()
        return header, [row for row, _ in islice(rows.rows(), count) if isinstance(row, list) and len(row) == len(header)]
