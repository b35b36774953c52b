"""Documents that repeat an earlier one, byte for byte: found in one pass before anything is tokenized, part by part, then over all parts.

Of each part a folder: digests.npy, of its different documents, sorted; firsts.npy, the number of the first document of each; again.npy,
the numbers of those that repeat one of the same part; places.npy, where all of them lie.
Of all parts a folder: part-N.npy, the places that are left out of each; meta.json, how many documents these are.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.atomic import write_json
from trainer.data.parts import Stretch
from trainer.data.reading import Parting, segments
from trainer.data.rows import META
from trainer.data.segments import Format, Segment

# 128 bits: among 10¹² documents two different ones agree with a chance of 10⁻¹⁵.
_DIGEST = np.dtype("S16")
# Digests that are compared at once, so that memory does not grow with the number of documents.
_AT_ONCE = 1 << 22


@dataclass
class Repeated:
    """The documents to leave out, as places: [n, 4], stretch, segment of it, document of that, sorted; last, whether a document begins
    there, since of a long one there is a place in each of its segments."""

    folder: Path
    _held: tuple[int, NDArray[np.int64]] = field(default=(-1, np.zeros((0, 4), np.int64)), init=False)

    @cached_property
    def count(self) -> int:
        """How many documents these are."""
        return int(json.loads((self.folder / META).read_text())["documents"])

    def marked(self, stretch: Stretch, found: Iterator[Segment]) -> Iterator[Segment]:
        """The segments of a stretch, told which of their documents are left out."""
        if self._held[0] != stretch.part:
            self._held = stretch.part, np.load(_of_part(self.folder, stretch.part), allow_pickle=False)
        places = self._held[1]
        first, last = np.searchsorted(places[:, 0], (stretch.index, stretch.index + 1))
        left_out: dict[int, list[int]] = {}
        for _, segment, document, _ in places[first:last].tolist():
            left_out.setdefault(segment, []).append(document)
        for number, each in enumerate(found):
            each.repeated = left_out.get(number, [])
            yield each


def digest_part(
    part: Sequence[Stretch],
    layout: Format,
    parting: Parting,
    prefixes: Sequence[int],
    unit_bytes: int,
    folder: Path,
    advance: Callable[[int], Any],
) -> None:
    """Write what there is of a part. Memory grows with the documents of the part, not with those of the source."""
    digests, places, opens = bytearray(), array("q"), False
    digest = hashlib.blake2b(digest_size=_DIGEST.itemsize)

    def close() -> None:
        nonlocal digest, opens
        if opens:
            digests.extend(digest.digest())
        digest, opens = hashlib.blake2b(digest_size=_DIGEST.itemsize), False

    for stretch in part:
        for number, segment in enumerate(segments(stretch, layout, parting, prefixes[stretch.number], unit_bytes)):
            for index, text in enumerate(layout.documents(segment).texts):
                # A document ends where the next one begins: it may have come in several segments.
                if segment.opens:
                    close()
                digest.update(text)
                places.extend((stretch.index, number, index, not opens))
                opens = True
            advance(segment.size)
    close()
    found = np.frombuffer(digests, _DIGEST)
    order = np.argsort(found, kind="stable")
    new = _new(found[order])
    np.save(folder / "digests.npy", found[order][new])
    np.save(folder / "firsts.npy", order[new])
    np.save(folder / "again.npy", order[~new])
    np.save(folder / "places.npy", np.frombuffer(places, np.int64).reshape(-1, 4))


def _new(digests: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of sorted digests differ from the one before."""
    return np.concatenate([np.ones(min(1, len(digests)), np.bool_), digests[1:] != digests[:-1]])


def compare_parts(parts: Sequence[Path], folder: Path) -> None:
    """Write which documents of all parts repeat an earlier one, over both splits, in the order of the files."""
    for number, firsts in _in_earlier_parts(parts):
        with open(_of_part(folder, number).with_suffix(".raw"), "ab") as stream:
            stream.write(firsts.tobytes())
    total = 0
    for number, part in enumerate(parts):
        raw = _of_part(folder, number).with_suffix(".raw")
        repeated = np.concatenate([np.load(part / "again.npy"), np.fromfile(raw, np.int64) if raw.exists() else np.zeros(0, np.int64)])
        raw.unlink(missing_ok=True)
        places = np.load(part / "places.npy")
        left_out = np.zeros(int(places[:, 3].sum()), np.bool_)
        left_out[repeated] = True
        np.save(_of_part(folder, number), places[left_out[np.cumsum(places[:, 3]) - 1]])
        total += len(repeated)
    write_json(folder / META, {"documents": total})


def _in_earlier_parts(parts: Sequence[Path]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Part by part the documents that an earlier part has, of one range of digests after the other."""
    total = sum(len(np.load(part / "digests.npy", mmap_mode="r")) for part in parts)
    ranges = -(-total // _AT_ONCE)
    borders = np.array([(2**64 * number // ranges).to_bytes(8, "big") for number in range(1, ranges)], _DIGEST)
    for number in range(ranges):
        digests, owners, firsts = [], [], []
        for owner, part in enumerate(parts):
            known = np.load(part / "digests.npy", mmap_mode="r")
            low = np.searchsorted(known, borders[number - 1]) if number else 0
            high = np.searchsorted(known, borders[number]) if number < ranges - 1 else len(known)
            digests.append(np.array(known[low:high]))
            firsts.append(np.array(np.load(part / "firsts.npy", mmap_mode="r")[low:high]))
            owners.append(np.full(high - low, owner))
        joined = np.concatenate(digests)
        # Stable: of equal digests that of the earliest part comes first.
        order = np.argsort(joined, kind="stable")
        again = np.sort(order[~_new(joined[order])])
        owner_of, first_of = np.concatenate(owners)[again], np.concatenate(firsts)[again]
        for owner in np.unique(owner_of).tolist():
            yield owner, first_of[owner_of == owner].astype(np.int64)


def _of_part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.npy"
