"""Writing a tokenized corpus so that a kill at any moment loses little: append, flush, then record how far it is good."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.atomic import write_json
from trainer.data.corpus import shard_name
from trainer.data.sources import EVAL, SPLITS
from trainer.data.tokenizing import Encoded, Part

SHARD_TOKENS = 1 << 28
TEXT = "text.bin"


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


class CorpusWriter:
    """A corpus being written in a folder of its own. `units`: how many units of the source it holds for good."""

    def __init__(self, folder: Path, dtype: str, shard_tokens: int = SHARD_TOKENS):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.journal = folder, folder / "journal.json"
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

    def finish(self, end: int | None) -> Path:
        """Close all files. Returns the path of the held-out text."""
        for writer in self.splits.values():
            writer.finish(end)
            writer.flush()
            writer.close()
        return self.folder / EVAL / TEXT
