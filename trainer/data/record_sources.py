"""Sources of records: choices of the config group `data` whose files hold one document, or one example with labels, a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import ConfigError, choice, identity
from trainer.data.sources import EVAL, SPLITS, TRAIN, Files, Listing, Source, SourceFile

if TYPE_CHECKING:
    from trainer.data.records import Records
    from trainer.data.segments import Format
    from trainer.tasks import Field


@dataclass
class Columns:
    """Which columns of a record are what: names, dotted paths, or lists of them."""

    text: Any = identity(None, help="the text; default: text, or the only one with text")
    pair: Any = identity(None, help="the second text of a pair, such as a hypothesis")
    label: Any = identity(None, help="the label, or a list of labels")
    tokens: Any = identity(None, help="the words of a sentence, a list")
    tags: Any = identity(None, help="the tags of these words, a list")
    source: Any = identity(None, help="the text that another is written from")
    target: Any = identity(None, help="the text that is written, or a list of references")
    messages: Any = identity(None, help="the turns of a dialogue, a list")
    question: Any = identity(None, help="a question")
    context: Any = identity(None, help="the text that holds its answer")
    answers: Any = identity(None, help="answers: their texts, and where they begin in the context")
    anchor: Any = identity(None, help="a text that another belongs to")
    positive: Any = identity(None, help="the text that belongs to it")
    negative: Any = identity(None, help="a text that does not, though it may seem to")
    score: Any = identity(None, help="how much the two belong together, of held-out pairs")
    head: Any = identity(None, help="the first entity of a relation: [begin, end]")
    tail: Any = identity(None, help="the second one")
    head_start: Any = identity(None, help="where the first entity begins")
    head_end: Any = identity(None, help="where it ends")
    tail_start: Any = identity(None, help="where the second entity begins")
    tail_end: Any = identity(None, help="where it ends")
    head_type: Any = identity(None, help="what the first entity is, such as person")
    tail_type: Any = identity(None, help="what the second one is")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is int:
                # CoNLL's columns are numbered.
                setattr(self, field.name, value := str(value))
            entries = value if isinstance(value, (list, tuple)) else [value]
            if value is not None and (not entries or not all(isinstance(entry, str) and entry for entry in entries)):
                key = f"data.columns.{field.name}"
                raise ConfigError(f"{key}: {value!r}; the name of a column, or a list of them: '{key}=[title,body]'")

    @property
    def wanted(self) -> dict[str, list[str]]:
        """The columns that were asked for, by field."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: [value] if isinstance(value, str) else list(value) for name, value in given.items() if value is not None}


class Recorded:
    """What sources of records share: which of their columns are read, as text or as examples."""

    columns: Columns

    def reader(self, columns: Sequence[str]) -> Records:
        """What reads some columns of these files."""
        raise NotImplementedError

    def there(self, file: SourceFile) -> dict[str, bool]:
        """The columns of a file: name → whether it holds text."""
        raise NotImplementedError

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.columns import text_columns

        for field in self.columns.wanted:
            if field != "text":
                raise ConfigError(f"data.columns.{field}: the task reads text alone; leave it out, or choose a task that reads labels")
        return self.reader(text_columns(files, self.columns.wanted.get("text"), self.there))

    def examples(self, files: list[SourceFile], fields: Mapping[str, Field]) -> Format:
        from trainer.data.columns import field_columns

        found = field_columns(files, fields, self.columns.wanted, self.there)
        required = tuple(field for field, what in fields.items() if not what.optional)
        none = tuple(field for field, what in fields.items() if what.none)
        reader = self.reader([column for _, column in found])
        return dataclasses.replace(reader, fields=tuple(field for field, _ in found), required=required, none=none)


class Tabled(Recorded):
    """Sources of files with a schema."""

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.arrow_files import Table
        from trainer.data.columns import refuse_no_text

        layout = super().layout(files)
        assert isinstance(layout, Table)
        refuse_no_text(files, layout.columns, layout)
        return layout

    def there(self, file: SourceFile) -> dict[str, bool]:
        from trainer.data.columns import arrow_columns

        return arrow_columns(file, self.reader(()))  # type: ignore[arg-type]


@dataclass
class RecordFiles(Recorded, Files):
    """Files of records: one document, or one example, a record."""

    columns: Columns = identity(default_factory=Columns)


@choice
class Jsonl(RecordFiles):
    """JSON: one object a line, or one array of objects; plain or compressed."""

    name: str = "jsonl"

    kind: ClassVar[str] = "jsonl"

    def reader(self, columns: Sequence[str]) -> Records:
        from trainer.data.json_files import JsonRecords

        return JsonRecords(tuple(columns))

    def there(self, file: SourceFile) -> dict[str, bool]:
        from trainer.data.columns import json_columns

        return json_columns(file)


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

    def reader(self, columns: Sequence[str]) -> Records:
        from trainer.data.csv_files import CsvRecords

        return CsvRecords(tuple(columns), delimiter=self.delimiter, quote=self.quote)

    def there(self, file: SourceFile) -> dict[str, bool]:
        from trainer.data.columns import csv_columns

        return csv_columns(file, self.delimiter, self.quote)


@choice
class Tsv(Csv):
    """Tab-separated values with a header; a quotation mark is a character like any other."""

    name: str = "tsv"
    delimiter: str = identity("\t", help="the character between fields")
    quote: str = identity("", help="the character around fields that hold a delimiter or a line end; empty: there is none")

    kind: ClassVar[str] = "tsv"


@choice
class Conll(RecordFiles):
    """CoNLL: a word a line with its columns, a blank line between sentences. Columns are numbered from 1; the last is `last`."""

    name: str = "conll"

    kind: ClassVar[str] = "conll"

    def reader(self, columns: Sequence[str]) -> Records:
        from trainer.data.conll_files import ConllRecords

        return ConllRecords(tuple(columns))

    def there(self, file: SourceFile) -> dict[str, bool]:
        from trainer.data.conll_files import ConllRecords, conll_columns

        return conll_columns(file, ConllRecords())


@choice
class Conllu(RecordFiles):
    """CoNLL-U: columns form, lemma, upos, xpos, feats, head, deprel …, and the comments of a sentence, such as text."""

    name: str = "conllu"

    kind: ClassVar[str] = "conllu"

    def reader(self, columns: Sequence[str]) -> Records:
        from trainer.data.conll_files import ConlluRecords

        return ConlluRecords(tuple(columns))

    def there(self, file: SourceFile) -> dict[str, bool]:
        from trainer.data.conll_files import ConlluRecords, conll_columns

        return conll_columns(file, ConlluRecords())


@choice
class Squad(RecordFiles):
    """SQuAD's JSON: a record is a question: id, title, question, context, answers."""

    name: str = "squad"

    kind: ClassVar[str] = "squad"

    def reader(self, columns: Sequence[str]) -> Records:
        from trainer.data.squad_files import SquadRecords

        return SquadRecords(tuple(columns))

    def there(self, file: SourceFile) -> dict[str, bool]:
        from trainer.data.squad_files import COLUMNS

        return {column: column != "answers" for column in COLUMNS}


@choice
class Parquet(Tabled, RecordFiles):
    """Parquet files; only the wanted columns are read."""

    name: str = "parquet"

    kind: ClassVar[str] = "parquet"

    def reader(self, columns: Sequence[str]) -> Records:
        from trainer.data.arrow_files import ParquetRecords

        return ParquetRecords(tuple(columns))


@choice
class Arrow(Tabled, RecordFiles):
    """Arrow IPC files and streams, Feather among them, as `datasets` keeps them; only the wanted columns are read."""

    name: str = "arrow"

    kind: ClassVar[str] = "arrow"

    def reader(self, columns: Sequence[str]) -> Records:
        from trainer.data.arrow_files import ArrowRecords

        return ArrowRecords(tuple(columns))


@choice
class Hub(Tabled, Source):
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

    def reader(self, columns: Sequence[str]) -> Records:
        from trainer.data.arrow_files import ArrowRecords

        return ArrowRecords(tuple(columns))
