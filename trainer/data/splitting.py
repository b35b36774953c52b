"""Which documents are held out: given, by hash, or the tail of a corpus of few documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trainer.data import parts
from trainer.data.duplicates import Repeated
from trainer.data.fingerprints import Fingerprint
from trainer.data.formats import to_plain
from trainer.data.parts import Stretch, stretches
from trainer.data.reading import Parting, units
from trainer.data.segments import Format
from trainer.data.sources import Listing, Source, SourceFile

if TYPE_CHECKING:
    from trainer.tasks import Field

# Under this many documents, whole ones are too coarse a measure: the tail of the corpus is held out instead.
FEW_DOCUMENTS = 20
# Up to this many documents the share is met exactly, by rank of the hash; above it, by a threshold, which is as good as exact there.
_COUNTED = 2000


@dataclass(frozen=True)
class Plan:
    """A source ready to be read: its files without the empty and the repeated, how it is parted, and the fingerprint of all that.

    prefixes: hash of each file's first bytes. size: decompressed bytes. dropped: reason → count. where: the key to name in an error.
    about: where the source comes from. stretches: how its files are read, in order, and in which parts. repeated: the documents to leave
    out because an earlier one is the same; None: none are looked for.
    """

    files: list[SourceFile]
    prefixes: list[int]
    size: int
    layout: Format
    parting: Parting
    dropped: dict[str, int]
    where: str
    fingerprint: str
    about: dict[str, str]
    stretches: list[Stretch]
    repeated: Repeated | None = None


def plan(source: Source, listing: Listing, contents: Sequence[Fingerprint], fields: Mapping[str, Field] | None = None) -> Plan:
    """Decide which files are read and what is held out of them. contents: of each listed file. fields: of a task on examples, those it
    reads."""
    full = [file for file, content in zip(listing.files, contents, strict=True) if not content.blank]
    layout = source.examples(full, fields) if fields else source.layout(full)
    kept: list[tuple[SourceFile, Fingerprint]] = []
    dropped = {reason: count for reason, count in listing.dropped.items() if count}
    seen: set[tuple[str, str | None]] = set()
    for file, content in zip(listing.files, contents, strict=True):
        repeated = (content.digest, file.split) in seen and layout.whole_files
        reason = "empty files" if content.blank else "files that repeat another" if repeated else None
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            seen.add((content.digest, file.split))
            kept.append((file, content))
    files = [file for file, _ in kept]
    found = [content for _, content in kept]
    given = any(file.split for file in files)
    had = getattr(layout, "fields", tuple(fields or ()))
    together = next((name for name, field in (fields or {}).items() if field.together and name in had), None)
    parting = Parting() if given or not files else _part(source.held_out, layout, files, found, together)
    sizes = [content.size + content.mark for content in found]
    pieces = stretches(files, sizes, layout, divide=parting.place is None)
    identity: dict[str, Any] = {
        "files": [(content.digest, file.split) for file, content in kept],
        "layout": to_plain(layout),
        "on_error": source.on_error.value,
        "deduplicate": source.deduplicate,
        "threshold": parting.threshold,
        "place": parting.place and asdict(parting.place),
    }
    if parting.together:
        identity["together"] = parting.together
    if len(pieces) > len(files):
        # Where large files are cut decides which text a tokenizer is trained on.
        identity["part_bytes"] = parts.PART_BYTES
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    size = sum(content.size for content in found)
    prefixes = [content.prefix for content in found]
    return Plan(files, prefixes, size, layout, parting, dropped, listing.where, digest, listing.about, pieces)


def _part(held_out: float, layout: Format, files: list[SourceFile], contents: list[Fingerprint], together: str | None) -> Parting:
    """By hash where there are documents enough, else at a place in the last bytes."""
    if layout.whole_files:
        hashes = [content.prefix for content in contents]
        everything = True
    else:
        hashes, everything = _first_documents(files, layout, Parting(together=together))
    if len(hashes) < FEW_DOCUMENTS and not layout.examples:
        return Parting(place=layout.tail(files, [content.size + content.mark for content in contents], held_out))
    if everything and not hashes:
        # Why nothing can be read is told by whoever reads it.
        return Parting()
    if everything:
        return Parting(sorted(hashes)[max(1, round(held_out * len(hashes))) - 1] + 1, together=together)
    return Parting(int(held_out * 2**64), together=together)


def _first_documents(files: list[SourceFile], layout: Format, parting: Parting) -> tuple[list[int], bool]:
    """Hashes of the first documents, and whether these are all."""
    hashes: list[int] = []
    whole = stretches(files, [0] * len(files), layout, divide=False)
    for unit in units(whole, layout, Parting(), [0] * len(files)):
        for segment in unit.segments:
            # Of a document in several segments the first counts.
            if segment.opens:
                hashes += [parting.hashed(text) for text in layout.documents(segment).texts]
        if len(hashes) >= _COUNTED:
            return hashes, False
    return hashes, True
