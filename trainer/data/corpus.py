"""A tokenized corpus on disk, opened by ranks: token stream, document index, sentence index, rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError
from trainer.data.order import Order, Ordering
from trainer.data.rows import META, Rows, Table, Values, map_column
from trainer.data.vocabularies import Special, load_special
from trainer.models import Vocabulary

if TYPE_CHECKING:
    from trainer.config import Config

__all__ = ["Corpus", "Special", "Split", "TokenStream", "open_corpus", "shard_name"]


def shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


class Tokens(Protocol):
    """All tokens of a split, one after the other."""

    def __len__(self) -> int: ...

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """A copy of `length` tokens from `start` on."""


class TokenStream:
    """Tokens of a split as one stream over memory-mapped shards. `shard_tokens`: tokens of every shard but the last."""

    def __init__(self, folder: Path, length: int, dtype: str, shard_tokens: int):
        self._length, self._size = length, shard_tokens
        sizes = [min(shard_tokens, length - start) for start in range(0, length, shard_tokens)]
        self._shards = [map_column(folder / shard_name(number), dtype, (size,)) for number, size in enumerate(sizes)]

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """A copy of `length` tokens from `start` on."""
        if start < 0 or start + length > self._length:
            raise IndexError(f"tokens {start} … {start + length} of a stream of {self._length}")
        number, inside = divmod(start, self._size)
        if inside + length <= self._size:
            return self._shards[number][inside : inside + length].astype(np.int64) if length else np.zeros(0, np.int64)
        result = np.empty(length, np.int64)
        done = 0
        while done < length:
            number, inside = divmod(start + done, self._size)
            part = self._shards[number][inside : inside + length - done]
            result[done : done + len(part)] = part
            done += len(part)
        return result

    def count(self, token: int) -> int:
        """How often a token stands in the stream."""
        return sum(int(np.count_nonzero(shard == token)) for shard in self._shards)


class Records:
    """Examples as they were read: the fields of each, by their names."""

    def __init__(self, stream: TokenStream, starts: NDArray[np.int64]):
        self._stream, self._starts = stream, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> dict[str, Any]:
        start, stop = self._starts[number : number + 2].tolist()
        found: dict[str, Any] = json.loads(self._stream.read(start, stop - start).astype(np.uint8).tobytes())
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))


@dataclass
class Split:
    """One split as a task reads it. documents [D + 1], sentences [S + 1] or None: offsets into tokens, the end included."""

    tokens: Tokens
    documents: NDArray[np.int64]
    sentences: NDArray[np.int64] | None
    rows: Table
    special: Special
    seed: int
    sequence_length: int
    learned: dict[str, Any] = field(default_factory=dict)

    @property
    def epoch_tokens(self) -> Fraction:
        """Tokens of as many samples as there are rows."""
        return Fraction(self.rows.tokens_total)

    def sentence_starts(self, start: int, length: int) -> NDArray[np.int64]:
        """Where sentences start in a stretch of tokens, counted from its first; none where they are not kept."""
        if self.sentences is None:
            return np.zeros(0, np.int64)
        first, last = np.searchsorted(self.sentences, (start, start + length))
        return np.asarray(self.sentences[first:last]) - start

    def order(self, seed: int) -> Ordering:
        """In which order its rows are trained on."""
        return Order(seed, len(self.rows))


class Corpus:
    """A prepared corpus. rows: the folder of its row tables; None while they are being written. members: in a mixture, its sources."""

    def __init__(self, path: Path | str, rows: Path | str | None = None):
        self.path = Path(path)
        self.members: dict[str, Corpus] = {}
        # Of a task on examples: what it has learned of those to train on, such as the labels.
        self.learned: dict[str, Any] = {}
        # While rows are made: the numbers of the training examples that were drawn; None: all become rows.
        self.drawn: list[int] | None = None
        self.rows_path = Path(rows) if rows is not None else None
        try:
            self.meta: dict[str, Any] = json.loads((self.path / META).read_text())
            self.rows_meta: dict[str, Any] = json.loads((self.rows_path / META).read_text()) if self.rows_path else {}
        except FileNotFoundError as error:
            raise ConfigError(
                f"prepared data: {error.filename} is not there; it was removed, or this machine does not see it. Prepare again with "
                "`trainer prepare …`, or set TRAINER_CACHE to a folder that every node sees"
            ) from error
        self.learned = self.rows_meta.get("learned", {})

    @property
    def fingerprint(self) -> str:
        return self.rows_meta.get("fingerprint", self.meta["fingerprint"])

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer"

    @cached_property
    def special(self) -> Special:
        return load_special(self.path)

    @property
    def vocabulary(self) -> Vocabulary:
        special = self.special
        return Vocabulary(special.size, special.bos, special.eos, special.pad, len(special.sentinels))

    def named(self) -> dict[str, Corpus]:
        """Itself as "", and in a mixture each source by its name."""
        return {"": self}

    @property
    def examples(self) -> bool:
        """Whether it holds examples with labels and not text."""
        return bool(self.meta["examples"])

    def token_count(self, split: str) -> int:
        """Tokens of a split, separators apart; of examples, with the special tokens that the tokenizer adds."""
        return int(self.rows_meta["splits"][split]["tokens"] if self.examples else self.meta["splits"][split]["tokens"])

    def records(self, split: str) -> Records:
        """The examples of a split."""
        stream = TokenStream(self.path / split, self.meta["splits"][split]["stream"], self.meta["dtype"], self.meta["shard_tokens"])
        return Records(stream, self.documents(split))

    def tokens(self, split: str) -> Tokens:
        """The token stream of a split; of examples, the values that its rows are made of."""
        if self.examples and self.rows_path is not None:
            return Values(self.rows_path / split)
        return TokenStream(self.path / split, self.meta["splits"][split]["stream"], self.meta["dtype"], self.meta["shard_tokens"])

    def documents(self, split: str) -> NDArray[np.int64]:
        """Offsets of a split's documents, and the end of the last: [D + 1], memory-mapped."""
        return map_column(self.path / split / "documents.bin", np.int64, (self.meta["splits"][split]["documents"] + 1,))

    def sentences(self, split: str) -> NDArray[np.int64]:
        """Offsets of a split's sentences, and the end of the last: [S + 1], memory-mapped."""
        return map_column(self.path / split / "sentences.bin", np.int64, (self.meta["splits"][split]["sentences"] + 1,))

    def split(self, name: str) -> Split:
        """`train` or `eval`, with its rows."""
        assert self.rows_path is not None, "a corpus without rows has no splits yet"
        return Split(
            tokens=self.tokens(name),
            documents=self.documents(name),
            sentences=self.sentences(name) if self.meta["sentences"] else None,
            rows=Rows(self.rows_path / name),
            special=self.special,
            seed=self.rows_meta["seed"],
            sequence_length=self.rows_meta["sequence_length"],
            learned=self.learned,
        )


def open_corpus(corpus: Path | str, rows: Path | str, config: Config | None = None) -> Corpus:
    """What prepare made. Raises ConfigError where it is gone, or where it is not what the configuration was frozen with."""
    opened = Corpus(corpus, rows)
    if "sources" in opened.meta:
        from trainer.data.mixed import MixedCorpus

        opened = MixedCorpus(corpus)
    if config is not None and config.fingerprint not in (None, opened.fingerprint):
        raise ConfigError(
            f"fingerprint: {config.fingerprint} was frozen, but {rows} holds {opened.fingerprint}; prepare again with `trainer prepare …`"
        )
    return opened
