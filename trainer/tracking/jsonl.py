"""metrics.jsonl and events.jsonl: one JSON object a line, appended whole, readable after a crash."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

METRICS, EVENTS, SAMPLES = "metrics.jsonl", "events.jsonl", "samples.jsonl"


class Lines:
    """An append-only file of JSON objects. A line is one write, so a killed process leaves at most one torn line, which readers skip."""

    def __init__(self, path: Path):
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            # The process before was killed, or met a full disk, within a line.
            os.write(self._file, b"\n")

    def append(self, line: dict[str, Any]) -> None:
        """Write one object; figures that are not finite become null, which every JSON reader takes."""
        os.write(self._file, (json.dumps(finite(line), default=str, allow_nan=False) + "\n").encode())

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a file in their order, without torn lines; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return parsed(file)


def read_object(path: Path) -> dict[str, Any]:
    """The object that a whole file holds, as summary.json does; empty where there is no such file, or nothing in it that can be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def parsed(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The objects that lines hold, without torn ones."""
    found = []
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def kept(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of one kind without those of steps that a later attempt computed again."""
    found: list[dict[str, Any]] = []
    lowest: float = math.inf
    for line in reversed(lines):
        if line["step"] <= lowest:
            found.append(line)
        lowest = min(lowest, line["step"] - line.get("interval_steps", 1))
    return found[::-1]


def finite(value: Any) -> Any:
    """A copy with every float that is not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value
