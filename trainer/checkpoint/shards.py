"""A rank's shard: a safetensors file, written in one pass in which each block of it is summed, without a copy of what is in memory.

The layout is safetensors' own (a header of JSON, then the values, without holes) and is read by the library. It is written here, because
the library's writer copies every tensor, leaves the checksum to a second reading, and does not tell a full disk from another failure.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.atomic import flush
from trainer.checkpoint.files import CheckpointError, regular

if TYPE_CHECKING:
    from trainer.checkpoint.pieces import Piece

# What has a checksum of its own: small enough to be fetched alone, large enough that a file of 20 GB has some two thousand.
BLOCK = 8 << 20
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
           "int8": "I8", "uint8": "U8", "bool": "BOOL"}  # fmt: skip
_THREADS = 8
_READ = 1 << 20


class Sums:
    """SHA-256 of each block of a stream."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._sum, self._left = hashlib.sha256(), BLOCK

    def add(self, data: memoryview) -> None:
        while data:
            part = data[: self._left]
            self._sum.update(part)
            self._left -= len(part)
            data = data[len(part) :]
            if not self._left:
                self._end()

    def _end(self) -> None:
        self.blocks.append(self._sum.hexdigest())
        self._sum, self._left = hashlib.sha256(), BLOCK

    def done(self) -> list[str]:
        """The sums; that of the last block, which may be short, included."""
        if self._left < BLOCK:
            self._end()
        return self.blocks


def bytes_of(pieces: Iterable[Piece]) -> int:
    """Bytes of the values."""
    return sum(piece.tensor.numel() * piece.tensor.element_size() for piece in pieces)


def write(path: Path, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Write a shard and wait until it is on the disk.

    Returns {bytes, blocks: SHA-256 of each, pieces: {name, kind, shape, offset, lengths, dtype, key, start: first byte in the file}}.
    """
    # Large elements first, so that each tensor begins at a multiple of its element's size.
    ordered = sorted(pieces, key=lambda piece: -piece.tensor.element_size())
    header, index = _header(ordered)
    sums, size = Sums(), 0
    with path.open("wb", buffering=0) as file:
        size += _append(file, memoryview(header), sums)
        for piece in ordered:
            size += _append(file, _bytes(piece), sums)
    flush(path)
    return {"bytes": size, "blocks": sums.done(), "pieces": index}


def _header(pieces: Sequence[Piece]) -> tuple[bytes, list[dict[str, Any]]]:
    """The file's first bytes, and the entries of the manifest."""
    entries: dict[str, Any] = {}
    index: list[dict[str, Any]] = []
    at = 0
    for number, piece in enumerate(pieces):
        key, dtype = f"{number:06d}", str(piece.tensor.dtype).removeprefix("torch.")
        end = at + bytes_of([piece])
        entries[key] = {"dtype": _DTYPES[dtype], "shape": piece.box.lengths, "data_offsets": (at, end)}
        place = {"shape": piece.shape, "offset": piece.box.offset, "lengths": piece.box.lengths}
        index.append({"name": piece.name, "kind": piece.kind, **place, "dtype": dtype, "key": key, "start": at})
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    for entry in index:
        entry["start"] += 8 + len(text)
    return len(text).to_bytes(8, "little") + text, index


def _bytes(piece: Piece) -> memoryview:
    import torch

    # A rank's part of a tensor can be strided; then this tensor alone is copied.
    values = piece.tensor.detach().cpu().contiguous()
    return values.reshape(-1).view(torch.uint8).numpy().data


def _append(file: Any, data: memoryview, sums: Sums) -> int:
    """Write and sum block by block, while it is in the processor's cache; the bytes written."""
    size = len(data)
    while data:
        done = file.write(data[:BLOCK])
        sums.add(data[:done])
        data = data[done:]
    return size


def verify(folder: Path, shards: Sequence[dict[str, Any]], part: int = 0, parts: int = 1, threads: int | None = None) -> None:
    """Check the size of every shard, and the checksums of one of `parts` equal shares of all blocks, several at a time.

    Raises CheckpointError naming the first file and byte that are not as they were written.
    """
    mine = share(shards, part, parts)
    verify_sizes(folder, shards)
    with ThreadPoolExecutor(min(_THREADS, threads or len(os.sched_getaffinity(0)))) as pool:
        for complaint in pool.map(lambda block: _damage(folder, *block), mine):
            if complaint:
                raise CheckpointError(complaint)


def share(shards: Sequence[dict[str, Any]], part: int, parts: int) -> list[tuple[dict[str, Any], int]]:
    """One of `parts` equal shares of all blocks: the shard of each, and its number in there."""
    blocks = [(shard, number) for shard in shards for number in range(len(shard["blocks"]))]
    return blocks[len(blocks) * part // parts : len(blocks) * (part + 1) // parts]


def verify_sizes(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    """Raises CheckpointError naming the first file that is not there, or not of the size that was written."""
    for shard in shards:
        path = regular(folder, shard["file"])
        size = path.stat().st_size
        if size != shard["bytes"] or len(shard["blocks"]) != -(-size // BLOCK):
            raise CheckpointError(f"{path} has {size:,} bytes, {shard['bytes']:,} were written")


def _damage(folder: Path, shard: dict[str, Any], number: int) -> str:
    path = folder / shard["file"]
    found, left, data = hashlib.sha256(), BLOCK, bytearray(_READ)
    with path.open("rb", buffering=0) as file:
        file.seek(number * BLOCK)
        while left and (count := file.readinto(memoryview(data)[:left])):
            found.update(memoryview(data)[:count])
            left -= count
    if found.hexdigest() == shard["blocks"][number]:
        return ""
    return f"{path} does not have the checksum that it was written with, at byte {number * BLOCK:,} or after"
