"""A few training examples of each class, drawn by a hash of what they hold: `data.shots`, `data.draw`."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError

if TYPE_CHECKING:
    from trainer.tasks.labelled import Labelled


def drawn(task: Labelled, examples: Iterable[dict[str, Any]], shots: int, draw: int, learned: Mapping[str, Any]) -> list[int]:
    """The numbers of the examples that are drawn, `shots` for each class, in order.

    Which they are depends on each example itself and on the draw: neither on their order nor on what else there is of other classes. One
    that counts for several classes may be drawn for any of them. Raises ConfigError where a class has fewer.
    """
    # Of each class the smallest hashes so far, the largest of them on top.
    held: dict[str, list[tuple[int, int]]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for number, example in enumerate(examples):
        entry = -_hash(example, draw), -number
        for name in task.classes(example, learned):
            counts[name] += 1
            if len(held[name]) < shots:
                heapq.heappush(held[name], entry)
            else:
                heapq.heappushpop(held[name], entry)
    for name, count in sorted(counts.items()):
        if count < shots:
            of = f" of {name!r}" if name else ""
            raise ConfigError(f"data.shots: {shots}; there are {count} training examples{of}; allowed: up to {min(counts.values())}")
    return sorted({-number for entries in held.values() for _, number in entries})


def _hash(example: dict[str, Any], draw: int) -> int:
    content = json.dumps([draw, example], sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
