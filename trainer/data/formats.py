"""The formats by name: how a worker is told, in plain values, what it is given."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

from trainer.data.arrow_files import ArrowRecords, ParquetRecords
from trainer.data.conll_files import ConllRecords, ConlluRecords
from trainer.data.csv_files import CsvRecords
from trainer.data.json_files import JsonRecords
from trainer.data.segments import Format
from trainer.data.sources import Document
from trainer.data.squad_files import SquadRecords
from trainer.data.stdlib_examples import ModuleExamples
from trainer.data.text import TextFormat
from trainer.data.token_files import MegatronFormat, NanoGPTFormat

FORMATS: dict[str, type[Format]] = {
    layout.kind: layout
    for layout in (
        TextFormat,
        JsonRecords,
        CsvRecords,
        ConllRecords,
        ConlluRecords,
        SquadRecords,
        ParquetRecords,
        ArrowRecords,
        ModuleExamples,
        NanoGPTFormat,
        MegatronFormat,
    )
}


def to_plain(layout: Format) -> dict[str, Any]:
    """A format as values that JSON can hold."""
    values = {key: value.value if isinstance(value, Enum) else value for key, value in dataclasses.asdict(layout).items()}
    if not values.get("none"):
        values.pop("none", None)  # what was prepared before there was such a thing is still the same
    return {"kind": layout.kind, **values}


def from_plain(values: dict[str, Any]) -> Format:
    """The format of such values."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key != "kind"}
    if "document" in fields:
        fields["document"] = Document(fields["document"])
    return FORMATS[values["kind"]](**fields)
