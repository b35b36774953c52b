"""Answers that stand in a text: where the given ones are, and which of a model's spans are the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.tasks import BrokenExample


@dataclass(frozen=True)
class Span:
    """Characters of a context, the end not included. score: of a model's, the sum of its two logits."""

    begin: int
    end: int
    score: float = 0.0


def texts_of(example: Mapping[str, Any], number: int) -> list[str]:
    """The texts of an example's answers."""
    return [text for text, _ in _pairs(example["answers"], number)]


def spans_of(example: Mapping[str, Any], number: int) -> list[Span]:
    """Where the answers of an example are in its context; none where there is no answer.

    A place that is missing, or at which the text does not stand, is found where the text stands but once in the context.
    Raises ConfigError (B05) naming the example where it stands nowhere or at several places.
    """
    context, found = str(example["context"]), []
    for text, start in _pairs(example["answers"], number):
        if type(start) is not int or start < 0 or not context.startswith(text, start):
            start = _only_place(context, text, start, number)
        found.append(Span(start, start + len(text)))
    return found


def _only_place(context: str, text: str, start: Any, number: int) -> int:
    place = context.find(text)
    if place < 0 or context.find(text, place + 1) >= 0:
        there = repr(context[start : start + len(text)]) if type(start) is int and start >= 0 else "nothing"
        several = "nowhere in it" if place < 0 else "at several places"
        raise BrokenExample(
            number,
            f"data.columns.answers: {text!r} of example {number + 1:,} does not stand at answer_start={start} of its context, where there "
            f"is {there}, but {several}; give the number of characters before it, counted from 0",
        )
    return place


def _pairs(answers: Any, number: int) -> list[tuple[str, Any]]:
    """Text and place of each answer, given as two lists or as a list of answers."""
    listed = [answers] if isinstance(answers, dict) else answers
    found: list[tuple[str, Any]] = []
    for one in listed if isinstance(listed, list) else [None]:
        texts = one.get("text") if isinstance(one, dict) else None
        starts = one.get("answer_start") if isinstance(one, dict) else None
        texts = [texts] if isinstance(texts, str) else texts
        starts = starts if isinstance(starts, list) else [starts] * len(texts or ())
        if not isinstance(texts, list) or len(texts) != len(starts) or not all(isinstance(text, str) and text for text in texts):
            raise BrokenExample(
                number,
                f"data.columns.answers: {answers!r:.80} of example {number + 1:,}; allowed: "
                '{"text": ["…"], "answer_start": [0]}, with empty lists where there is no answer, or a list of answers',
            )
        found += zip(texts, starts, strict=True)
    return found


def best_places(starts: NDArray[np.floating], ends: NDArray[np.floating], longest: int, count: int) -> list[tuple[int, int, float]]:
    """The best spans of at most `longest` tokens: first token, last token, sum of their logits; the best first, of equals the first."""
    if not len(starts):
        return []
    width = min(longest, len(starts))
    padded = np.concatenate([ends, np.full(width - 1, -np.inf, ends.dtype)])
    sums = (starts[:, None] + np.lib.stride_tricks.sliding_window_view(padded, width)).ravel()
    some = np.argpartition(-sums, count - 1)[:count] if count < len(sums) else np.arange(len(sums))
    ordered = some[np.lexsort((some, -sums[some]))]
    return [(place // width, place // width + place % width, float(sums[place])) for place in ordered.tolist() if np.isfinite(sums[place])]


def best_spans(windows: Iterable[Iterable[Span]], count: int) -> list[Span]:
    """The best of all windows, each place once."""
    found: dict[tuple[int, int], Span] = {}
    for span in (span for window in windows for span in window):
        known = found.get((span.begin, span.end))
        if span.begin < span.end and (known is None or known.score < span.score):
            found[span.begin, span.end] = span
    return sorted(found.values(), key=lambda span: (-span.score, span.begin, span.end))[:count]
