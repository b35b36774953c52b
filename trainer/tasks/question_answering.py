"""Answers to questions that stand in a text: where they begin and end (SQuAD), or that there is none (SQuAD 2.0)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError, choice, identity, require_at_least
from trainer.tasks import Field, answer_scores
from trainer.tasks.answers import Span, best_places, best_spans, spans_of, texts_of
from trainer.tasks.labelled import Ints, Labelled, Row, Score, Scored, token_types

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from trainer.data.corpus import Corpus

_CONTEXT = 1  # the second sequence of a pair
_BLANKS = np.array([code for code in range(0x3001) if chr(code).isspace()], np.uint32)


@choice
class QuestionAnswering(Labelled):
    """The first and the last token of an answer, in windows of a context that is too long; no answer is the row's first token."""

    name: str = "question_answering"
    stride: int | None = identity(None, help="tokens that two windows of a context share; default: a third of sequence_length")
    n_best: int = identity(20, help="answers that are weighed against each other")
    max_answer_length: int = identity(30, help="tokens of the longest answer that is given")
    null_threshold: float = identity(0.0, help="no answer is given where its score is above the best answer's by more than this")

    fields: ClassVar[Mapping[str, Field]] = {
        "question": Field(("question",)),
        # Of two questions on one text none is held out while the other is trained on.
        "context": Field(("context", "passage", "paragraph"), together=True),
        "answers": Field(("answers", "answer")),
    }
    predicted: ClassVar[tuple[str, ...]] = ("answers",)
    terms: ClassVar[dict[str, float]] = {"answer": 1.0}
    objective: ClassVar[str] = "question_answering"
    figures: ClassVar[tuple[str, ...]] = (
        "exact_match", "f1", "has_answer_exact_match", "has_answer_f1", "no_answer_exact_match", "best_exact_match", "best_f1"
    )  # fmt: skip
    # begins, ends: characters of every token of the context. places: of the row's tokens, the first of the context, the one that stands
    # for no answer, and the first and the last of the answer.
    sections: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids", "begins", "ends", "places")

    def check(self) -> None:
        require_at_least(self, 0, "stride", optional=True)
        require_at_least(self, 1, "n_best", "max_answer_length")

    def labels_of(self, corpus: Corpus) -> dict[str, Any]:
        return {"num_labels": 2}

    def learn(self, examples: Iterator[dict[str, Any]]) -> dict[str, Any]:
        counts = [0, 0]
        for number, example in enumerate(examples):
            counts[bool(spans_of(example, number))] += 1
        if not counts[1]:
            raise ConfigError("data.columns.answers: no training example has an answer; give examples with answers")
        return {"unanswerable": counts[0] > 0}

    def encode(
        self,
        examples: Sequence[dict[str, Any]],
        first: int,
        tokenizer: PreTrainedTokenizerFast,
        learned: Mapping[str, Any],
        sequence_length: int,
    ) -> Iterator[Row]:
        special = tokenizer.num_special_tokens_to_add(pair=True)
        # A question gets half of a row at most, the context what is left.
        room = sequence_length // 2
        stride = self._stride(sequence_length, sequence_length - room - special)
        found = tokenizer(
            shortened([str(example["question"]).strip() for example in examples], tokenizer, room),
            [str(example["context"]) for example in examples],
            truncation="only_second",
            max_length=sequence_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )
        answers = [spans_of(example, first + number) for number, example in enumerate(examples)]
        words = [after_blanks(str(example["context"])) for example in examples]
        for row, number in enumerate(found["overflow_to_sample_mapping"]):
            ids, types = found["input_ids"][row], found["token_type_ids"][row]
            inside = np.flatnonzero(np.array(found.sequence_ids(row)) == _CONTEXT)
            begins, ends = np.array(found["offset_mapping"][row], np.int64).reshape(-1, 2)[inside].T
            # Some tokens begin with the blank before.
            begins = np.minimum(words[number][begins], ends)
            start = int(inside[0]) if len(inside) else 0
            null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            answer = answers[number][0] if answers[number] else None
            target = tokens_of(answer, begins, ends)
            places = (start, null, *((null, null) if target is None else (start + target[0], start + target[1])))
            yield Row(first + number, (ids, types if any(types) else (), begins, ends, places), {"answer": 1})

    def _stride(self, sequence_length: int, room: int) -> int:
        """room: for a context beside the longest question."""
        if self.stride is not None and self.stride >= room or room < 1:
            raise ConfigError(
                f"task.stride: {self.stride} with sequence_length={sequence_length}; allowed: below {max(0, room)}, which are left for the "
                "context beside a long question; or give a larger sequence_length"
            )
        return min(sequence_length // 3, room - 1) if self.stride is None else self.stride

    def inputs(
        self, rows: Sequence[Mapping[str, Ints]], counted: NDArray[np.bool_], learned: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        found = {"answer_index": np.flatnonzero(counted), **token_types(rows)}
        kept, none = [row for row, scored in zip(rows, counted, strict=True) if scored], [np.zeros(0, np.int64)]
        for section in ("begins", "ends"):
            found[f"answer_{section}"] = np.concatenate([row[section] for row in kept] or none)
        found["answer_sizes"] = np.array([len(row["begins"]) for row in kept], np.int64)
        found["answer_places"] = np.concatenate([row["places"] for row in kept] or none).reshape(-1, 4)
        return found, {"answer": len(kept)}

    def around(self, model: PreTrainedModel, learned: Mapping[str, Any]) -> nn.Module:
        from trainer.models.answering import AnsweringModule

        return AnsweringModule(model)

    def predictions(self, outputs: Mapping[str, NDArray[Any]], tokenizer: PreTrainedTokenizerFast) -> Sequence[Any]:
        """Of each row the score of no answer, and the best spans: characters and score."""
        borders = np.cumsum(outputs["sizes"])[:-1]
        begins, ends = (np.split(outputs[name], borders) for name in ("begins", "ends"))
        found = []
        for row, (first, null, _, _) in enumerate(outputs["places"].tolist()):
            inside = slice(first, first + len(begins[row]))
            starts, stops = outputs["start_logits"][row], outputs["end_logits"][row]
            places = best_places(starts[inside], stops[inside], self.max_answer_length, self.n_best)
            spans = [(int(begins[row][start]), int(ends[row][stop]), score) for start, stop, score in places]
            found.append([float(starts[null] + stops[null]), spans])
        return found

    def unanswered(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        return {"answers": {"text": [], "answer_start": []}}

    def answer(self, example: Mapping[str, Any], predictions: Sequence[Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        """The answer, where it begins and its chance among the best, and these; no answer is an empty one that begins nowhere."""
        spans, null = self._weighed(predictions)
        context = str(example["context"])
        best: list[tuple[float, str, int | None]] = [(span.score, context[span.begin : span.end], span.begin) for span in spans]
        if learned["unanswerable"] or not spans:
            best.append((null, "", None))
        best.sort(key=lambda one: -one[0])
        chances = np.exp([score - best[0][0] for score, _, _ in best])
        chances /= chances.sum()
        told = [
            {"answer": text, "answer_start": start, "score": round(chance, 6)}
            for (_, text, start), chance in zip(best, chances.tolist(), strict=True)
        ]
        is_none = not spans or learned["unanswerable"] and null - spans[0].score > self.null_threshold
        given = next(one for one in told if (one["answer_start"] is None) == is_none)
        return {**given, "best": told}

    def guess(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> list[Any] | None:
        """That there is no answer."""
        return [[0.0, []]] if learned["unanswerable"] else None

    def score(self, scored: Sequence[Scored], learned: Mapping[str, Any]) -> Score:
        found = []
        for one in scored:
            spans, null = self._weighed(one.predictions)
            best, context = spans[0] if spans else Span(0, 0, null), str(one.example["context"])
            found.append(answer_scores.Answered(texts_of(one.example, 0), context[best.begin : best.end], null - best.score, context))
        if all(one.truth for one in found) and not learned["unanswerable"]:
            return answer_scores.extracted(found)
        # What has learned of answers alone gives one always.
        return answer_scores.extracted_or_none(found, self.null_threshold if learned["unanswerable"] else float("inf"))

    def _weighed(self, predictions: Sequence[Any]) -> tuple[list[Span], float]:
        """The best spans of an example over its windows, and the score of no answer: its least, since one window with an answer is
        enough."""
        windows = ([Span(*span) for span in spans] for _, spans in predictions)
        return best_spans(windows, self.n_best), min(null for null, _ in predictions)


def shortened(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, longest: int) -> list[str]:
    """Texts, those of more tokens cut there."""

    def cut(text: str) -> str:
        # What is left may be written in other tokens, hence in more of them.
        while len(offsets := tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]) > longest:
            text = text[: min(offsets[longest - 1][1], len(text) - 1)]
        return text

    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [cut(text) if len(ids) > longest else text for text, ids in zip(texts, found, strict=True)]


def after_blanks(text: str) -> Ints:
    """Of every character, and of the end, the first from it on that is no blank."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    places = np.append(np.where(np.isin(codes, _BLANKS), len(codes), np.arange(len(codes))), len(codes))
    return np.minimum.accumulate(places[::-1])[::-1]


def tokens_of(answer: Span | None, begins: Ints, ends: Ints) -> tuple[int, int] | None:
    """The first and the last token of an answer, by the characters of each; None where they do not hold all of it."""
    if answer is None or not len(begins) or answer.begin < begins[0] or answer.end > ends[-1]:
        return None
    return int(np.searchsorted(ends, answer.begin, side="right")), int(np.searchsorted(begins, answer.end, side="left")) - 1
