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
# Suffix → what such a file begins with.
_MAGIC = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0", ".zst": b"\x28\xb5\x2f\xfd"}
COMPRESSED = tuple(_MAGIC)
_BLOCK = 1 << 20


@contextmanager
def open_text(path: str) -> Iterator[BinaryIO]:
    """The bytes of a text file, decompressed. Raises ConfigError where it cannot be opened or the compressed stream is damaged."""
    import zstandard

    suffix = ""
    try:
        with open(path, "rb", buffering=0) as raw:
            head = raw.read(8)
            raw.seek(0)
            suffix = next((suffix for suffix, magic in _MAGIC.items() if head.startswith(magic)), "")
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
        import zstandard

        # Several frames, as appending writes them, are one text.
        return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return raw


def bare_name(path: str) -> str:
    """The name of a file without the suffix of its compression."""
    return next((path[: -len(suffix)] for suffix in COMPRESSED if path.lower().endswith(suffix)), path)
