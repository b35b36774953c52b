"""Figures of answers that stand in a text, as SQuAD's own evaluation scripts compute them (versions 1.1 and 2.0), in percent.

Where most letters of a text are written without blanks (Chinese characters, kana), words are characters; of all else the figures are those
of the scripts.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.tasks.labelled import Score

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_BLANKS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHARACTER = re.compile(f"[{_WITHOUT_BLANKS}]")
_UNIT = re.compile(rf"[{_WITHOUT_BLANKS}]|[^\s{_WITHOUT_BLANKS}]+")

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Answered:
    """What is compared of an example. truth: the texts of its answers, none where there is no answer. predicted: text; null: by how much
    having no answer scored above it. context: the text that it was looked for in."""

    truth: Sequence[str]
    predicted: str
    null: float
    context: str


def extracted(examples: Sequence[Answered]) -> Score:
    """Exact match and F1 where every question has an answer; the best over the answers of each."""
    words = [_Words(one.context) for one in examples]
    exact = [max(float(split(one.predicted) == split(true)) for true in one.truth) for split, one in zip(words, examples, strict=True)]
    f1 = [max(_f1(split(one.predicted), split(true)) for true in one.truth) for split, one in zip(words, examples, strict=True)]
    return Score({"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(f1))})


def extracted_or_none(examples: Sequence[Answered], threshold: float) -> Score:
    """The same where questions may have no answer: with no answer given where its score is more than `threshold` above.

    has_answer_…, no_answer_…: over the questions that have one, and that have none. best_…: with the threshold that is best for it.
    """
    words = [_Words(one.context) for one in examples]
    nulls, is_answerable = (np.array(values) for values in zip(*((one.null, bool(one.truth)) for one in examples), strict=True))
    speaks = np.array([bool(one.predicted) for one in examples])
    figures: dict[str, float] = {}
    best: dict[str, float] = {}
    for name, compare in (("exact_match", _exact), ("f1", _f1_or_none)):
        given = np.array([_against(one, split, compare) for split, one in zip(words, examples, strict=True)])
        values = np.where(nulls > threshold, ~is_answerable, given)
        figures[name] = 100 * float(values.mean())
        for part, members in (("has_answer", is_answerable), ("no_answer", ~is_answerable)):
            if members.any():
                figures[f"{part}_{name}"] = 100 * float(values[members].mean())
        gains = np.where(is_answerable, given, -1.0 * speaks)
        best[f"best_{name}"], best[f"best_{name}_threshold"] = _best(float((~is_answerable).sum()), gains, nulls)
    return Score(figures | best)


def _against(one: Answered, split: _Words, compare: Callable[[list[str], list[str]], float]) -> float:
    """The best over the answers of an example. One of which no word is left is none."""
    said, truths = split(one.predicted), [true for true in map(split, one.truth) if true]
    return max(compare(said, true) for true in truths or [[]])


def _best(silent: float, gains: Values, nulls: Values) -> tuple[float, float]:
    """The largest mean, in percent, that a threshold gives, and that threshold: the questions whose null score is at most that are
    answered. silent: the sum where none is; gains: what answering each adds to it."""
    order = np.argsort(nulls, kind="stable")
    sums = silent + np.concatenate([[0.0], np.cumsum(gains[order])])
    # Among equal scores there is no threshold.
    possible = np.concatenate([[True], np.diff(nulls[order]) > 0, [True]])
    place = int(np.where(possible, sums, -np.inf).argmax())
    threshold = nulls[order][place - 1] if place else nulls.min() - 1
    return 100 * float(sums[place]) / len(nulls), float(threshold)


class _Words:
    """How texts that belong to a context are taken apart."""

    def __init__(self, context: str):
        letters = sum(character.isalpha() for character in context)
        self.by_character = 2 * len(_CHARACTER.findall(context)) > letters > 0

    def __call__(self, text: str) -> list[str]:
        plain = _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION))
        if not self.by_character:
            return plain.split()
        kept = "".join(" " if unicodedata.category(character).startswith("P") else character for character in plain)
        return _UNIT.findall(kept)


def _exact(said: list[str], true: list[str]) -> float:
    return float(said == true)


def _f1(said: list[str], true: list[str]) -> float:
    """Of two bags of words; of empty ones 0."""
    same = (Counter(said) & Counter(true)).total()
    if not same:
        return 0.0
    precision, recall = same / len(said), same / len(true)
    return 2 * precision * recall / (precision + recall)


def _f1_or_none(said: list[str], true: list[str]) -> float:
    """Of two bags of words, of which an empty one is no answer."""
    return _f1(said, true) if said and true else float(said == true)
