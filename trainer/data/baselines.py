"""What counting alone can do: the figures that a masked language model, or one that learns from examples, must beat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.atomic import write_json
from trainer.data.claims import made_once

if TYPE_CHECKING:
    from trainer.data.corpus import Corpus
    from trainer.tasks.labelled import Labelled

NAME = "baselines.json"
_BLOCK = 1 << 22
# Entries of the table of pairs that are counted in one pass over the tokens: 256 MiB of int32.
_TABLE = 1 << 26


def neighbour_accuracy(corpus: Corpus) -> float:
    """The better of guessing each held-out token from its left, and from its right neighbour, as counted on the training split.

    Counted once and kept beside the corpus.
    """
    path = corpus.path / NAME
    with made_once(path, lambda waiting: None) as claim:
        if claim:
            write_json(claim.aside, _counted(corpus))
    return float(max(json.loads(path.read_text()).values()))


def guessed(task: Labelled, corpus: Corpus) -> dict[str, float]:
    """Figures of a task where all that is known is what is commonest, over all held-out examples; counted once and kept beside the rows."""
    from trainer.tasks.labelled import Scored

    assert corpus.rows_path is not None
    path = corpus.rows_path / NAME
    with made_once(path, lambda waiting: None) as claim:
        if claim:
            examples = [example for part in corpus.named().values() if not part.members for example in part.records("eval")]
            guesses = [(example, task.guess(example, corpus.learned)) for example in examples]
            scored = [Scored(example, guess) for example, guess in guesses if guess is not None]
            figures = task.score(scored, corpus.learned).figures if scored else {}
            write_json(claim.aside, {f"baseline_{key}": value for key, value in figures.items()})
    found: dict[str, float] = json.loads(path.read_text())
    return found


def _counted(corpus: Corpus) -> dict[str, float]:
    """The accuracy of the guess from the left, and of that from the right."""
    left, right = best_neighbours(corpus, corpus.special.size)
    found = {"from_left": 0.0, "from_right": 0.0}
    total = len(corpus.tokens("eval"))
    for tokens, inside in _blocks(corpus, "eval"):
        # The first and the last token of a document have one neighbour only, and are missed on the other side.
        found["from_left"] += float((inside & (left[tokens[:-1]] == tokens[1:])).sum()) / total
        found["from_right"] += float((inside & (right[tokens[1:]] == tokens[:-1])).sum()) / total
    return found


def best_neighbours(corpus: Corpus, size: int, table: int = _TABLE) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For each token the most frequent one after it, and the most frequent one before it: two arrays [size]; -1 where none was seen.

    Ties go to the smaller id. Pairs are counted in a dense table, a range of left tokens at a time, so memory is bounded at any size.
    """
    after = np.full(size, -1, np.int32)
    before, most = np.full(size, -1, np.int32), np.zeros(size, np.int32)
    height = max(1, min(size, table // size))
    for low in range(0, size, height):
        high = min(low + height, size)
        counts = np.zeros((high - low) * size, np.int32)
        for tokens, inside in _blocks(corpus, "train"):
            first, second = tokens[:-1], tokens[1:]
            chosen = inside & (first >= low) & (first < high)
            np.add.at(counts, (first[chosen] - low) * size + second[chosen], 1)
        square = counts.reshape(high - low, size)
        best = square.argmax(axis=1)
        after[low:high] = np.where(square[np.arange(high - low), best] > 0, best, -1)
        top = square.argmax(axis=0)
        found = square[top, np.arange(size)]
        better = found > most
        before[better], most[better] = top[better] + low, found[better]
    return after, before


def _blocks(corpus: Corpus, split: str) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Consecutive tokens [n + 1], and of each neighbouring pair whether it lies in one document [n]."""
    if corpus.members:
        for member in corpus.members.values():
            yield from _blocks(member, split)
        return
    stream, documents = corpus.tokens(split), corpus.documents(split)
    for start in range(0, len(stream) - 1, _BLOCK):
        count = min(_BLOCK, len(stream) - 1 - start)
        inside = np.ones(count, np.bool_)
        first, last = np.searchsorted(documents, (start + 1, start + count + 1))
        inside[np.asarray(documents[first:last]) - start - 1] = False
        yield stream.read(start, count + 1), inside
