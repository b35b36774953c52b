"""Documents that repeat an earlier one, byte for byte: found in one pass before anything is tokenized."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.reading import Unit
from trainer.data.segments import Format

# 128 bits: among 10¹² documents two different ones agree with a chance of 10⁻¹⁵.
_DIGEST_BYTES = 16


@dataclass
class Repeated:
    """The documents to leave out. places: [n, 4], unit, segment of it, document of that, sorted; last, whether a document begins there,
    since of a long one there is a place for each part."""

    places: NDArray[np.int64]

    @property
    def count(self) -> int:
        """How many documents these are."""
        return int(self.places[:, 3].sum())

    def mark(self, unit: Unit) -> Unit:
        """The unit, its segments told which of their documents are left out."""
        first, last = np.searchsorted(self.places[:, 0], (unit.index, unit.index + 1))
        for _, segment, document, _ in self.places[first:last].tolist():
            unit.segments[segment].repeated.append(document)
        return unit


def find_repeated(units: Iterable[Unit], layout: Format, advance: Callable[[int], Any]) -> Repeated:
    """All documents but the first of each content, over both splits, in the order of the files.

    Holds about 100 bytes of memory for each document that is kept. advance: called with the bytes of the files that were read.
    """
    seen: set[bytes] = set()
    places: list[tuple[int, int, int, bool]] = []

    def close(digest: Any, parts: list[tuple[int, int, int, bool]]) -> None:
        known = len(seen)
        if parts:
            seen.add(digest.digest())
            if len(seen) == known:
                places.extend(parts)

    digest, parts = _new_digest(), list[tuple[int, int, int, bool]]()
    for unit in units:
        for number, segment in enumerate(unit.segments):
            for index, text in enumerate(layout.documents(segment).texts):
                # A document ends where the next one begins: it may have come in several segments.
                if segment.opens:
                    close(digest, parts)
                    digest, parts = _new_digest(), []
                digest.update(text)
                parts.append((unit.index, number, index, not parts))
        advance(unit.size)
    close(digest, parts)
    return Repeated(np.array(places, np.int64).reshape(-1, 4))


def _new_digest() -> Any:
    return hashlib.blake2b(digest_size=_DIGEST_BYTES)
