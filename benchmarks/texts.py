"""Text of any size from a little of it: documents of its sentences, drawn at random, so that none is another's copy."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

from trainer.data.stdlib import list_standard_library

ROOT = Path(__file__).resolve().parents[1]
_ENGLISH = ("books/*.md", "wikitext2/*.txt", "tinyshakespeare/*.txt")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
_FILE_BYTES = 8_000_000


def english() -> tuple[str, list[str]]:
    """What the text is, and its sentences: English from the folder in TRAINER_DATA; without one, the standard library's source."""
    folder = Path(os.environ.get("TRAINER_DATA") or ROOT.parent / "shared" / "data")
    files = [path for pattern in _ENGLISH for path in sorted(folder.glob(pattern))]
    what = "English books and articles" if files else "Python's standard library"
    files = files or [Path(file.path) for file in list_standard_library(0.05).files]
    found = (sentence for path in files for sentence in _SENTENCE.split(path.read_text()))
    return what, [sentence for sentence in map(str.strip, found) if len(sentence) > 20]


def documents(sentences: list[str], size: int, seed: int) -> Iterator[str]:
    """Documents of `size` bytes in all, of half a kilobyte to ten, mostly short."""
    draw = random.Random(seed)
    while size > 0:
        text = " ".join(draw.choices(sentences, k=int(4 * 20 ** draw.random())))
        size -= len(text.encode())
        yield text


def write_records(folder: Path, name: str, sentences: list[str], size: int, seed: int = 0) -> list[Path]:
    """The same as files of JSON records, `name-00.jsonl` …"""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, size, _FILE_BYTES)):
        paths.append(folder / f"{name}-{number:03}.jsonl")
        with open(paths[-1], "w") as stream:
            for text in documents(sentences, min(_FILE_BYTES, size - start), seed * 1_000_003 + number):
                stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return paths
