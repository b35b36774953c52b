"""Where the text comes from: choices of the config group `data`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import Choice, ConfigError, choice, identity, placement

if TYPE_CHECKING:
    from trainer.data.remote import Remote
    from trainer.data.segments import Format
    from trainer.data.tokenizers import Tokenizer
    from trainer.data.vocabularies import Special
    from trainer.tasks import Field, Task

TRAIN, EVAL = "train", "eval"
SPLITS = (TRAIN, EVAL)


class OnError(str, Enum):
    """What happens with a line that is not text."""

    fail = "fail"
    skip = "skip"


class Document(str, Enum):
    """What one document is."""

    file = "file"
    blank_line = "blank_line"
    line = "line"


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. split: where all of it goes, or None where its documents are parted by us. remote: where it comes from.
    start, stop: of a part of it (parts.py), the bytes in which its records begin."""

    path: str
    split: str | None = None
    remote: Remote | None = None
    start: int = 0
    stop: int | None = None

    @property
    def shown(self) -> str:
        """What a message calls it."""
        return self.remote.url if self.remote else self.path


@dataclass(frozen=True)
class Listing:
    """The files of a source, in order, all of a kind. where: the key to name when nothing is left. dropped: reason → files left out.
    about: where it comes from, to be recorded with the data."""

    files: list[SourceFile]
    where: str
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    kind: str = "text"
    about: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass
class Data(Choice, group="data"):
    """What a run is trained on: a source, or a mixture of them (mixture.py)."""

    workers: int = placement(2, help="threads that read and collate ahead of the step")
    processes: int | None = placement(None, help="processes that tokenize; default: one a core")
    shots: int | None = identity(None, help="train on so many examples of each class (of all, where there are none); default: on every one")
    draw: int = identity(0, help="which of the examples those are: another number, other examples")

    def check(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"data.workers: {self.workers}; 0 (read in the loop) or more")
        if self.processes is not None and self.processes < 1:
            raise ConfigError(f"data.processes: {self.processes}; 1 or more")
        if self.shots is not None and self.shots < 1:
            raise ConfigError(f"data.shots: {self.shots}; allowed: 1 or more, or null for all examples")
        if self.draw and self.shots is None:
            raise ConfigError(f"data.draw: {self.draw} without data.shots; nothing is drawn where all examples are trained on")


@dataclass
class Source(Data):
    """Text, cut into documents, parted into training and held out."""

    # Whether it holds what another program has tokenized (token_sources.py).
    holds_tokens: ClassVar[bool] = False
    held_out: float = identity(0.05, help="share that is held out, where no split is given")
    on_error: OnError = identity(OnError.fail, help="fail | skip: what to do with what is broken: a line that is not UTF-8, not JSON …")
    deduplicate: bool = identity(False, help="keep the first of documents that are equal byte for byte")

    def check(self) -> None:
        super().check()
        if not 0 < self.held_out < 1:
            raise ConfigError(f"data.held_out: {self.held_out}; a share between 0 and 1, e.g. 0.05")

    def suits(self, tokenizer: Tokenizer, task: Task) -> None:
        """Raise ConfigError where this source cannot go with a tokenizer or a task."""

    def told(self, special: Special) -> Source:
        """The source, knowing the tokenizer; of one that holds tokens, before it is read."""
        raise NotImplementedError

    def listing(self) -> Listing:
        """The files, sorted. Raises ConfigError where there are none."""
        raise NotImplementedError

    def listing_for(self, task: Task) -> Listing:
        """The same for a task, where what it reads decides how files are parted."""
        return self.listing()

    def layout(self, files: list[SourceFile]) -> Format:
        """How documents are cut out of these files. Raises ConfigError (B14) where they lack what is asked for."""
        raise NotImplementedError

    def examples(self, files: list[SourceFile], fields: Mapping[str, Field]) -> Format:
        """How examples with these fields are cut out of these files. Raises ConfigError (B14) where they lack one."""
        from trainer.choices import groups

        able = [name for name, other in groups()["data"].items() if getattr(other, "examples", None) not in (None, Source.examples)]
        raise ConfigError(
            f"data={self.name}: it holds text without labels, and the task reads {', '.join(fields)}; allowed: {', '.join(able)}"
        )


@choice
class Stdlib(Source):
    """The source of the running interpreter's standard library: text, or examples made of it by exact rules, that every machine has.

    Text is parted by top-level package, examples by module (stdlib_examples.py).
    """

    name: str = "stdlib"
    held_out: float = identity(0.1, help="share of the bytes that is held out: of text whole top-level packages, of examples modules")
    packages: list[str] = identity(default_factory=list, help="top-level packages and modules that are read; default: all")

    def listing(self) -> Listing:
        from trainer.data.stdlib import list_standard_library

        return list_standard_library(self.held_out, self.packages)

    def listing_for(self, task: Task) -> Listing:
        from trainer.data.stdlib import list_standard_library

        return list_standard_library(self.held_out, self.packages, by_module=bool(task.fields))

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.text import TextFormat

        return TextFormat(Document.file)

    def examples(self, files: list[SourceFile], fields: Mapping[str, Field]) -> Format:
        from trainer.data.stdlib_examples import examples

        return examples(files, fields)


@dataclass
class Files(Source):
    """Files of a user's own: one corpus, of which we hold a part out, or given splits."""

    path: Any = identity(None, help="files, folders, patterns or URLs; the held-out part is cut by us")
    train: Any = identity(None, help="given splits: the training files, folders, patterns or URLs")
    eval: Any = identity(None, help="given splits: the held-out files, folders, patterns or URLs")

    # What the files are: one of trainer.data.files.KINDS.
    kind: ClassVar[str] = ""

    def check(self) -> None:
        super().check()
        for key in ("path", *SPLITS):
            value = getattr(self, key)
            entries = value if isinstance(value, (list, tuple)) else [value]
            if value is not None and (not entries or not all(isinstance(entry, str) and entry for entry in entries)):
                raise ConfigError(f"data.{key}: {value!r}; a file, a folder, a pattern, or a list of them")
        given = (self.train is not None, self.eval is not None)
        if self.path is not None and any(given):
            raise ConfigError("data.path and data.train|data.eval: both given; data.path is one corpus, the others are splits of your own")
        if self.path is None and not any(given):
            raise ConfigError(f"data.path: missing; data={self.name} needs data.path=FILES, or data.train=FILES and data.eval=FILES")
        if self.path is None and not all(given):
            have, lacks = ("train", "eval") if self.train is not None else ("eval", "train")
            raise ConfigError(
                f"data.{lacks}: missing beside data.{have}; give both, or data.path={getattr(self, have)} to have a part held out"
            )

    def listing(self) -> Listing:
        from trainer.data.files import find_files

        if self.path is not None:
            files, dropped = find_files(self.path, "data.path", self.kind)
            return Listing(files, f"data.path={self.path}", dropped, self.kind)
        train, dropped = find_files(self.train, "data.train", self.kind)
        held_out, more = find_files(self.eval, "data.eval", self.kind)
        both = sorted({file.shown for file in train} & {file.shown for file in held_out})
        if both:
            raise ConfigError(f"data.eval: {both[0]} is in data.train too; what is trained on cannot be held out ({len(both)} such files)")
        files = [dataclasses.replace(file, split=split) for split, found in ((TRAIN, train), (EVAL, held_out)) for file in found]
        reasons = {reason: dropped.get(reason, 0) + more.get(reason, 0) for reason in {*dropped, *more}}
        return Listing(files, f"data.train={self.train} data.eval={self.eval}", reasons, self.kind)


@choice
class Text(Files):
    """Text files: UTF-8, plain or compressed."""

    name: str = "text"
    document: Document = identity(Document.file, help="file | blank_line | line: what one document is")

    kind: ClassVar[str] = "text"

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.text import TextFormat

        return TextFormat(self.document)
