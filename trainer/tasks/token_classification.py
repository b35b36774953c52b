"""A tag for every word of a sentence: named entities, parts of speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError, choice, identity, require_share
from trainer.tasks import BrokenExample, Field, scores
from trainer.tasks.labelled import Ints, Labelled, Row, Score, Scored, in_order, refuse_label

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# The tag of words that are in no entity.
OUTSIDE = "O"


@choice
class TokenClassification(Labelled):
    """A tag for every word: of its first token, as the model sees the whole sentence.

    A sentence longer than `sequence_length` is cut into several rows; every word is scored.
    """

    name: str = "token_classification"
    labels: list[str] | None = identity(None, help="all tags, in their order; default: those of the training examples")
    label_smoothing: float = identity(0.0, help="share of a target's weight that is spread over all tags")

    fields: ClassVar[Mapping[str, Field]] = {
        "tokens": Field(("tokens", "words", "form", "1")),
        "tags": Field(("tags", "ner_tags", "pos_tags", "labels", "upos", "last")),
    }
    predicted: ClassVar[tuple[str, ...]] = ("tags",)
    terms: ClassVar[dict[str, float]] = {"tags": 1.0}
    objective: ClassVar[str] = "token_classification"
    figures: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "accuracy", "f1_macro")
    # places: of the token that each word is tagged at; words: their numbers in the sentence.
    sections: ClassVar[tuple[str, ...]] = ("input_ids", "places", "target", "words")

    def check(self) -> None:
        require_share(self, "label_smoothing")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"task.labels: {self.labels}; each label once")

    def learn(self, examples: Iterator[dict[str, Any]]) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        for number, example in enumerate(examples):
            counts.update(tags_of(example, number))
        if not counts:
            raise ConfigError("data.columns.tags: no training example has a tag; give examples with words")
        return {"labels": list(self.labels) if self.labels else in_order(set(counts)), "commonest": counts.most_common(1)[0][0]}

    def encode(
        self,
        examples: Sequence[dict[str, Any]],
        first: int,
        tokenizer: PreTrainedTokenizerFast,
        learned: Mapping[str, Any],
        sequence_length: int,
    ) -> Iterator[Row]:
        numbered = {label: number for number, label in enumerate(learned["labels"])}
        texts = [" ".join(map(str, example["tokens"])) for example in examples]
        found = tokenizer(texts, truncation=True, max_length=sequence_length, return_overflowing_tokens=True, return_offsets_mapping=True)
        seen: dict[int, int] = {}
        for row, number in enumerate(found["overflow_to_sample_mapping"]):
            example = examples[number]
            tags = tags_of(example, first + number)
            unknown = next((tag for tag in tags if tag not in numbered), None)
            if unknown is not None:
                raise refuse_label(unknown, list(numbered), first + number, field="tags")
            # Blanks part the words; a token belongs to the word of its last character, since some begin with the blank before.
            ends = list(accumulate(len(str(word)) + 1 for word in example["tokens"]))
            last = np.array([end - 1 if end > start else -1 for start, end in found["offset_mapping"][row]])
            owners = np.where(last < 0, -1, np.searchsorted(ends, last, side="right"))
            known, firsts = np.unique(owners, return_index=True)
            places = firsts[known > seen.get(number, -1)]
            words = owners[places]
            if len(words):
                seen[number] = int(words[-1])
                target = [numbered[tags[word]] for word in words]
                yield Row(first + number, (found["input_ids"][row], places, target, words), {"tags": len(words)})

    def inputs(
        self, rows: Sequence[Mapping[str, Ints]], counted: NDArray[np.bool_], learned: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        starts = np.cumsum([0, *(len(row["input_ids"]) for row in rows)])
        kept = [number for number in range(len(rows)) if counted[number]]
        none = [np.zeros(0, np.int64)]
        index = np.concatenate([rows[number]["places"] + starts[number] for number in kept] or none)
        targets = np.concatenate([rows[number]["target"] for number in kept] or none)
        words = np.concatenate([rows[number]["words"] for number in kept] or none)
        sizes = np.array([len(rows[number]["places"]) for number in kept], np.int64)
        return {"tags_index": index, "tags_targets": targets, "tags_words": words, "tags_sizes": sizes}, {"tags": len(index)}

    def around(self, model: PreTrainedModel, learned: Mapping[str, Any]) -> nn.Module:
        from trainer.models.examples import TaggingModule

        return TaggingModule(model, self.label_smoothing)

    def predictions(self, outputs: Mapping[str, NDArray[Any]], tokenizer: PreTrainedTokenizerFast) -> Sequence[Any]:
        """Of each row the pairs (word, tag)."""
        borders = np.cumsum(outputs["sizes"].astype(np.int64))[:-1]
        pairs = np.stack([outputs["words"], outputs["predicted"]], axis=1).astype(np.int64)
        return [pair.tolist() for pair in np.split(pairs, borders)]

    def unanswered(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        return {"tags": [learned["labels"][0]] * len(example["tokens"])}

    def answer(self, example: Mapping[str, Any], predictions: Sequence[Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        found = {word: learned["labels"][tag] for row in predictions for word, tag in row}
        # A word of which the tokenizer leaves nothing is in no entity.
        missing = OUTSIDE if OUTSIDE in learned["labels"] else learned["commonest"]
        return {"tags": [found.get(word, missing) for word in range(len(example["tokens"]))]}

    def guess(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> list[Any]:
        commonest = learned["labels"].index(learned["commonest"])
        return [[(word, commonest) for word in range(len(example["tokens"]))]]

    def score(self, scored: Sequence[Scored], learned: Mapping[str, Any]) -> Score:
        truth = [tags_of(one.example, 0) for one in scored]
        predicted = [self.answer(one.example, one.predictions, learned)["tags"] for one in scored]
        return scores.tags(truth, predicted, learned["labels"])


def tags_of(example: Mapping[str, Any], number: int) -> list[str]:
    """The tags of an example's words. Raises ConfigError where there are more or fewer than words."""
    tags, tokens = example["tags"], example["tokens"]
    if not isinstance(tokens, list) or not isinstance(tags, list) or len(tags) != len(tokens):
        sizes = [len(each) if isinstance(each, list) else type(each).__name__ for each in (tokens, tags)]
        given = f"example {number + 1:,} has {sizes[0]} tokens and {sizes[1]} tags"
        raise BrokenExample(number, f"data.columns.tags: {given}; allowed: two lists of one length")
    return [str(tag) for tag in tags]
