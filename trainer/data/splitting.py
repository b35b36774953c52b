"""Which documents are held out: given, by hash, or the tail of a corpus of few documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data.files import Fingerprint, open_text, prefix_hash
from trainer.data.reading import Parting, documents, units
from trainer.data.sources import Document, Listing, Source, SourceFile

# Under this many documents, whole ones are too coarse a measure: the tail of the corpus is held out instead.
FEW_DOCUMENTS = 20
# Up to this many documents the share is met exactly, by rank of the hash; above it, by a threshold, which is as good as exact there.
_COUNTED = 2000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Plan:
    """A source ready to be read: its files without the empty and the repeated, how it is parted, and the fingerprint of all that.

    prefixes: hash of each file's first bytes. size: decompressed bytes. dropped: reason → count. where: the key to name in an error.
    """

    files: list[SourceFile]
    prefixes: list[int]
    size: int
    document: Document
    parting: Parting
    dropped: dict[str, int]
    where: str
    fingerprint: str


def plan(source: Source, listing: Listing, contents: Sequence[Fingerprint]) -> Plan:
    """Decide which files are read and what is held out of them. contents: of each listed file."""
    kept: list[tuple[SourceFile, Fingerprint]] = []
    dropped = {reason: count for reason, count in listing.dropped.items() if count}
    seen: set[tuple[str, str | None]] = set()
    for file, content in zip(listing.files, contents, strict=True):
        repeated = (content.digest, file.split) in seen and source.document is Document.file
        reason = "empty files" if content.blank else "files that repeat another" if repeated else None
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            seen.add((content.digest, file.split))
            kept.append((file, content))
    files = [file for file, _ in kept]
    found = [content for _, content in kept]
    given = any(file.split for file in files)
    parting = Parting() if given or not files else _part(source, files, found)
    identity = {
        "files": [(content.digest, file.split) for file, content in kept],
        "document": source.document.value,
        "on_error": source.on_error.value,
        "threshold": parting.threshold,
        "place": parting.place,
    }
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    size = sum(content.size for content in found)
    return Plan(files, [content.prefix for content in found], size, source.document, parting, dropped, listing.where, digest)


def _part(source: Source, files: list[SourceFile], contents: list[Fingerprint]) -> Parting:
    """By hash where there are documents enough, else at a place in the last bytes."""
    if source.document is Document.file:
        hashes = [content.prefix for content in contents]
        everything = True
    else:
        hashes, everything = _first_documents(files, source.document)
    if len(hashes) < FEW_DOCUMENTS:
        return Parting(place=tail_place(files, [content.size + content.mark for content in contents], source.held_out))
    if everything:
        return Parting(threshold=sorted(hashes)[max(1, round(source.held_out * len(hashes))) - 1] + 1)
    return Parting(threshold=int(source.held_out * 2**64))


def _first_documents(files: list[SourceFile], document: Document) -> tuple[list[int], bool]:
    """Hashes of the first documents, and whether these are all."""
    hashes: list[int] = []
    for unit in units(files, document, Parting(), [0] * len(files)):
        for segment in unit.segments:
            # Of a document in several segments the first counts.
            if segment.opens:
                hashes += [prefix_hash(text) for text in documents(segment, document) if text and not text.isspace()]
        if len(hashes) >= _COUNTED:
            return hashes, False
    return hashes, True


def tail_place(files: Sequence[SourceFile], sizes: Sequence[int], share: float) -> tuple[int, int]:
    """The first line end (file, offset after it) that leaves at most a share of all bytes behind it.

    Where no further line ends, the place itself, moved to a character's start.
    """
    start = sum(sizes) - int(share * sum(sizes))
    number = 0
    while number < len(sizes) - 1 and start >= sizes[number]:
        start -= sizes[number]
        number += 1
    with open_text(files[number].path) as stream:
        stream.seek(start)
        offset, first = start, b""
        while block := stream.read(_BLOCK):
            first = first or block
            position = block.find(b"\n")
            if position >= 0:
                if offset + position + 1 < sizes[number]:
                    return number, offset + position + 1
                break
            offset += len(block)
    if number + 1 < len(sizes):
        return number + 1, 0
    while first[:1] and first[0] & 0xC0 == 0x80:
        start, first = start + 1, first[1:]
    return number, start
