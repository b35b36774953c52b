"""From a unit of text to token ids, in worker processes: `python -m trainer.data.tokenizing`, fed over its standard streams.

Workers are started by name, not forked, so the caller may hold threads and needs no `if __name__ == "__main__"`; when it dies, however
it dies, their input ends and they end. Frames are JSON and raw arrays, never pickle.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.reading import Flaw, Segment, Unit, parted, soft_border, without_flaws
from trainer.data.sources import EVAL, SPLITS, Document

# The tokenizer library is fastest on pieces of this size, and holds about a hundred bytes a token until a batch is taken apart.
_PIECE_BYTES = 1 << 13
_BATCH_BYTES = 1 << 19
# A line longer than this is parted into sentences.
_LONG_LINE = 160
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


@dataclass(frozen=True)
class Job:
    """How units are tokenized. tokenizer: its folder. end: the token before each document, or None to keep sentences instead."""

    tokenizer: str
    dtype: str
    document: str
    threshold: int
    end: int | None

    @property
    def sentences(self) -> bool:
        return self.end is None


@dataclass
class Part:
    """What a unit adds to one split. documents, sentences: where they start, counted from the unit's first token. text: held out only."""

    tokens: NDArray[Any]
    documents: NDArray[np.int64]
    sentences: NDArray[np.int64]
    bytes: int = 0
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

        self.job = job
        self.tokenizer = backend(Path(job.tokenizer))

    def encode(self, unit: Unit) -> Encoded:
        """All of a unit, by split."""
        result = Encoded()
        texts: dict[str, list[tuple[bytes, bool]]] = {split: [] for split in SPLITS}
        for segment in unit.segments:
            clean, flaws = without_flaws(segment)
            result.flaws += flaws
            for split, text in parted(clean, Document(self.job.document), self.job.threshold):
                texts[split].append((text, segment.opens))
        for split, documents in texts.items():
            if documents:
                encode = self._sentences if self.job.sentences else self._stream
                part, empty = encode(documents)
                if empty:
                    result.dropped["documents without a token"] = result.dropped.get("documents without a token", 0) + empty
                part.text = b"".join(text for text, _ in documents) if split == EVAL else b""
                result.parts[split] = part
        return result

    def _stream(self, documents: list[tuple[bytes, bool]]) -> tuple[Part, int]:
        """Documents one after the other, the end token before each."""
        pieces: list[str] = []
        owners: list[int] = []
        for number, (text, _) in enumerate(documents):
            for piece in cut(text):
                pieces.append(piece)
                owners.append(number)
        ids = self._ids(pieces)
        lengths = np.bincount(owners, weights=[len(piece) for piece in ids], minlength=len(documents)).astype(np.int64)
        opens = np.array([opens for _, opens in documents])
        kept = lengths > 0
        end = np.array([self.job.end], dtype=self.job.dtype)
        chunks: list[NDArray[Any]] = []
        last = -1
        for owner, piece in zip(owners, ids, strict=True):
            if owner != last and opens[owner] and kept[owner]:
                chunks.append(end)
            last = owner
            chunks.append(piece)
        sizes = np.where(kept, lengths + opens, 0)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        size = sum(len(text) for (text, _), keep in zip(documents, kept, strict=True) if keep)
        none = np.zeros(0, np.int64)
        return Part(self._joined(chunks), starts[opens & kept].astype(np.int64), none, size), int((opens & ~kept).sum())

    def _sentences(self, documents: list[tuple[bytes, bool]]) -> tuple[Part, int]:
        """Documents as runs of sentences, without separators."""
        pieces: list[str] = []
        owners: list[int] = []
        for number, (text, _) in enumerate(documents):
            for sentence in sentences(text.decode()):
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

    def _ids(self, pieces: list[str]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = []
        for batch in batches(pieces):
            encodings = self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            found += [np.array(encoding.ids, dtype=self.job.dtype) for encoding in encodings]
        return found


def cut(text: bytes) -> Iterator[str]:
    """A document in pieces that are fast to tokenize, cut where the tokens stay the same."""
    start = 0
    while len(text) - start > _PIECE_BYTES:
        end = soft_border(text, start, _PIECE_BYTES)
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


# --- the worker's end of the pipe, and ours

_HEAD = struct.Struct("<QQ")


def send(stream: IO[bytes], header: Any, payload: list[bytes | memoryview]) -> None:
    """Write one frame: a JSON header and raw bytes."""
    text = json.dumps(header).encode()
    stream.write(_HEAD.pack(len(text), sum(len(part) for part in payload)))
    stream.write(text)
    for part in payload:
        stream.write(part)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[Any, bytes] | None:
    """Read one frame; None where the stream has ended."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    text, size = _HEAD.unpack(head)
    header, payload = stream.read(text), stream.read(size)
    return (json.loads(header), payload) if len(header) == text and len(payload) == size else None


def pack_unit(unit: Unit) -> tuple[Any, list[bytes | memoryview]]:
    """A unit as a frame."""
    segments = [{key: value for key, value in vars(segment).items() if key != "text"} | {"size": len(segment.text)} for segment in unit.segments]
    return {"index": unit.index, "segments": segments}, [segment.text for segment in unit.segments]


def unpack_unit(header: Any, payload: bytes) -> Unit:
    """The unit of a frame."""
    unit, start = Unit(header["index"]), 0
    for fields in header["segments"]:
        size = fields.pop("size")
        unit.segments.append(Segment(text=payload[start : start + size], **fields))
        start += size
    return unit


def pack_encoded(encoded: Encoded) -> tuple[Any, list[bytes | memoryview]]:
    """A result as a frame."""
    header: dict[str, Any] = {"dropped": encoded.dropped, "flaws": [asdict(flaw) for flaw in encoded.flaws], "parts": {}}
    payload: list[bytes | memoryview] = []
    for split, part in encoded.parts.items():
        blobs = [part.tokens.tobytes(), part.documents.tobytes(), part.sentences.tobytes(), part.text]
        header["parts"][split] = {"bytes": part.bytes, "sizes": [len(blob) for blob in blobs]}
        payload += blobs
    return header, payload


def unpack_encoded(header: Any, payload: bytes, dtype: str) -> Encoded:
    """The result of a frame."""
    result, start = Encoded(dropped=header["dropped"], flaws=[Flaw(**flaw) for flaw in header["flaws"]]), 0
    for split, fields in header["parts"].items():
        blobs = []
        for size in fields["sizes"]:
            blobs.append(payload[start : start + size])
            start += size
        tokens, documents, starts = (np.frombuffer(blob, kind) for blob, kind in zip(blobs, (dtype, np.int64, np.int64), strict=False))
        result.parts[split] = Part(tokens, documents, starts, fields["bytes"], blobs[3])
    return result


class Worker:
    """A process that tokenizes; used by one thread at a time."""

    def __init__(self, job: Job):
        self.job = job
        # The child must find this package wherever we found it, and nothing in the working directory must shadow a library.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = os.environ | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "trainer.data.tokenizing"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdin and self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout
        send(self.input, asdict(job), [])

    def encode(self, unit: Unit) -> Encoded:
        """All of a unit, by split. Raises RuntimeError where the process is gone."""
        try:
            send(self.input, *pack_unit(unit))
            frame = receive(self.output)
        except BrokenPipeError:
            frame = None
        if frame is None:
            self.process.kill()
            raise RuntimeError(
                f"prepare: a tokenizing process ended with code {self.process.wait()} at unit {unit.index} "
                "(-9: out of memory, or killed); finished units are kept, start again, with fewer data.processes if memory is short"
            )
        return unpack_encoded(*frame, self.job.dtype)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.input, self.output):
            try:
                stream.close()
            except BrokenPipeError:
                pass


def main() -> None:
    """Answer units with results until the input ends."""
    # Ctrl-C reaches the whole terminal; the caller ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    first = receive(source)
    if first is None:
        return
    encoder = Encoder(Job(**first[0]))
    while frame := receive(source):
        send(sink, *pack_encoded(encoder.encode(unpack_unit(*frame))))


if __name__ == "__main__":
    main()
