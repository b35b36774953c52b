"""Which relation two entities of a sentence have: its text with marks around them, classified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainer.choices import ConfigError, choice, identity
from trainer.tasks import Field, scores
from trainer.tasks.classification import Classification, Problem, only
from trainer.tasks.entities import fitted, marked
from trainer.tasks.labelled import Row, Score, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What data sets call the label of two entities without a relation.
_NONE = ("no_relation", "Other", "NA", "none")


@choice
class Relation(Classification):
    """The relation of two entities, its head and its tail, of a sentence."""

    name: str = "relation"
    problem: Problem = identity(Problem.single_label, help="single_label: one relation of two entities")
    no_relation: str | None = identity(None, help=f"the label of none; default: {', '.join(_NONE)}, where the examples have one")
    last_included: bool = identity(True, help="whether head_end and tail_end are of the last token, as in TACRED, or of the one after it")
    marks: list[str] = identity(
        default_factory=lambda: ["@", "#", "*", "^"], help="written around the head, the tail, the type of the head and that of the tail"
    )

    fields: ClassVar[Mapping[str, Field]] = {
        # Of two relations in one sentence none is held out while the other is trained on.
        "tokens": Field(("tokens", "token", "words"), optional=True, together=True),
        "text": Field(("text", "sentence"), optional=True, together=True),
        "head": Field(("head", "h", "subj"), optional=True),
        "tail": Field(("tail", "t", "obj"), optional=True),
        "head_start": Field(("subj_start", "head_start"), optional=True),
        "head_end": Field(("subj_end", "head_end"), optional=True),
        "tail_start": Field(("obj_start", "tail_start"), optional=True),
        "tail_end": Field(("obj_end", "tail_end"), optional=True),
        "head_type": Field(("subj_type", "head_type", "h.type"), optional=True),
        "tail_type": Field(("obj_type", "tail_type", "t.type"), optional=True),
        "label": Field(("relation", "label")),
    }
    figures: ClassVar[tuple[str, ...]] = ("f1_micro", "precision_micro", "recall_micro", "accuracy", "f1_macro")

    def check(self) -> None:
        super().check()
        if self.problem is not Problem.single_label:
            raise ConfigError(f"task.problem: {self.problem.value}; allowed: single_label, the one relation of two entities")
        if len(set(self.marks)) != 4 or not all(mark and mark == mark.strip() for mark in self.marks):
            raise ConfigError(f"task.marks: {self.marks}; allowed: four different ones, such as '[@,#,*,^]'")

    def learn(self, examples: Iterator[dict[str, Any]]) -> dict[str, Any]:
        learned = super().learn(examples)
        labels: list[str] = learned["labels"]
        if self.no_relation is not None and self.no_relation not in labels:
            raise ConfigError(f"task.no_relation: {self.no_relation!r} is none of the labels: {', '.join(labels[:20])}")
        return learned | {"no_relation": self.no_relation or next((label for label in _NONE if label in labels), None)}

    def encode(
        self,
        examples: Sequence[dict[str, Any]],
        first: int,
        tokenizer: PreTrainedTokenizerFast,
        learned: Mapping[str, Any],
        sequence_length: int,
    ) -> Iterator[Row]:
        self._require_written(tokenizer)
        sentences = [marked(example, first + number, self.marks, self.last_included) for number, example in enumerate(examples)]
        texts = fitted(sentences, tokenizer, sequence_length - tokenizer.num_special_tokens_to_add())
        classified = [{"text": text, "label": example["label"]} for text, example in zip(texts, examples, strict=True)]
        yield from super().encode(classified, first, tokenizer, learned, sequence_length)

    def _require_written(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raise ConfigError where the model could not tell the marks apart."""
        for mark in self.marks:
            ids = tokenizer(mark, add_special_tokens=False)["input_ids"]
            if not ids or tokenizer.unk_token_id in ids:
                raise ConfigError(
                    f"task.marks: the tokenizer has no token for {mark!r}, and a head could not be told from a tail; give marks that it "
                    "knows, or a tokenizer that writes everything: tokenizer.kind=bpe"
                )

    def score(self, scored: Sequence[Scored], learned: Mapping[str, Any]) -> Score:
        labels: list[str] = learned["labels"]
        truth = np.array([labels.index(only(one.example["label"])) for one in scored])
        predicted = np.array([int(np.argmax(one.predictions[0])) for one in scored])
        counted = [number for number, label in enumerate(labels) if label != learned["no_relation"]]
        found = super().score(scored, learned)
        return Score(scores.micro(truth, predicted, counted) | found.figures, found.tables)
