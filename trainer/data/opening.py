"""Opening text files, plain or compressed: gzip, bzip2, xz or Zstandard, told by content and not by name.

Nothing is unpacked to the disk, unpickled or executed.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from trainer.choices import ConfigError

BOM = b"\xef\xbb\xbf"
# Suffix → what such a file begins with; Zstandard also with a frame to skip, as pzstd writes it.
_SKIPPABLE = tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
_MAGIC = {".gz": (b"\x1f\x8b",), ".bz2": (b"BZh",), ".xz": (b"\xfd7zXZ\0",), ".zst": (b"\x28\xb5\x2f\xfd", *_SKIPPABLE)}
COMPRESSED = tuple(_MAGIC)
_BLOCK = 1 << 20
# Compressed bytes that are taken at once: what they become is held.
_PACKED = 1 << 14


def is_plain(path: str) -> bool:
    """Whether a file is not compressed: reading can begin anywhere in it."""
    with open(path, "rb") as raw:
        return not _compression(raw.read(8))


def _compression(head: bytes) -> str:
    return next((suffix for suffix, magic in _MAGIC.items() if head.startswith(magic)), "")


def lines_before(path: str, place: int) -> int:
    """How many lines end before a byte of a plain file."""
    count = 0
    with open_text(path) as stream:
        while place > 0 and (block := stream.read(min(place, _BLOCK))):
            count, place = count + block.count(b"\n"), place - len(block)
    return count


def seek_line(stream: BinaryIO, place: int) -> int:
    """Go to the first line of a plain file that begins at a byte or after it; returns where that is."""
    stream.seek(max(0, place - 1))
    if place:
        while (block := stream.readline(_BLOCK)) and not block.endswith(b"\n"):
            pass
    return stream.tell()


@contextmanager
def open_text(path: str) -> Iterator[BinaryIO]:
    """The bytes of a text file, decompressed. Raises ConfigError where it cannot be opened or the compressed stream is damaged."""
    import zstandard

    suffix = ""
    try:
        with open(path, "rb", buffering=0) as raw:
            head = raw.read(8)
            raw.seek(0)
            suffix = _compression(head)
            yield io.BufferedReader(cast(Any, _decompressed(raw, suffix)), _BLOCK)
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: damaged {suffix} stream ({error}); copy or compress the file again") from error
    except OSError as error:
        # bz2 has no error of its own for a damaged stream, but one without a number.
        if suffix and error.errno is None:
            raise ConfigError(f"{path}: damaged {suffix} stream ({error}); copy or compress the file again") from error
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decompressed(raw: Any, suffix: str) -> Any:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if suffix == ".bz2":
        return bz2.BZ2File(raw)
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".zst":
        return _Zstandard(raw)
    return raw


class _Zstandard(io.RawIOBase):
    """One frame after the other. The library's own reader takes a stream that was cut off for one that ended."""

    def __init__(self, raw: BinaryIO):
        self.raw, self.left = raw, b""
        self.frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        import zstandard

        while not self.left:
            block = self.frame.unused_data if self.frame and self.frame.eof else b""
            block = block or self.raw.read(_PACKED)
            if not block:
                if self.frame and not self.frame.eof:
                    raise EOFError("it ends inside a frame")
                return 0
            if self.frame is None or self.frame.eof:
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.left = self.frame.decompress(block)
        count = min(len(target), len(self.left))
        target[:count], self.left = self.left[:count], self.left[count:]
        return count


def skip(stream: BinaryIO, count: int) -> None:
    """Move on by some bytes, reading them where the stream cannot seek."""
    if stream.seekable():
        stream.seek(count, io.SEEK_CUR)
        return
    while count and (block := stream.read(min(count, _BLOCK))):
        count -= len(block)


def bare_name(path: str) -> str:
    """The name of a file without the suffix of its compression."""
    return next((path[: -len(suffix)] for suffix in COMPRESSED if path.lower().endswith(suffix)), path)
