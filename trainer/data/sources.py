"""Where the text comes from: choices of the config group `data`."""

from __future__ import annotations

from enum import Enum
from typing import Any

from trainer.choices import Choice, choice, identity, placement


class OnError(str, Enum):
    """What happens with input that cannot be decoded."""

    fail = "fail"
    skip = "skip"


class Unit(str, Enum):
    """What one document is."""

    file = "file"
    blank_line = "blank_line"
    line = "line"


class Source(Choice, group="data"):
    """Text, cut into documents, parted into training and held out."""


@choice
class Stdlib(Source):
    """The source text of the running interpreter's standard library."""

    name: str = "stdlib"
    held_out: float = identity(0.1, help="share of the top-level packages that is held out")
    on_error: OnError = identity(OnError.fail, help="fail | skip: what to do with text that is not UTF-8")
    workers: int = placement(2, help="threads that read and collate ahead of the step")
    processes: int | None = placement(None, help="processes of prepare; default: the cores")


@choice
class Text(Source):
    """Text files."""

    name: str = "text"
    path: Any = identity(None, help="files, folders or patterns; plain or .gz; the held-out part is cut by us")
    train: Any = identity(None, help="a given training split, in place of path")
    eval: Any = identity(None, help="a given held-out split, in place of path")
    document: Unit = identity(Unit.file, help="file | blank_line | line: what one document is")
    held_out: float = identity(0.05, help="share of the documents that is held out of data.path")
    on_error: OnError = identity(OnError.fail, help="fail | skip: what to do with text that is not UTF-8")
    workers: int = placement(2, help="threads that read and collate ahead of the step")
    processes: int | None = placement(None, help="processes of prepare; default: the cores")
