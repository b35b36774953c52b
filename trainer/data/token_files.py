"""Corpora that others have tokenized: nanoGPT's streams and Megatron-LM's indexed data sets. Documents here are ids, not text.

nanoGPT (https://github.com/karpathy/nanoGPT, data/openwebtext/prepare.py): raw uint16, each document followed by the end of text.
llm.c (https://github.com/karpathy/llm.c, dev/data/data_common.py): the same behind 1024 bytes, where int32 magic, version and tokens stand;
the end of text comes before each document.

Megatron-LM (megatron/core/datasets/indexed_dataset.py): PREFIX.bin holds the tokens, PREFIX.idx where its sequences lie:
    9 bytes "MMIDIDX\\0\\0" · uint64 version, 1 · uint8 code of the dtype · uint64 S sequences · uint64 D + 1 documents
    int32 [S] tokens of each sequence · int64 [S] byte at which it starts · int64 [D + 1] first sequence of each document
A document is a sequence, or several where sentences were kept apart; a modality for each sequence may follow, and is not read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError
from trainer.data.segments import Cut, Format, Place, Segment, parted_bytes
from trainer.data.sources import EVAL, TRAIN, SourceFile

# Documents are handed on as unsigned 32-bit ids; between two sentences of one, and after each where it has no end of its own, stand these.
IDS = np.dtype("<u4")
SENTENCE, DOCUMENT = 0xFFFFFFFF, 0xFFFFFFFE
_MAGIC = b"MMIDIDX\0\0"
_HEAD = struct.Struct("<9sQBQQ")
_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_DOCUMENTS = 1 << 14
_HEADER, _HEADER_BYTES = struct.Struct("<iii"), 1024
# (magic, version) → dtype. No vocabulary of less than 2^16 has the token that a magic would be.
_HEADERS = {(20240520, 1): "uint16", (20240801, 7): "uint32"}


@dataclass(frozen=True)
class TokenFormat(Format):
    """Ids of a vocabulary of `size`; `eos` ends a document."""

    tokens: ClassVar[bool] = True
    eos: int = 0
    size: int = 0

    def _check(self, file: SourceFile, ids: NDArray[Any], start: int) -> None:
        """Raise ConfigError (B04) for an id that the tokenizer does not have. start: number of the first of these tokens, from 0."""
        wrong = (ids < 0) | (ids >= self.size)
        if wrong.any():
            at = int(wrong.argmax())
            raise ConfigError(
                f"data: {file.shown}: token {start + at:,} is {ids[at]}, but the tokenizer's largest id is {self.size - 1}; give the one "
                "that the file was made with: tokenizer=pretrained tokenizer.path=…"
            )


@dataclass(frozen=True)
class NanoGPTFormat(TokenFormat):
    """One stream a file, documents parted by the end of text. dtype: uint16 or uint32."""

    kind: ClassVar[str] = "nanogpt"
    dtype: str = "uint16"

    def segments(self, number: int, file: SourceFile, unit_bytes: int) -> Iterator[Segment]:
        dtype = np.dtype(self.dtype).newbyteorder("<")
        if os.path.getsize(file.path) % dtype.itemsize:
            raise ConfigError(f"data: {file.shown}: its size is no multiple of {dtype.itemsize} bytes; it is cut off, or not {self.dtype}")
        limit = max(1, unit_bytes // dtype.itemsize)
        pending, done, opens, last = np.zeros(0, dtype), 0, True, False
        begin = self._begin(file)
        if begin:
            yield Segment(number, 0, 1, b"", size=begin)
        with open(file.path, "rb") as stream:
            stream.seek(begin)
            while True:
                if not last and len(pending) <= limit:
                    block = np.fromfile(stream, dtype, limit)
                    self._check(file, block, done + len(pending))
                    pending, last = np.concatenate([pending, block]), not len(block)
                    continue
                if not len(pending):
                    return
                ends = np.flatnonzero(pending[:limit] == self.eos) + 1
                closes = bool(len(ends)) or last and len(pending) <= limit
                # What is left of a long document is a segment of its own.
                end = int(ends[-1] if opens else ends[0]) if len(ends) else min(limit, len(pending))
                text = pending[:end].tobytes()
                yield Segment(number, begin + done * dtype.itemsize, 1, text, opens=opens, closes=closes, size=len(text))
                pending, done, opens = pending[end:], done + end, closes

    def _begin(self, file: SourceFile) -> int:
        """The byte of the first token. Raises ConfigError for a header of llm.c whose file is cut off, or holds another dtype."""
        with open(file.path, "rb") as stream:
            head = stream.read(_HEADER_BYTES)
        magic, version, count = _HEADER.unpack_from(head) if len(head) == _HEADER_BYTES else (0, 0, 0)
        if magic not in {known for known, _ in _HEADERS}:
            return 0
        dtype = _HEADERS.get((magic, version))
        if dtype is None:
            raise ConfigError(f"data: {file.shown}: a header of llm.c, magic {magic}, of version {version}, which is not known")
        if dtype != self.dtype:
            raise ConfigError(f"data.dtype: {self.dtype}, but the header of {file.shown} says {dtype}; set data.dtype={dtype}")
        size, wanted = os.path.getsize(file.path), _HEADER_BYTES + count * np.dtype(dtype).itemsize
        if size != wanted:
            raise ConfigError(f"data: {file.shown}: {size:,} bytes, but with the {count:,} tokens of its header {wanted:,}; it is cut off")
        return _HEADER_BYTES

    def documents(self, segment: Segment) -> Cut:
        ids = np.frombuffer(segment.text, np.dtype(self.dtype).newbyteorder("<")).astype(IDS)
        return Cut([piece.tobytes() for piece in _split(ids, self.eos) if len(piece)])

    def tail(self, files: Sequence[SourceFile], sizes: Sequence[int], share: float) -> Place:
        # One stream may be one document: the cut is at a token, wherever it lies.
        begins = [self._begin(file) for file in files]
        total = sum(sizes) - sum(begins)
        left = total - int(share * total)
        for number, (size, begin) in enumerate(zip(sizes, begins, strict=True)):
            if left < size - begin:
                return Place(number, begin + left - left % np.dtype(self.dtype).itemsize)
            left -= size - begin
        return Place(len(files), 0)

    def parted(self, segment: Segment, place: Place) -> Iterator[Segment]:
        yield from parted_bytes(segment, place)


@dataclass(frozen=True)
class MegatronFormat(TokenFormat):
    """Indexed data sets; files are the .bin, their .idx beside them. indexes: digest of each .idx, since it decides what is read."""

    kind: ClassVar[str] = "megatron"
    indexes: tuple[str, ...] = ()

    def segments(self, number: int, file: SourceFile, unit_bytes: int) -> Iterator[Segment]:
        index = Index(file)
        tokens = np.memmap(file.path, index.dtype, "r") if os.path.getsize(file.path) else np.zeros(0, index.dtype)
        counted, per_unit = 0, max(1, unit_bytes // IDS.itemsize)
        for first in range(0, index.documents, _DOCUMENTS):
            borders = index.starts(first, min(first + _DOCUMENTS, index.documents))
            lengths, places = index.sequences(int(borders[0]), int(borders[-1]))
            # Where each document ends, in tokens from the first of these documents.
            ends = np.concatenate([[0], np.cumsum(lengths)])[borders - borders[0]]
            begin = 0
            while begin < len(borders) - 1:
                end = max(begin + 1, int(np.searchsorted(ends, ends[begin] + per_unit, side="right")) - 1)
                low, high = int(borders[begin] - borders[0]), int(borders[end] - borders[0])
                ids = self._read(file, tokens, lengths[low:high], places[low:high])
                text = _marked(ids, lengths[low:high], borders[begin : end + 1] - borders[begin])
                size = len(ids) * index.dtype.itemsize
                yield Segment(number, first + begin, 1 + first + begin, text, size=size)
                counted, begin = counted + size, end
        # Bytes that no sequence claims.
        yield Segment(number, index.documents, 1 + index.documents, b"", size=os.path.getsize(file.path) - counted)

    def _read(self, file: SourceFile, tokens: NDArray[Any], lengths: NDArray[Any], places: NDArray[Any]) -> NDArray[Any]:
        """The tokens of sequences, as one array."""
        if not len(lengths):
            return np.zeros(0, tokens.dtype)
        starts = places // tokens.dtype.itemsize
        if (starts + lengths).max() > len(tokens) or (places % tokens.dtype.itemsize).any() or starts.min() < 0 or lengths.min() < 0:
            raise ConfigError(f"data: {file.shown}: its .idx names tokens beyond its {len(tokens):,}; the pair does not belong together")
        if (starts[1:] == starts[:-1] + lengths[:-1]).all():
            ids = np.asarray(tokens[starts[0] : starts[-1] + lengths[-1]])
        else:
            ids = np.concatenate([tokens[start : start + length] for start, length in zip(starts, lengths, strict=True)])
        self._check(file, ids, int(starts[0]))
        return ids

    def documents(self, segment: Segment) -> Cut:
        texts = []
        for ids in _split(np.frombuffer(segment.text, IDS), DOCUMENT):
            # What --append-eod added: the stream of ours has an end of its own.
            ids = ids[:-1] if len(ids) and ids[-1] == self.eos else ids
            if len(ids):
                texts.append(ids.tobytes())
        return Cut(texts)

    def tail(self, files: Sequence[SourceFile], sizes: Sequence[int], share: float) -> Place:
        counts = [(number, at) for number, file in enumerate(files) for at in range(Index(file).documents)]
        if len(counts) < 2:
            raise ConfigError("data.path: one document cannot be parted; give splits: data.train=PREFIX data.eval=PREFIX")
        return Place(*counts[-max(1, round(share * len(counts)))])

    def parted(self, segment: Segment, place: Place) -> Iterator[Segment]:
        ids = np.frombuffer(segment.text, IDS)
        ends = np.concatenate([[0], np.flatnonzero(ids == DOCUMENT) + 1])
        kept = 0 if segment.file > place.file else len(ends) - 1
        if segment.file == place.file:
            kept = min(max(place.at - segment.offset, 0), len(ends) - 1)
        head, tail = ids[: ends[kept]], ids[ends[kept] :]
        yield replace(segment, text=head.tobytes(), split=TRAIN)
        yield replace(segment, text=tail.tobytes(), offset=segment.offset + kept, split=EVAL, size=0)


class Index:
    """The .idx beside a .bin. Raises ConfigError where it is missing, damaged or of another layout."""

    def __init__(self, file: SourceFile):
        self.path = index_of(file.path)
        try:
            with open(self.path, "rb") as stream:
                head = stream.read(_HEAD.size)
        except OSError as error:
            raise ConfigError(f"data: {self.path}: {error.strerror}; data=megatron reads PREFIX.bin with PREFIX.idx beside it") from error
        magic, version, code, self.count, borders = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0, 0, 0, 0)
        if magic != _MAGIC or version != 1 or code not in _TYPES:
            what = f"version {version}, dtype code {code}" if magic == _MAGIC else f"it begins with {head[:9]!r}"
            raise ConfigError(f"data: {self.path}: no index that can be read ({what}); allowed: Megatron-LM's MMIDIDX, version 1, integers")
        self.dtype, self.documents = np.dtype(_TYPES[code]), max(0, borders - 1)
        if self.path.stat().st_size < _HEAD.size + 12 * self.count + 8 * borders:
            raise ConfigError(f"data: {self.path}: cut off: {self.count:,} sequences and {self.documents:,} documents do not fit into it")
        self._lengths = self._map("<i4", _HEAD.size, self.count)
        self._places = self._map("<i8", _HEAD.size + 4 * self.count, self.count)
        self._starts = self._map("<i8", _HEAD.size + 12 * self.count, borders)

    def _map(self, dtype: str, offset: int, count: int) -> NDArray[Any]:
        return np.memmap(self.path, dtype, "r", offset, (count,)) if count else np.zeros(0, dtype)

    def starts(self, first: int, last: int) -> NDArray[np.int64]:
        """The first sequence of each document in [first, last), and that after the last."""
        found = np.array(self._starts[first : last + 1], np.int64)
        if found.min() < 0 or found.max() > self.count or (np.diff(found) < 0).any():
            raise ConfigError(f"data: {self.path}: damaged: its documents name sequences beyond its {self.count:,}")
        return found

    def sequences(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of each sequence in [first, last), and the byte at which it starts."""
        return np.array(self._lengths[first:last], np.int64), np.array(self._places[first:last], np.int64)


def index_of(path: str) -> Path:
    """The index that belongs to a .bin."""
    return Path(path).with_suffix(".idx")


def _marked(ids: NDArray[Any], lengths: NDArray[np.int64], borders: NDArray[np.int64]) -> bytes:
    """Ids with a mark between the sequences of a document and one after each document. borders: the first sequence of each, and the end."""
    ends = np.cumsum(lengths)
    marks = np.full(len(lengths), SENTENCE, IDS)
    # Documents without a sequence have no last one.
    filled = borders[1:][np.diff(borders) > 0]
    marks[filled - 1] = DOCUMENT
    return np.insert(ids.astype(IDS), ends, marks).tobytes()


def _split(ids: NDArray[Any], mark: int) -> list[NDArray[Any]]:
    """The runs of ids between marks."""
    borders = np.flatnonzero(ids == mark)
    starts, stops = np.concatenate([[0], borders + 1]), np.append(borders, len(ids))
    return [ids[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def sentences_of(text: bytes) -> list[NDArray[Any]]:
    """The sentences of a document of ids; where none are marked, it is one."""
    return _split(np.frombuffer(text, IDS), SENTENCE)
