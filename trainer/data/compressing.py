"""What general compressors make of the held-out text: a baseline that every language model must beat, in bits per byte."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_BLOCK = 1 << 18
# xz -9 looks back 64 MiB; a smaller window over a smaller text finds the same, in less memory.
_XZ_WINDOW = 64 << 20


def compressed_sizes(path: Path, advance: Callable[[int], Any]) -> dict[str, int]:
    """Bytes after `gzip -9` and after `xz -9`, streamed. advance: called with the bytes done, over both."""
    window = min(_XZ_WINDOW, max(1 << 20, 1 << (path.stat().st_size - 1).bit_length()))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]
    compressors = {"gzip_bytes": zlib.compressobj(9, zlib.DEFLATED, 31), "xz_bytes": lzma.LZMACompressor(filters=filters)}

    def size_of(compressor: Any) -> int:
        size = 0
        with open(path, "rb") as stream:
            while block := stream.read(_BLOCK):
                size += len(compressor.compress(block))
                advance(len(block))
        return size + len(compressor.flush())

    with ThreadPoolExecutor(len(compressors)) as pool:
        return dict(zip(compressors, pool.map(size_of, compressors.values()), strict=True))
