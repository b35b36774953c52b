"""Which columns hold the text: as asked for, or the only ones that can be meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trainer.choices import ConfigError, nearest
from trainer.data.arrow_files import Table, holds_text, is_bytes, types_of
from trainer.data.csv_files import first_rows
from trainer.data.json_files import first_records
from trainer.data.sources import SourceFile

DEFAULT = "text"


def json_columns(files: Sequence[SourceFile], wanted: list[str] | None) -> list[str]:
    """The columns to read of JSON files, from their first records. Raises ConfigError (B14) for a file that does not have them."""
    for file in files:
        records = first_records(file)
        if records:
            wanted = choose_columns(file, _described(records), wanted)
    # Of files without a record whatever is read is nothing.
    return wanted or [DEFAULT]


def csv_columns(files: Sequence[SourceFile], wanted: list[str] | None, delimiter: str, quote: str) -> list[str]:
    """The columns to read of CSV files. A column of numbers holds no text. Raises ConfigError (B14) for a file that lacks one."""
    for file in files:
        header, rows = first_rows(file, delimiter, quote)
        text = [any(row[place] and not _is_number(row[place]) for row in rows) for place in range(len(header))]
        wanted = choose_columns(file, dict(zip(header, text, strict=True)), wanted)
    return wanted or [DEFAULT]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def arrow_columns(files: Sequence[SourceFile], wanted: list[str] | None, layout: Table) -> list[str]:
    """The columns to read of Parquet or Arrow files, from their schemas. Raises ConfigError (B14) for one that is missing or no text."""
    for file in files:
        types = types_of(layout.schema(file))
        text = {column: holds_text(kind) for column, kind in types.items()}
        wanted = choose_columns(file, text, wanted)
        for column in wanted:
            if not text[column] and not is_bytes(types[column]):
                have = ", ".join(name for name, is_text in text.items() if is_text) or "none"
                raise ConfigError(
                    f"data.columns.text: {column!r} of {file.shown} holds {types[column]}, not text; columns with text: {have}"
                )
    return wanted or [DEFAULT]


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


def choose_columns(file: SourceFile, there: dict[str, bool], wanted: list[str] | None) -> list[str]:
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
