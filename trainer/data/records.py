"""Records: files that hold one document a record, in one or several of its columns, or one example a record: its fields, as JSON.

Whatever the layout of the file, a reader hands on JSON lines, one a record: of JSON files the records themselves, unparsed; of tables only
the wanted cells. So the costly parsing is done by whoever works on a segment, and all layouts share one way from a record to its text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.data.segments import Cut, Flaw, Format, Place, Segment, tail_place
from trainer.data.sources import EVAL, TRAIN, SourceFile
from trainer.data.text import bad_bytes, flaw_in

NO_TEXT = "records without text"
# A record is parsed as a whole; a longer one is a broken file: quotes that are not closed, or no line ends.
LONGEST = 1 << 28
_UNIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Records(Format):
    """One document a record: the text of `columns` (dotted paths), joined by line ends.

    fields: of an example with labels, the field that each column holds; then a document is `{field: value}` as JSON. required: those that
    no example lacks. none: those of which a list of nothing is a value.
    """

    columns: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    none: tuple[str, ...] = ()

    @property
    def examples(self) -> bool:
        return bool(self.fields)

    def learnable(self, text: bytes) -> bytes:
        return "\n".join(strings(json.loads(text))).encode() if self.examples else text

    def text_of(self, record: Any) -> Any:
        """The wanted value of a parsed record: text, or lists of it."""
        return record

    def documents(self, segment: Segment) -> Cut:
        cut = Cut()
        for _, found in self.located(segment):
            if isinstance(found, Flaw):
                cut.flaws.append(found)
            elif found is None:
                cut.dropped[NO_TEXT] = cut.dropped.get(NO_TEXT, 0) + 1
            else:
                cut.texts.append(found)
        return cut

    def located(self, segment: Segment) -> Iterator[tuple[int, bytes | Flaw | None]]:
        """The place of every record of a segment, and its text, or what is wrong with it, or None where it has none."""
        offset = segment.offset
        for index, line in enumerate(segment.text.split(b"\n")):
            if line and not line.isspace():
                number = segment.lines[index] if segment.lines else segment.line + index
                # Of a segment made of a file's own lines a byte can be named.
                yield number, self._read(segment.file, number, line, offset if segment.lines is None else None)
            offset += len(line) + 1

    def _read(self, file: int, number: int, line: bytes, offset: int | None) -> bytes | Flaw | None:
        at = flaw_in(line)
        if at is not None:
            return bad_bytes(file, number, line, at, offset)
        try:
            value = self.text_of(json.loads(line))
            text = (self._example(value) if self.examples else joined(value)).encode()
        except json.JSONDecodeError as error:
            byte = len(line.decode()[: error.pos].encode()) + 1
            return Flaw(file, number, byte, f"broken JSON: {error.msg}", "mend the line: one object a line", "lines that are not JSON")
        except Unreadable as error:
            return Flaw(file, number, None, error.what, error.mend, error.reason)
        except UnicodeEncodeError as error:
            what = f"{error.object[error.start]!a} is half a character (a lone surrogate)"
            return Flaw(file, number, None, what, "write the file anew, as UTF-8", "records with half characters")
        return text if text and not text.isspace() else None

    def _example(self, values: Sequence[Any]) -> str:
        """The fields of a record as JSON; nothing where it has none of them. Raises Unreadable where it lacks one that it must have."""
        found: dict[str, Any] = {}
        for field, value in zip(self.fields, values, strict=True):
            if value is None or value == "" or (value == [] and field not in self.none):
                continue
            # Several columns of one field are one text.
            found[field] = value if field not in found else f"{joined(found[field])}\n{joined(value)}"
        missing = next((field for field in self.required if field not in found), None)
        if found and missing is not None:
            column = self.columns[self.fields.index(missing)]
            raise Unreadable(f"nothing in column {column!r}", f"give the {missing} of this example", f"examples without {missing}")
        return json.dumps(found, ensure_ascii=False, separators=(",", ":")) if found else ""

    def tail(self, files: Sequence[SourceFile], sizes: Sequence[int], share: float) -> Place:
        # Of few documents: they are held at once.
        places: list[tuple[int, int]] = []
        texts: list[bytes] = []
        for number, file in enumerate(files):
            for segment in self.segments(number, file, _UNIT_BYTES):
                for at, text in self.located(segment):
                    if isinstance(text, bytes):
                        places.append((number, at))
                        texts.append(text)
        if not texts:
            return Place(len(files), 0)
        found, inside = tail_place([len(text) for text in texts], lambda number, start: iter((texts[number][start:],)), share)
        return Place(*places[found], inside)

    def parted(self, segment: Segment, place: Place) -> Iterator[Segment]:
        lines = segment.text.split(b"\n")
        numbers = segment.lines or range(segment.line, segment.line + len(lines))
        before = [index for index, number in enumerate(numbers) if (segment.file, number) < (place.file, place.at)]
        cut = len(before)
        inside = place.inside if segment.file == place.file and cut < len(lines) and numbers[cut] == place.at else 0
        if inside:
            text = next(found for at, found in self.located(segment) if at == place.at)
            assert isinstance(text, bytes), "the place was found in a text"
            # A record that is a string is its own text, in every layout.
            head, tail = (as_line(part.decode()) for part in (text[:inside], text[inside:]))
            lines, numbers = [*lines[:cut], head, tail, *lines[cut + 1 :]], [*numbers[: cut + 1], *numbers[cut:]]
            cut += 1
        # What the file's bytes are counted for is of no matter here, as long as each is counted once.
        yield replace(segment, text=b"\n".join(lines[:cut]), lines=list(numbers[:cut]), split=TRAIN)
        yield replace(segment, text=b"\n".join(lines[cut:]), lines=list(numbers[cut:]), split=EVAL, size=0)


class Unreadable(Exception):
    """Why a record is no text."""

    def __init__(self, what: str, mend: str, reason: str):
        super().__init__(what)
        self.what, self.mend, self.reason = what, mend, reason


def joined(value: Any) -> str:
    """The text of a value: text itself, or lists of it joined by line ends; nothing of null. Raises Unreadable for anything else."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n".join(filter(None, map(joined, value)))
    raise Unreadable(
        f"{kind_of(value)} ({json.dumps(value, ensure_ascii=False):.40}), not text",
        "name another column in data.columns.text",
        "records whose text is of another type",
    )


def strings(value: Any) -> Iterator[str]:
    """All text inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def value_at(record: Any, path: str) -> Any:
    """The value of a dotted path: an object's own key first, then that of an object inside; of a list, the values of its items."""
    if isinstance(record, list):
        return [value_at(item, path) for item in record]
    if not isinstance(record, dict):
        return None
    if path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    return value_at(record.get(head), rest) if dot else None


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return kinds[type(value)]


def as_line(value: Any) -> bytes:
    """A value as a line of JSON. Bytes that were no UTF-8 are kept as they were, to be found by whoever reads the line."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")


def gathered(number: int, records: Iterable[tuple[bytes, int]], read: Callable[[], int], unit_bytes: int) -> Iterator[Segment]:
    """Segments of records, each given as a line of JSON and its place. read: bytes of the file that were read so far."""
    found: list[bytes] = []
    lines: list[int] = []
    held = counted = 0
    for record, line in records:
        found.append(record)
        lines.append(line)
        held += len(record) + 1
        if held >= unit_bytes:
            yield Segment(number, 0, lines[0], b"\n".join(found), size=read() - counted, lines=lines)
            found, lines, held, counted = [], [], 0, read()
    # Also where no record is left: all of the file's bytes are accounted for.
    yield Segment(number, 0, lines[0] if lines else 1, b"\n".join(found), size=read() - counted, lines=lines or None)
