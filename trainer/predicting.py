"""What a trained model says of examples in a file: read as a stream, computed by length, written in the order in which they came."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainer.choices import ConfigError, find
from trainer.data.files import KINDS
from trainer.data.locating import nth
from trainer.data.opening import bare_name, lines_before
from trainer.data.record_sources import Columns, Squad
from trainer.data.segments import Flaw, cut_out
from trainer.data.squad_files import is_squad
from trainer.evaluation import arrays
from trainer.export import LEARNED, load_exported
from trainer.tasks import BrokenExample, Field
from trainer.tasks.labelled import Labelled, Row

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.data.segments import Format
    from trainer.data.sources import SourceFile

# Examples that are sorted by length together: enough for batches of equals, few enough to hold.
_AT_ONCE = 2048
_UNIT_BYTES = 1 << 20


class Predictor:
    """The model in a run's `model/` with its task."""

    def __init__(self, folder: Path, config: Config, device: torch.device):
        from trainer.data.tokenizer_files import load_tokenizer

        if not isinstance(config.task, Labelled):
            raise ConfigError(f"task={config.task.name}: it predicts nothing of an example; `trainer generate` lets its model write")
        self.task, self.length, self.device = config.task.answering(), config.sequence_length, device
        self.learned: dict[str, Any] = json.loads((folder / LEARNED).read_text())
        self.tokenizer = load_tokenizer(folder)
        self.module = self.task.around(load_exported(folder, bare=True), self.learned).to(device).eval()

    def answers(self, examples: Sequence[dict[str, Any]], batch_tokens: int) -> list[dict[str, Any]]:
        """What is predicted of each example, by field. batch_tokens: tokens that are computed together, at most."""
        filled = [example | self.task.unanswered(example, self.learned) for example in examples]
        rows = list(self.task.encode(filled, 0, self.tokenizer, self.learned, self.length))
        found: list[Any] = [None] * len(rows)
        for members in by_length(rows, batch_tokens):
            sections = [dict(zip(self.task.sections, map(_array, rows[number].sections), strict=True)) for number in members]
            batch = self.task.batch(sections, np.ones(len(members), np.bool_), self.learned)
            with torch.no_grad():
                outputs = self.module(batch.to(self.device))
            for number, prediction in zip(members, self.task.predictions(arrays(outputs), self.tokenizer), strict=True):
                found[number] = prediction
        by_example: list[list[Any]] = [[] for _ in examples]
        for row, prediction in zip(rows, found, strict=True):
            by_example[row.example].append(prediction)
        return [self.task.answer(example, each, self.learned) if each else {} for example, each in zip(examples, by_example, strict=True)]


def _array(values: Any) -> Any:
    return np.asarray(values, np.int64)


def by_length(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of rows in batches of at most so many tokens, or of one row; rows of a length together, the longest first."""
    batch: list[int] = []
    held = 0
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number].sections[0])):
        size = len(rows[number].sections[0])
        if batch and held + size > batch_tokens:
            yield batch
            batch, held = [], 0
        batch.append(number)
        held += size
    if batch:
        yield batch


def predict(predictor: Predictor, config: Config, source: str, target: Path, batch_tokens: int, say: Callable[[int], None]) -> int:
    """Answer every example of some files and write the answers beside its fields. say: told the number so far. Returns that number.

    Raises ConfigError for files that are not found or not read, and naming the line of an example that is broken.
    """
    done, waiting = 0, examples_of(source, config)
    with writing(target) as write:
        while examples := list(islice(waiting, _AT_ONCE)):
            try:
                answers = predictor.answers(examples, batch_tokens)
            except BrokenExample as error:
                number = done + error.number
                raise error.at(place_in(source, config, number), number) from error
            # Of an example that is nothing to the model, such as an empty text, it says nothing.
            said = next((list(answer) for answer in answers if answer), predictor.task.predicted)
            answers = [answer or dict.fromkeys(said) for answer in answers]
            # Beside what the file itself says of a field.
            named = ({f"predicted_{field}": value for field, value in answer.items()} for answer in answers)
            write(example | answer for example, answer in zip(examples, named, strict=True))
            done += len(examples)
            say(done)
    return done


def kinds_of(source: str, otherwise: str | None = None) -> list[str]:
    """The kinds of records that a file may hold by its name. otherwise: the kind of one whose name tells nothing; None: ConfigError."""
    name = bare_name(source).lower()
    kinds = [kind for kind in _READ if name.endswith(KINDS[kind].suffixes)] or ([otherwise] if otherwise else [])
    if not kinds:
        suffixes = ", ".join(dict.fromkeys(suffix for name in _READ for suffix in KINDS[name].suffixes))
        raise ConfigError(f"input: {source}: of which kind it is must be told by its name: {suffixes}, plain or compressed")
    return kinds


def examples_of(source: str, config: Config) -> Iterator[dict[str, Any]]:
    """The examples of files, of which those fields may be missing that are to be predicted."""
    files, layout = _read_as(source, config)
    return chain.from_iterable(_in_file(number, file, layout) for number, file in enumerate(files))


def place_in(source: str, config: Config, number: int) -> str:
    """`file:line` of one of the examples of files, by its number; empty where such files have no lines."""
    files, layout = _read_as(source, config)
    segments = chain.from_iterable(layout.segments(place, file, _UNIT_BYTES) for place, file in enumerate(files))
    return nth(number, segments, layout, files, lambda *_: True)


def _read_as(source: str, config: Config) -> tuple[list[SourceFile], Format]:
    """Files of examples, and how they are read."""
    kinds = kinds_of(source)
    task, columns = config.task, getattr(config.data, "columns", Columns())
    # Where those are that are to be predicted is of no matter; the file need not have them.
    reader: Any = find("data", kinds[0])(path=source, columns=replace(columns, **dict.fromkeys(task.predicted)))  # type: ignore[call-arg]
    try:
        files = reader.listing().files
    except ConfigError as error:
        raise ConfigError(str(error).replace("data.path", "input", 1)) from error
    if "squad" in kinds and all(is_squad(file.path) for file in files):
        reader = Squad(path=source)
    fields = {name: replace(field, optional=field.optional or name in task.predicted) for name, field in task.fields.items()}
    return files, reader.examples(files, fields | _NAMED)


# What tells examples apart is handed on.
_NAMED = {"id": Field(("id", "idx", "uid", "guid"), optional=True)}
# Of several that a name may stand for, the content decides.
_READ = ("jsonl", "squad", "csv", "tsv", "conll", "conllu", "parquet", "arrow")


def _in_file(number: int, file: SourceFile, layout: Format) -> Iterator[dict[str, Any]]:
    for segment in layout.segments(number, file, _UNIT_BYTES):
        cut = cut_out(layout, segment)
        if cut.flaws:
            raise _broken(cut.flaws[0], file)
        yield from map(json.loads, cut.texts)


def _broken(flaw: Flaw, file: SourceFile) -> ConfigError:
    return ConfigError(f"input: {file.shown}:{flaw.line + lines_before(file.path, flaw.after)}: {flaw.what}; {flaw.mend}")


@contextmanager
def writing(target: Path) -> Iterator[Callable[[Iterable[Mapping[str, Any]]], None]]:
    """Yields what appends records to a file, as JSON lines or, by its name, as CSV; the file is there once all of them are."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8", newline="") as file:
            yield _csv_rows(file) if target.suffix == ".csv" else lambda records: file.writelines(_line(record) for record in records)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _line(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _csv_rows(file: Any) -> Callable[[Iterable[Mapping[str, Any]]], None]:
    """Cells that are no text or number are written as JSON."""
    state: dict[str, Any] = {}

    def write(records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            if "writer" not in state:
                state["writer"] = csv.DictWriter(file, list(record), restval="", extrasaction="ignore")
                state["writer"].writeheader()
            cells = {key: _line(value).strip() if isinstance(value, (dict, list)) else value for key, value in record.items()}
            state["writer"].writerow(cells)

    return write
