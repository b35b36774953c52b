"""Writing a tokenized corpus so that a kill at any moment loses little: append, flush, then record how far it is good."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainer.atomic import write_json
from trainer.data.claims import JOURNAL
from trainer.data.corpus import shard_name
from trainer.data.sources import EVAL, SPLITS
from trainer.data.tokenizing import Encoded, Part

SHARD_TOKENS = 1 << 28
TEXT = "text.bin"
_BLOCK = 1 << 22


class SplitWriter:
    """Appends to the files of one split. lengths: what of each is good: tokens, documents, sentences, bytes of text."""

    def __init__(self, folder: Path, dtype: str, lengths: dict[str, int], shard_tokens: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.dtype, self.lengths, self.shard_tokens = folder, np.dtype(dtype), dict(lengths), shard_tokens
        self._open: dict[str, BinaryIO] = {}
        self._cut_back()

    def _cut_back(self) -> None:
        """Remove what a killed process wrote after its last record."""
        shards = -(-self.lengths["tokens"] // self.shard_tokens)
        for path in self.folder.glob("tokens-*.bin"):
            if int(path.stem.split("-")[1]) >= shards:
                path.unlink()
        wanted = {f"{name}.bin": 8 * self.lengths[name] for name in ("documents", "sentences")} | {TEXT: self.lengths["text"]}
        if shards:
            wanted[shard_name(shards - 1)] = self.dtype.itemsize * (self.lengths["tokens"] - (shards - 1) * self.shard_tokens)
        for name, size in wanted.items():
            if (self.folder / name).exists():
                os.truncate(self.folder / name, size)

    def append(self, part: Part) -> None:
        """Add what a unit has for this split."""
        base = self.lengths["tokens"]
        self._write("documents.bin", (part.documents + base).tobytes())
        self._write("sentences.bin", (part.sentences + base).tobytes())
        self._write(TEXT, part.text)
        tokens = part.tokens
        while len(tokens):
            number, inside = divmod(self.lengths["tokens"], self.shard_tokens)
            room = self.shard_tokens - inside
            self._write(shard_name(number), tokens[:room].tobytes())
            self.lengths["tokens"] += len(tokens[:room])
            tokens = tokens[room:]
        self.lengths["documents"] += len(part.documents)
        self.lengths["sentences"] += len(part.sentences)
        self.lengths["bytes"] += part.size
        self.lengths["text"] += len(part.text)

    def add(self, folder: Path, lengths: dict[str, int]) -> None:
        """Add what another writer left in a folder. lengths: how much of each is good there."""
        nothing = np.zeros(0, self.dtype), np.zeros(0, np.int64)
        # Starts first: they count from the first token that is to come.
        for documents in _blocks([folder / "documents.bin"], np.dtype(np.int64), lengths["documents"]):
            self.append(Part(nothing[0], documents, nothing[1]))
        for sentences in _blocks([folder / "sentences.bin"], np.dtype(np.int64), lengths["sentences"]):
            self.append(Part(*nothing, sentences))
        for tokens in _blocks(sorted(folder.glob("tokens-*.bin")), self.dtype, lengths["tokens"]):
            self.append(Part(tokens, nothing[1], nothing[1]))
        for text in _blocks([folder / TEXT], np.dtype(np.uint8), lengths["text"]):
            self.append(Part(*nothing, nothing[1], text=text.tobytes()))
        self.lengths["bytes"] += lengths["bytes"]

    def _write(self, name: str, data: bytes) -> None:
        if not data:
            return
        if name not in self._open:
            self._open[name] = open(self.folder / name, "ab")  # noqa: SIM115 (closed in close)
        self._open[name].write(data)

    def flush(self) -> None:
        """Everything written so far is on the disk."""
        for stream in self._open.values():
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, end: int | None) -> None:
        """Close the stream and the indexes. end: the separator that closes the last document, if there is one."""
        base = self.lengths["tokens"]
        if self.lengths["documents"] and end is not None:
            self.append(Part(np.array([end], self.dtype), np.zeros(0, np.int64), np.zeros(0, np.int64)))
        self._write("documents.bin", np.int64(base).tobytes())
        if end is None:
            self._write("sentences.bin", np.int64(base).tobytes())

    def close(self) -> None:
        for stream in self._open.values():
            stream.close()


def _blocks(paths: Sequence[Path], dtype: np.dtype[Any], length: int) -> Iterator[NDArray[Any]]:
    """The values of some files, one file after the other, a few megabytes at a time. Raises ValueError where they hold fewer."""
    for path in paths if length else ():
        with open(path, "rb") as stream:
            while length and len(block := np.fromfile(stream, dtype, min(length, _BLOCK // dtype.itemsize))):
                length -= len(block)
                yield block
    if length:
        raise ValueError(f"{[str(path) for path in paths]}: {length} values are missing")


class CorpusWriter:
    """A corpus being written in a folder of its own. `units`: how many units of the source it holds for good."""

    def __init__(self, folder: Path, dtype: str, shard_tokens: int = SHARD_TOKENS):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.journal = folder, folder / JOURNAL
        empty = {"tokens": 0, "documents": 0, "sentences": 0, "bytes": 0, "text": 0}
        state = json.loads(self.journal.read_text()) if self.journal.exists() else {}
        self.units: int = state.get("units", 0)
        self.read: int = state.get("read", 0)
        self.dropped: dict[str, int] = state.get("dropped", {})
        self.splits = {split: SplitWriter(folder / split, dtype, state.get(split, empty), shard_tokens) for split in SPLITS}

    def append(self, encoded: Encoded, size: int) -> None:
        """Add the next unit, in order. size: its bytes of text."""
        for split, part in encoded.parts.items():
            self.splits[split].append(part)
        for reason, count in encoded.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.units += 1
        self.read += size

    def commit(self) -> None:
        """Record that all units appended so far are good. The data reaches the disk before the record of it."""
        for writer in self.splits.values():
            writer.flush()
        lengths = {split: writer.lengths for split, writer in self.splits.items()}
        write_json(self.journal, {"units": self.units, "read": self.read, "dropped": self.dropped, **lengths})

    def add(self, folder: Path, advance: Callable[[int], Any]) -> None:
        """Add all of another corpus, finished but for its ends. advance: called with the bytes of the source that it stands for."""
        state = json.loads((folder / JOURNAL).read_text())
        for split, writer in self.splits.items():
            writer.add(folder / split, state[split])
        for reason, count in state["dropped"].items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.units += state["units"]
        self.read += state["read"]
        advance(state["read"])

    def close(self) -> None:
        """Close all files."""
        for writer in self.splits.values():
            writer.close()

    def finish(self, end: int | None) -> Path:
        """Write the ends and close all files. Returns the path of the held-out text."""
        for writer in self.splits.values():
            writer.finish(end)
            writer.flush()
        self.close()
        return self.folder / EVAL / TEXT
