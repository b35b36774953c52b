"""Parquet and Arrow IPC: columns of tables, read a batch of rows at a time by pyarrow."""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import ConfigError
from trainer.data.records import Records, as_line, gathered, value_at
from trainer.data.segments import Segment
from trainer.data.sources import SourceFile

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 256
_BUFFER = 1 << 20
# Features of `datasets` that hold many of another.
_LISTS = ("Sequence", "List", "LargeList")


@dataclass(frozen=True)
class Table(Records):
    """Rows of a file with a schema: the wanted cells, as lists. A place is the number of a row, from 1."""

    def segments(self, number: int, file: SourceFile, unit_bytes: int) -> Iterator[Segment]:
        with _damage_told(file):
            progress = _Progress((os.path.getsize(file.path) if file.stop is None else file.stop) - file.start)
            yield from gathered(number, self._records(file, progress), lambda: progress.read, unit_bytes)

    def _records(self, file: SourceFile, progress: _Progress) -> Iterator[tuple[bytes, int]]:
        row, schema = self.first_row(file), self.schema(file)
        names = class_names(schema) if self.examples else {}
        # A nested column comes inside the column that holds it.
        for batch, share in self.batches(file, list(dict.fromkeys(column_of(schema, path) for path in self.columns))):
            progress.share = share
            for record in batch.to_pylist():
                row += 1
                yield as_line([_text(named(value_at(record, path), names.get(path))) for path in self.columns]), row
        progress.share = 1.0

    def schema(self, file: SourceFile) -> pa.Schema:
        """The columns of a file and their types. Raises ConfigError where it cannot be read."""
        raise NotImplementedError

    def first_row(self, file: SourceFile) -> int:
        """How many rows lie before those that are meant."""
        return 0

    def batches(self, file: SourceFile, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, float]]:
        """Some rows of some columns at a time, and how much of the file, or of what is meant of it, they end."""
        raise NotImplementedError


@dataclass
class _Progress:
    """How much of a file of `size` bytes has been read."""

    size: int
    share: float = 0.0

    @property
    def read(self) -> int:
        return int(self.size * self.share)


@dataclass(frozen=True)
class ParquetRecords(Table):
    """Parquet, one row group after the other."""

    kind: ClassVar[str] = "parquet"

    def schema(self, file: SourceFile) -> pa.Schema:
        from pyarrow import parquet

        with _damage_told(file):
            return parquet.read_schema(file.path)

    def divisible(self, file: SourceFile) -> bool:
        from pyarrow import parquet

        with _damage_told(file):
            starts = _starts(parquet.read_metadata(file.path))
        return starts == sorted(starts)

    def first_row(self, file: SourceFile) -> int:
        from pyarrow import parquet

        with _damage_told(file):
            about = parquet.read_metadata(file.path)
        return sum(about.row_group(group).num_rows for group in range(_row_groups(about, file).start))

    def batches(self, file: SourceFile, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, float]]:
        from pyarrow import parquet

        # Without reading ahead, so that memory holds pages and not row groups.
        with parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=_BUFFER) as opened:
            groups = _row_groups(opened.metadata, file)
            done, total = 0, max(1, sum(opened.metadata.row_group(group).num_rows for group in groups))
            for batch in opened.iter_batches(_ROWS, groups, columns, use_threads=False):
                done += len(batch)
                yield batch, done / total


def _starts(about: Any) -> list[int]:
    """At which byte the row groups of a Parquet file begin."""
    return [about.row_group(group).column(0).data_page_offset for group in range(about.num_row_groups if about.num_columns else 0)]


def _row_groups(about: Any, file: SourceFile) -> range:
    """The row groups of a Parquet file that begin in the bytes that are meant."""
    starts = _starts(about)
    return range(bisect_left(starts, file.start), len(starts) if file.stop is None else bisect_left(starts, file.stop))


@dataclass(frozen=True)
class ArrowRecords(Table):
    """Arrow IPC: files, and streams, which is what `datasets` writes."""

    kind: ClassVar[str] = "arrow"

    def schema(self, file: SourceFile) -> pa.Schema:
        with _damage_told(file), _opened(file.path, None) as (reader, _):
            return reader.schema

    def batches(self, file: SourceFile, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, float]]:
        wanted = [self.schema(file).get_field_index(column) for column in columns]
        # Read and not mapped: pages of a mapped file count as this process's memory.
        with _opened(file.path, wanted) as (reader, source):
            size = max(1, source.size())
            for batch in _each(reader):
                yield from ((batch.slice(start, _ROWS), source.tell() / size) for start in range(0, len(batch), _ROWS))


@contextmanager
def _opened(path: str, wanted: list[int] | None) -> Iterator[tuple[Any, Any]]:
    """A reader of an IPC file or stream, told by its first bytes, and the file it reads from. wanted: indices of columns; None: all."""
    import pyarrow as pa

    options = pa.ipc.IpcReadOptions(included_fields=wanted)
    with pa.OSFile(path) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        yield (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source, options=options), source


def _each(reader: Any) -> Iterator[pa.RecordBatch]:
    if hasattr(reader, "get_batch"):
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from reader


@contextmanager
def _damage_told(file: SourceFile) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"data: {file.shown}: cannot be read ({reason}); it is damaged or of another format; write it anew") from error


def column_of(schema: pa.Schema, path: str) -> str:
    """The column of a schema that a path lies in: of that name, or its first word."""
    return path if path in schema.names else path.split(".")[0]


def types_of(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Every column with its type, nested ones by dotted paths; of lists, the type of what they hold."""
    import pyarrow as pa

    found: dict[str, pa.DataType] = {}

    def walk(path: str, kind: pa.DataType) -> None:
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        found[path] = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_struct(kind):
            for inner in kind.fields:
                walk(f"{path}.{inner.name}", inner.type)

    for column in schema:
        walk(column.name, column.type)
    return found


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """What the numbers of a column stand for, where `datasets` has written that down: dotted path → names of the classes."""
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    found: dict[str, list[str]] = {}

    def walk(path: str, feature: Any) -> None:
        while isinstance(feature, list) or isinstance(feature, dict) and feature.get("_type") in _LISTS:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            found[path] = feature["names"]
        elif isinstance(feature, dict) and "_type" not in feature:
            for key, inner in feature.items():
                walk(f"{path}.{key}" if path else key, inner)

    walk("", told.get("info", {}).get("features", {}))
    return found


def named(value: Any, names: list[str] | None) -> Any:
    """Numbers of classes by their names; -1 is none, as `datasets` has it. names: None where a column holds no classes."""
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [named(one, names) for one in value]
    return names[value] if value >= 0 else None


def holds_text(kind: pa.DataType) -> bool:
    """Whether a type is text."""
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type is bytes, which may be text that its writer did not call so."""
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)


def _text(value: Any) -> Any:
    """A cell as JSON can hold it: old writers keep text as bytes without saying that it is text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return [_text(item) for item in value] if isinstance(value, list) else value
