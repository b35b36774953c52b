"""Figures of embeddings: whether a text is the nearest of all to the anchor that it belongs to, and how cosines go with given scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Anchors that are compared with all texts at once.
_AT_ONCE = 1024
# Equal texts in batches of other lengths come out this near to each other.
_SAME = 1e-6

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """texts: anchor, the one that belongs to it, perhaps one that does not. vectors: of each, of length 1."""

    texts: list[str]
    vectors: list[Vectors]


def figures(pairs: Sequence[Pair], temperature: float) -> dict[str, float]:
    """Every anchor looks for its text among those of all pairs, each once; others that belong to an equal anchor are left out.

    eval_loss: mean cross-entropy over them; accuracy_at_k: share found among the k nearest; mrr_at_10: mean of 1/place, 0 beyond the tenth.
    The time grows with the square of the number of pairs.
    """
    numbers: dict[str, int] = {}
    vectors: list[Vectors] = []
    for pair in pairs:
        for text, found in zip(pair.texts[1:], pair.vectors[1:], strict=True):
            if text not in numbers:
                numbers[text] = len(vectors)
                vectors.append(found)
    own = np.array([numbers[pair.texts[1]] for pair in pairs])
    answers = defaultdict[str, set[int]](set)
    for pair, number in zip(pairs, own.tolist(), strict=True):
        answers[pair.texts[0]].add(number)
    candidates, places, losses = np.stack(vectors), [], []
    for start in range(0, len(pairs), _AT_ONCE):
        some = pairs[start : start + _AT_ONCE]
        cosines = np.stack([pair.vectors[0] for pair in some]) @ candidates.T
        rows, mine = np.arange(len(some)), own[start : start + len(some)]
        for row, pair in enumerate(some):
            cosines[row, sorted(answers[pair.texts[0]] - {int(mine[row])})] = -np.inf
        right = cosines[rows, mine]
        places.append((cosines > right[:, None] + _SAME).sum(1) + 1)
        scaled = (cosines - right[:, None]).astype(np.float64) / temperature
        most = scaled.max(1, keepdims=True)
        losses.append(np.log(np.exp(scaled - most).sum(1)) + most[:, 0])
    place = np.concatenate(places)
    found_figures = {f"accuracy_at_{most}": float((place <= most).mean()) for most in (1, 5, 10)}
    reciprocal = np.where(place <= 10, 1 / place, 0.0)
    return {"eval_loss": float(np.concatenate(losses).mean()), **found_figures, "mrr_at_10": float(reciprocal.mean())}


def spearman(cosines: NDArray[np.floating], scores: NDArray[np.float64]) -> float:
    """Of ranks; 0 where either side is constant."""
    from scipy import stats

    if len(scores) < 2 or cosines.std() == 0 or scores.std() == 0:
        return 0.0
    return float(stats.spearmanr(cosines, scores)[0])
