"""SQuAD's JSON: articles with paragraphs, and of each paragraph questions with the places of their answers.

A record is a question: id, title, question, context, and answers as the hub's copies have them, {"text": […], "answer_start": […]}, both
empty where there is none to be found. Versions 1.1 and 2.0 (Rajpurkar et al. 2016, 2018); a place is the number of a question, from 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from trainer.choices import ConfigError
from trainer.data.opening import BOM, open_text
from trainer.data.records import LONGEST, Records, Unreadable, as_line, gathered, kind_of
from trainer.data.segments import Segment
from trainer.data.sources import SourceFile

COLUMNS = ("id", "title", "question", "context", "answers")
# How such a file begins.
_HEAD = re.compile(rb'\s*\{\s*(?:"version"\s*:\s*"[^"]*"\s*,\s*)?"data"\s*:\s*\[')
_BLOCK = 1 << 20


class Misshapen(Exception):
    """What is not where it has to be."""


@dataclass(frozen=True)
class SquadRecords(Records):
    """Questions of SQuAD files. A file is parsed as a whole: the largest that there are have some ten megabytes."""

    kind: ClassVar[str] = "squad"

    def text_of(self, record: Any) -> Any:
        # A question that is none says so.
        if "what" in record:
            raise Unreadable(**record)
        return [record.get(column) for column in self.columns]

    def segments(self, number: int, file: SourceFile, unit_bytes: int) -> Iterator[Segment]:
        content = _content(file)
        lines = ((as_line(record), place) for place, record in enumerate(_questions(_parsed(content, file), file), 1))
        yield from gathered(number, lines, lambda: len(content), unit_bytes)


def is_squad(path: str) -> bool:
    """Whether a JSON file is SQuAD's, by its first bytes."""
    with open_text(path) as stream:
        return _HEAD.match(stream.read(1 << 12).removeprefix(BOM)) is not None


def _content(file: SourceFile) -> bytes:
    blocks, size = [], 0
    with open_text(file.path) as stream:
        while block := stream.read(_BLOCK):
            blocks.append(block)
            size += len(block)
            if size > LONGEST:
                raise ConfigError(f"data: {file.shown}: more than {LONGEST >> 20} MB in one object; write one question a line: data=jsonl")
    return b"".join(blocks).removeprefix(BOM)


def _parsed(content: bytes, file: SourceFile) -> Any:
    """What the file holds. Raises ConfigError (B07) with the line and byte where it is broken: nothing behind that can be read."""
    try:
        return json.loads(content.decode("utf-8", "surrogateescape"))
    except json.JSONDecodeError as error:
        begin = error.doc.rfind("\n", 0, error.pos) + 1
        byte = len(error.doc[begin : error.pos].encode("utf-8", "surrogateescape")) + 1
        raise ConfigError(
            f"data: {file.shown}:{error.lineno}:{byte}: broken JSON: {error.msg}; mend the file: it is one object, so nothing of it can be "
            "read, and data.on_error=skip cannot leave it out"
        ) from error


def _questions(document: Any, file: SourceFile) -> Iterator[dict[str, Any]]:
    """Every question of a file, or what is wrong with it. Raises ConfigError where that cannot be told question by question."""
    try:
        articles = _list(document, "data", "the file")
        for first, article in enumerate(articles):
            for second, paragraph in enumerate(_list(article, "paragraphs", f"data[{first}]")):
                place = f"data[{first}].paragraphs[{second}]"
                about = {"title": article.get("title"), "context": _text(paragraph, "context", place)}
                for third, question in enumerate(_list(paragraph, "qas", place)):
                    yield _record(question, about, f"{place}.qas[{third}]")
    except Misshapen as error:
        shape = '{"data": [{"paragraphs": [{"context": "…", "qas": [{"question": "…", "answers": […]}]}]}]}'
        raise ConfigError(f"data: {file.shown}: {error}; data=squad reads {shape}") from error


def _record(question: Any, about: dict[str, Any], place: str) -> dict[str, Any]:
    try:
        found = {"id": question.get("id") if isinstance(question, dict) else None, **about, "question": _text(question, "question", place)}
        if "answers" not in question and question.get("is_impossible") is not True:
            # Of questions that are to be answered.
            return found
        answers = [] if "answers" not in question else _list(question, "answers", place)
        if answers and question.get("is_impossible"):
            raise Misshapen(f"{place} is impossible, and has {len(answers)} answers")
        texts = [_text(answer, "text", f"{place}.answers[{number}]") for number, answer in enumerate(answers)]
        return found | {"answers": {"text": texts, "answer_start": [answer.get("answer_start") for answer in answers]}}
    except Misshapen as error:
        return {"what": str(error), "mend": "mend the question", "reason": "broken questions"}


def _list(value: Any, key: str, place: str) -> list[Any]:
    found = _of(value, key, place)
    if not isinstance(found, list):
        raise Misshapen(f"{key!r} of {place} is {kind_of(found)}, not a list")
    return found


def _text(value: Any, key: str, place: str) -> str:
    found = _of(value, key, place)
    if not isinstance(found, str):
        raise Misshapen(f"{key!r} of {place} is {kind_of(found)}, not text")
    return found


def _of(value: Any, key: str, place: str) -> Any:
    if not isinstance(value, dict):
        raise Misshapen(f"{place} is {kind_of(value)}, not an object")
    if key not in value:
        raise Misshapen(f"{place} has no {key!r}, but {', '.join(map(repr, value)) or 'nothing'}")
    return value[key]
