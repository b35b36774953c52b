"""Which columns are what: as asked for, or the only ones that can be meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError, nearest
from trainer.data.arrow_files import Table, holds_text, is_bytes, types_of
from trainer.data.csv_files import first_rows
from trainer.data.json_files import first_records
from trainer.data.sources import SourceFile

if TYPE_CHECKING:
    from trainer.tasks import Field

DEFAULT = "text"
# Of a file: column → whether it holds text.
There = Callable[[SourceFile], Mapping[str, bool]]


def text_columns(files: Sequence[SourceFile], wanted: list[str] | None, there: There) -> list[str]:
    """The columns that hold the text of a document. Raises ConfigError (B14) for a file that does not have them."""
    for file in files:
        if columns := there(file):
            wanted = choose_columns(file, columns, wanted)
    # Of files without a record whatever is read is nothing.
    return wanted or [DEFAULT]


def field_columns(
    files: Sequence[SourceFile], fields: Mapping[str, Field], wanted: Mapping[str, list[str]], there: There
) -> list[tuple[str, str]]:
    """(field, column) for every column of an example that is read. wanted: those asked for, by field.

    Raises ConfigError (B14): a field that no column goes by the name of, a column that a file lacks, a field that the task does not read.
    """
    for field, columns in wanted.items():
        if field not in fields:
            reads = ", ".join(fields)
            raise ConfigError(f"data.columns.{field}: {columns[0]!r}; the task reads no {field}, but {reads}{nearest(field, fields)}")
    found: list[tuple[str, str]] | None = None
    for file in files:
        held = there(file)
        if not held:
            continue
        if found is None:
            found = [(field, column) for field, what in fields.items() for column in _meant(file, field, what, wanted.get(field), held)]
        for field, column in found:
            if column not in held:
                where, have = f"data.columns.{field}: {column!r} is no column of {file.shown}", ", ".join(held)
                raise ConfigError(f"{where}; its columns: {have}{nearest(column, held)}")
    return found or [(field, what.columns[0]) for field, what in fields.items()]


def _meant(file: SourceFile, field: str, what: Field, wanted: list[str] | None, there: Mapping[str, bool]) -> list[str]:
    """The columns of a field in a file; none of one that may be missing."""
    if wanted is not None:
        return wanted
    usual = next((column for column in what.columns if column in there), None)
    if usual is None and not what.optional:
        raise ConfigError(
            f"data.columns.{field}: missing, and {file.shown} has no column {' or '.join(map(repr, what.columns))}; "
            f"name the column of the {field}: its columns are {', '.join(there)}"
        )
    return [] if usual is None else [usual]


def json_columns(file: SourceFile) -> dict[str, bool]:
    """The columns of a JSON file, from its first records, nested ones by dotted paths."""
    return _described(first_records(file))


def csv_columns(file: SourceFile, delimiter: str, quote: str) -> dict[str, bool]:
    """The columns of a CSV file. One of numbers holds no text."""
    header, rows = first_rows(file, delimiter, quote)
    text = [any(row[place] and not _is_number(row[place]) for row in rows) for place in range(len(header))]
    return dict(zip(header, text, strict=True))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def arrow_columns(file: SourceFile, layout: Table) -> dict[str, bool]:
    """The columns of a Parquet or Arrow file, from its schema."""
    return {column: holds_text(kind) for column, kind in types_of(layout.schema(file)).items()}


def refuse_no_text(files: Sequence[SourceFile], wanted: Sequence[str], layout: Table) -> None:
    """Raise ConfigError (B14) for a column of Parquet or Arrow files that is to be text and is none."""
    for file in files:
        types = types_of(layout.schema(file))
        for column in wanted:
            if not holds_text(types[column]) and not is_bytes(types[column]):
                have = ", ".join(name for name, kind in types.items() if holds_text(kind)) or "none"
                raise ConfigError(
                    f"data.columns.text: {column!r} of {file.shown} holds {types[column]}, not text; columns with text: {have}"
                )


def _described(records: Iterable[dict[str, Any]]) -> dict[str, bool]:
    """Every column, nested ones by dotted paths, and whether it holds text and nothing else."""
    found: dict[str, set[bool]] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
                found.setdefault(f"{prefix}.{key}" if prefix else str(key), set())
        elif isinstance(value, list):
            for item in value:
                walk(prefix, item)
        elif value is not None:
            found.setdefault(prefix, set()).add(isinstance(value, str))

    for record in records:
        walk("", record)
    return {column: kinds == {True} for column, kinds in found.items()}


def choose_columns(file: SourceFile, there: Mapping[str, bool], wanted: list[str] | None) -> list[str]:
    """The columns asked for, or `text`, or the only one that holds text. there: column → whether it holds text.

    Raises ConfigError (B14) naming the columns that there are.
    """
    holding = [column for column, is_text in there.items() if is_text]
    outer = [column for column in holding if "." not in column]
    if wanted is None:
        if DEFAULT in there:
            return [DEFAULT]
        if len(outer) == 1:
            return outer
        have = f"columns with text are {', '.join(holding)}" if holding else f"no column holds text, of {', '.join(there) or 'none'}"
        example = f"data.columns.text={holding[0]}, or several: 'data.columns.text=[{','.join(holding[:2])}]'" if holding else "other files"
        raise ConfigError(f"data.columns.text: missing, and {file.shown} has no column {DEFAULT!r}; {have}; give {example}")
    for column in wanted:
        if column not in there:
            raise ConfigError(
                f"data.columns.text: {column!r} is no column of {file.shown}; its columns: {', '.join(there)}{nearest(column, there)}"
            )
    return wanted
