"""From a unit of text to token ids, parted by split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import from_plain
from trainer.data.reading import Parting, Unit, splits
from trainer.data.segments import Flaw, cut_out
from trainer.data.sources import EVAL, SPLITS
from trainer.data.text import piece_border
from trainer.data.token_files import sentences_of

# The tokenizer library is fastest on pieces of this size, and holds about a hundred bytes a token until a batch is taken apart.
_PIECE_BYTES = 1 << 13
_BATCH_BYTES = 1 << 19
# A line longer than this is parted into sentences.
_LONG_LINE = 160
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


@dataclass(frozen=True)
class Job:
    """How units are tokenized. tokenizer: its folder. layout: the format of the files, as plain values. threshold: of the hash, below
    which a document is held out; together: of examples, the field that is hashed, else all of it. end: the token before each document, or
    None to keep sentences instead."""

    tokenizer: str
    dtype: str
    layout: dict[str, Any]
    threshold: int
    end: int | None
    together: str | None = None

    @property
    def sentences(self) -> bool:
        return self.end is None


@dataclass
class Part:
    """What a unit adds to one split. documents, sentences: where they start, counted from the unit's first token.
    size: bytes of their text. text: those bytes, of the held-out split only."""

    tokens: NDArray[Any]
    documents: NDArray[np.int64]
    sentences: NDArray[np.int64]
    size: int = 0
    text: bytes = b""


@dataclass
class Encoded:
    """A unit's result."""

    parts: dict[str, Part] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    flaws: list[Flaw] = field(default_factory=list)


class Encoder:
    """Tokenizes units in this process."""

    def __init__(self, job: Job):
        from trainer.data.vocabularies import backend

        self.job, self.layout = job, from_plain(job.layout)
        self.tokenizer = backend(Path(job.tokenizer))

    def encode(self, unit: Unit) -> Encoded:
        """All of a unit, by split."""
        result = Encoded()
        texts: dict[str, list[tuple[bytes, bool]]] = {split: [] for split in SPLITS}
        parting = Parting(self.job.threshold, together=self.job.together)
        for segment in unit.segments:
            cut = cut_out(self.layout, segment)
            result.flaws += cut.flaws
            _add(result.dropped, cut.dropped)
            _add(result.dropped, Counter(flaw.reason for flaw in cut.flaws))
            for split, text in splits(cut, segment, parting):
                texts[split].append((text, segment.opens))
        for split, documents in texts.items():
            if documents and self.layout.examples:
                result.parts[split] = _examples([text for text, _ in documents])
            elif documents:
                encode = self._sentences if self.job.sentences else self._stream
                part, empty = encode(documents)
                if empty:
                    _add(result.dropped, {"documents without a token": empty})
                part.text = b"".join(self._plain(text) for text, _ in documents) if split == EVAL else b""
                if self.layout.tokens:
                    part.size = len(part.text)
                result.parts[split] = part
        return result

    def _stream(self, documents: list[tuple[bytes, bool]]) -> tuple[Part, int]:
        """Documents one after the other, the end token before each."""
        pieces: list[Any] = []
        owners: list[int] = []
        for number, (text, _) in enumerate(documents):
            for piece in self._pieces(text):
                pieces.append(piece)
                owners.append(number)
        ids = self._ids(pieces)
        lengths = np.bincount(owners, weights=[len(piece) for piece in ids], minlength=len(documents)).astype(np.int64)
        opens = np.array([opens for _, opens in documents])
        kept = lengths > 0
        end = np.array([self.job.end], dtype=self.job.dtype)
        chunks: list[NDArray[Any]] = []
        last = -1
        for owner, found in zip(owners, ids, strict=True):
            if owner != last and opens[owner] and kept[owner]:
                chunks.append(end)
            last = owner
            chunks.append(found)
        sizes = np.where(kept, lengths + opens, 0)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        size = sum(len(text) for (text, _), keep in zip(documents, kept, strict=True) if keep)
        none = np.zeros(0, np.int64)
        return Part(self._joined(chunks), starts[opens & kept].astype(np.int64), none, size), int((opens & ~kept).sum())

    def _sentences(self, documents: list[tuple[bytes, bool]]) -> tuple[Part, int]:
        """Documents as runs of sentences, without separators."""
        pieces: list[Any] = []
        owners: list[int] = []
        for number, (text, _) in enumerate(documents):
            for sentence in self._sentences_of(text):
                pieces.append(sentence)
                owners.append(number)
        ids = self._ids(pieces)
        lengths = np.array([len(piece) for piece in ids], dtype=np.int64)
        kept = lengths > 0
        owned = np.array(owners, dtype=np.int64)[kept]
        starts = np.concatenate([[0], np.cumsum(lengths[kept])[:-1]]).astype(np.int64) if kept.any() else np.zeros(0, np.int64)
        first = np.concatenate([[True], np.diff(owned) > 0]) if len(owned) else np.zeros(0, np.bool_)
        opens = np.array([opens for _, opens in documents])
        begins = starts[first & opens[owned]]
        present = set(owned.tolist())
        empty = sum(1 for number, (_, opens) in enumerate(documents) if opens and number not in present)
        size = sum(len(text) for number, (text, _) in enumerate(documents) if number in present)
        return Part(self._joined(ids), begins.astype(np.int64), starts, size), empty

    def _joined(self, chunks: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(chunks) if chunks else np.zeros(0, self.job.dtype)

    def _pieces(self, text: bytes) -> Iterable[Any]:
        """A document in pieces that are fast to tokenize."""
        return sentences_of(text) if self.layout.tokens else cut(text)

    def _sentences_of(self, text: bytes) -> Iterable[Any]:
        return sentences_of(text) if self.layout.tokens else sentences(text.decode())

    def _plain(self, text: bytes) -> bytes:
        """A document as text."""
        if not self.layout.tokens:
            return text
        return self.tokenizer.decode(np.concatenate(sentences_of(text)).tolist(), skip_special_tokens=False).encode()

    def _ids(self, pieces: list[Any]) -> list[NDArray[Any]]:
        if self.layout.tokens:
            return [piece.astype(self.job.dtype) for piece in pieces]
        found: list[NDArray[Any]] = []
        for batch in batches(pieces):
            encodings = self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            found += [np.array(encoding.ids, dtype=self.job.dtype) for encoding in encodings]
        return found


def _examples(texts: list[bytes]) -> Part:
    """Examples as they are: a task cuts them into tokens once it knows the labels of all."""
    sizes = np.array([len(text) for text in texts], np.int64)
    bytes_ = np.frombuffer(b"".join(texts), np.uint8)
    return Part(bytes_, np.cumsum(sizes) - sizes, np.zeros(0, np.int64), len(bytes_))


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for reason, count in more.items():
        counts[reason] = counts.get(reason, 0) + count


def cut(text: bytes) -> Iterator[str]:
    """A document in pieces that are fast to tokenize, cut where the tokens stay the same."""
    start = 0
    while len(text) - start > _PIECE_BYTES:
        end = piece_border(text, start, _PIECE_BYTES)
        yield text[start:end].decode()
        start = end
    yield text[start:].decode()


def batches(pieces: list[str]) -> Iterator[list[str]]:
    """Lists of pieces of about equal total length."""
    batch: list[str] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text: its lines, the long ones parted after . ! ? 。！ or ？."""
    for line in text.splitlines():
        line = line.strip()
        if len(line) <= _LONG_LINE:
            if line:
                yield line
        else:
            yield from filter(None, map(str.strip, _SENTENCE_END.split(line)))
