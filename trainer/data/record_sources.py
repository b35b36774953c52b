"""Sources of records: choices of the config group `data` whose files hold one document a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import ConfigError, choice, identity
from trainer.data.sources import EVAL, SPLITS, TRAIN, Files, Listing, Source, SourceFile

if TYPE_CHECKING:
    from trainer.data.segments import Format


@dataclass
class Columns:
    """Which columns of a record are what."""

    text: Any = identity(None, help="column of the text, or a list of them, also dotted paths; default: text, or the only one with text")

    def __post_init__(self) -> None:
        value = self.text
        entries = value if isinstance(value, (list, tuple)) else [value]
        if value is not None and (not entries or not all(isinstance(entry, str) and entry for entry in entries)):
            raise ConfigError(f"data.columns.text: {value!r}; the name of a column, or a list of them: 'data.columns.text=[title,body]'")

    @property
    def wanted(self) -> list[str] | None:
        """The columns that were asked for."""
        return None if self.text is None else [self.text] if isinstance(self.text, str) else list(self.text)


@dataclass
class RecordFiles(Files):
    """Files of records: one document a record."""

    columns: Columns = identity(default_factory=Columns)


@choice
class Jsonl(RecordFiles):
    """JSON: one object a line, or one array of objects; plain or compressed."""

    name: str = "jsonl"

    kind: ClassVar[str] = "jsonl"

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.columns import json_columns
        from trainer.data.json_files import JsonRecords

        return JsonRecords(tuple(json_columns(files, self.columns.wanted)))


@choice
class Csv(RecordFiles):
    """Comma-separated values with a header; quoted fields may hold line ends. Plain or compressed."""

    name: str = "csv"
    delimiter: str = identity(",", help="the character between fields")
    quote: str = identity('"', help="the character around fields that hold a delimiter or a line end; empty: there is none")

    kind: ClassVar[str] = "csv"

    def check(self) -> None:
        super().check()
        if len(self.delimiter) != 1:
            raise ConfigError(f"data.delimiter: {self.delimiter!r}; one character, e.g. ';'")
        if len(self.quote) > 1 or self.quote == self.delimiter:
            raise ConfigError(f"data.quote: {self.quote!r}; one character, another than data.delimiter, or empty")

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.columns import csv_columns
        from trainer.data.csv_files import CsvRecords

        return CsvRecords(tuple(csv_columns(files, self.columns.wanted, self.delimiter, self.quote)), self.delimiter, self.quote)


@choice
class Tsv(Csv):
    """Tab-separated values with a header; a quotation mark is a character like any other."""

    name: str = "tsv"
    delimiter: str = identity("\t", help="the character between fields")
    quote: str = identity("", help="the character around fields that hold a delimiter or a line end; empty: there is none")

    kind: ClassVar[str] = "tsv"


@choice
class Parquet(RecordFiles):
    """Parquet files; only the wanted columns are read."""

    name: str = "parquet"

    kind: ClassVar[str] = "parquet"

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.arrow_files import ParquetRecords
        from trainer.data.columns import arrow_columns

        return ParquetRecords(tuple(arrow_columns(files, self.columns.wanted, ParquetRecords())))


@choice
class Arrow(RecordFiles):
    """Arrow IPC files and streams, Feather among them, as `datasets` keeps them; only the wanted columns are read."""

    name: str = "arrow"

    kind: ClassVar[str] = "arrow"

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.arrow_files import ArrowRecords
        from trainer.data.columns import arrow_columns

        return ArrowRecords(tuple(arrow_columns(files, self.columns.wanted, ArrowRecords())))


@choice
class Hub(Source):
    """A data set of the Hugging Face hub, or a folder that `datasets` loads: one document a record."""

    name: str = "hub"
    path: str = identity("", help="hub id such as HuggingFaceFW/fineweb-edu, or a folder that save_to_disk wrote or that holds data files")
    config: str | None = identity(None, help="configuration of the data set, where it has several")
    revision: str | None = identity(None, help="branch, tag or commit; the commit that it means is recorded with the data")
    train: str = identity("train", help="split to train on")
    eval: str | None = identity(None, help="split to hold out; default: a part of data.train, cut by us")
    columns: Columns = identity(default_factory=Columns)

    def check(self) -> None:
        super().check()
        if not self.path:
            raise ConfigError("data.path: missing; data=hub needs data.path=OWNER/NAME or a folder")
        for key in SPLITS:
            value = getattr(self, key)
            if value is not None and (not value or set(value) & set("[]+:%")):
                raise ConfigError(f"data.{key}: {value!r}; the name of one whole split, e.g. {'validation' if key == EVAL else 'train'}")
        if self.eval == self.train:
            raise ConfigError(f"data.eval: {self.eval!r} is data.train too; leave data.eval out to have a part of it held out")

    def listing(self) -> Listing:
        from trainer.data.hub import find_dataset

        found = find_dataset(self.path, self.config, self.revision, [self.train, *([self.eval] if self.eval else [])])
        files = [SourceFile(path, TRAIN if self.eval else None) for path in found.splits[self.train]]
        files += [SourceFile(path, EVAL) for path in found.splits.get(self.eval or "", [])]
        about = {"path": self.path, "revision": found.revision} if found.revision else {}
        return Listing(files, f"data.path={self.path}", kind="arrow", about=about)

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.arrow_files import ArrowRecords
        from trainer.data.columns import arrow_columns

        return ArrowRecords(tuple(arrow_columns(files, self.columns.wanted, ArrowRecords())))
