"""Files that a reader sees whole or not at all, also after a power cut."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write aside, flush to the disk, rename: a reader sees the old text or the new one, never a part."""
    # Several processes may write the same file, also on several machines; none may rename the other's half.
    aside = path.with_name(f".{path.name}.{secrets.randbits(48)}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """The same for plain values."""
    write_text(path, json.dumps(value))


def flush(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
