"""Classification of texts or pairs of texts: one label, several, or a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError, choice, identity, require_share
from trainer.tasks import BrokenExample, Field, scores
from trainer.tasks.labelled import Ints, Labelled, Row, Score, Scored, in_order, numbers, refuse_label, token_types

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from trainer.data.corpus import Corpus


class Problem(str, Enum):
    """What a label is; `auto` looks at the training examples: lists are several labels, numbers with a fraction are values."""

    auto = "auto"
    single_label = "single_label"
    multi_label = "multi_label"
    regression = "regression"


class Weights(str, Enum):
    """How much an example of a label counts in the loss; `balanced`: as much as those of any other label together."""

    none = "none"
    balanced = "balanced"


@choice
class Classification(Labelled):
    """A label, several, or a number for each text or pair of texts."""

    name: str = "classification"
    problem: Problem = identity(Problem.auto, help="auto | single_label | multi_label | regression")
    labels: list[str] | None = identity(None, help="all labels, in their order; default: those of the training examples")
    class_weights: Weights = identity(Weights.none, help="none | balanced: examples of rare labels count more")
    label_smoothing: float = identity(0.0, help="share of a target's weight that is spread over all labels")

    fields: ClassVar[Mapping[str, Field]] = {
        "text": Field(("text", "sentence", "sentence1", "premise", "question1")),
        "pair": Field(("pair", "sentence2", "hypothesis", "question2"), optional=True),
        # Of several labels an example may have none.
        "label": Field(("label", "labels"), none=True),
    }
    predicted: ClassVar[tuple[str, ...]] = ("label",)
    terms: ClassVar[dict[str, float]] = {"classification": 1.0}
    objective: ClassVar[str] = "sequence_classification"
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "f1_micro", "f1_macro", "mcc", "pearson", "spearman", "mse")
    sections: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids", "target")

    def check(self) -> None:
        require_share(self, "label_smoothing")
        single = self.problem in (Problem.auto, Problem.single_label)
        for key, value in (("class_weights", self.class_weights is not Weights.none), ("label_smoothing", bool(self.label_smoothing))):
            if value and not single:
                raise ConfigError(
                    f"task.{key}: {getattr(self, key)} with task.problem={self.problem.value}; allowed: task.problem=single_label"
                )
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"task.labels: {self.labels}; each label once")

    def learn(self, examples: Iterator[dict[str, Any]]) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        lists = False
        for example in examples:
            lists |= isinstance(example["label"], list)
            counts.update(several(example["label"]))
        problem = self.problem
        if problem is Problem.auto:
            values = None if lists or self.labels else numbers(list(counts))
            is_value = values is not None and not all(value.is_integer() for value in values)
            problem = Problem.multi_label if lists else Problem.regression if is_value else Problem.single_label
        ignored = [key for key in ("class_weights", "label_smoothing") if getattr(self, key) not in (Weights.none, 0.0)]
        if ignored and problem is not Problem.single_label:
            raise ConfigError(f"task.{ignored[0]}: of one label an example alone, and these are {problem.value}; leave it out")
        if problem is Problem.regression:
            mean = sum(float(value) * count for value, count in counts.items() if numbers([value])) / max(1, counts.total())
            return {"problem": problem.value, "labels": ["value"], "counts": [], "mean": mean}
        labels = list(self.labels) if self.labels else in_order(set(counts))
        if not labels:
            raise ConfigError("data.columns.label: no training example has a label; give labels, or name them: 'task.labels=[…]'")
        if len(labels) < 2 and problem is Problem.single_label:
            raise ConfigError(f"data.columns.label: all training examples have the label {labels[0]!r}; there is nothing to tell apart")
        return {"problem": problem.value, "labels": labels, "counts": [counts[label] for label in labels]}

    def labels_of(self, corpus: Corpus) -> dict[str, Any]:
        return super().labels_of(corpus) | {"problem_type": problem_type(corpus.learned)}

    def encode(
        self,
        examples: Sequence[dict[str, Any]],
        first: int,
        tokenizer: PreTrainedTokenizerFast,
        learned: Mapping[str, Any],
        sequence_length: int,
    ) -> Iterator[Row]:
        texts, pairs = [example["text"] for example in examples], [example.get("pair") for example in examples]
        given: Any = texts if not any(pairs) else [(text, pair or "") for text, pair in zip(texts, pairs, strict=True)]
        found = tokenizer(given, truncation="longest_first", max_length=sequence_length, return_token_type_ids=True)
        numbered = {label: number for number, label in enumerate(learned["labels"])}
        for number, example in enumerate(examples):
            ids, types = found["input_ids"][number], found["token_type_ids"][number]
            if ids:
                target = self._target(example["label"], learned, numbered, first + number)
                yield Row(first + number, (ids, types if any(types) else (), target), {"classification": 1})

    def _target(self, label: Any, learned: Mapping[str, Any], numbered: dict[str, int], example: int) -> Ints:
        if learned["problem"] == Problem.regression.value:
            value = numbers([written(label)])
            if value is None or not np.isfinite(value[0]):
                raise BrokenExample(
                    example, f"data.columns.label: {label!r} of example {example + 1:,} is no number; task.problem=regression needs one"
                )
            return np.array(value, np.float32).view(np.int32).astype(np.int64)
        given = several(label)
        unknown = next((one for one in given if one not in numbered), None)
        if unknown is not None:
            raise refuse_label(unknown, list(numbered), example)
        if learned["problem"] == Problem.single_label.value and len(given) != 1:
            raise BrokenExample(
                example, f"data.columns.label: {label!r} of example {example + 1:,}; allowed: one label, or task.problem=multi_label"
            )
        return np.array([numbered[one] for one in given], np.int64)

    def inputs(
        self, rows: Sequence[Mapping[str, Ints]], counted: NDArray[np.bool_], learned: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        index = np.flatnonzero(counted)
        found = {"classification_index": index, **token_types(rows)}
        found["classification_targets"] = targets_of([row["target"] for row, scored in zip(rows, counted, strict=True) if scored], learned)
        return found, {"classification": len(index)}

    def around(self, model: PreTrainedModel, learned: Mapping[str, Any]) -> nn.Module:
        from trainer.models.examples import ClassificationModule

        weights = None
        if self.class_weights is Weights.balanced and learned["problem"] == Problem.single_label.value:
            counts = learned["counts"]
            # Of a label without examples nothing is weighed.
            weights = [sum(counts) / (len(counts) * max(1, count)) for count in counts]
        return ClassificationModule(model, problem_type(learned), weights, self.label_smoothing)

    def predictions(self, outputs: Mapping[str, NDArray[Any]], tokenizer: PreTrainedTokenizerFast) -> Sequence[Any]:
        found: list[Any] = outputs["logits"].tolist()
        return found

    def unanswered(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        return {"label": 0.0 if learned["problem"] == Problem.regression.value else learned["labels"][0]}

    def answer(self, example: Mapping[str, Any], predictions: Sequence[Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        logits, labels = np.array(predictions[0]), learned["labels"]
        if learned["problem"] == Problem.regression.value:
            return {"label": float(logits[0])}
        if learned["problem"] == Problem.multi_label.value:
            chances = 1 / (1 + np.exp(-logits))
            found: Any = [label for label, chance in zip(labels, chances, strict=True) if chance > 0.5]
        else:
            chances = np.exp(logits - logits.max())
            chances /= chances.sum()
            found = labels[int(logits.argmax())]
        return {"label": found, "scores": {label: round(float(chance), 6) for label, chance in zip(labels, chances, strict=True)}}

    def classes(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> Sequence[str]:
        if self.class_weights is Weights.balanced:
            raise ConfigError("task.class_weights: balanced with data.shots; as many examples of every label are drawn, so leave it out")
        return ("",) if learned["problem"] == Problem.regression.value else several(example["label"])

    def guess(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> list[Any] | None:
        """The commonest label, or the mean of values."""
        if learned["problem"] == Problem.regression.value:
            return [[learned["mean"]]]
        counts = learned["counts"]
        return [np.eye(len(counts))[np.argmax(counts)].tolist()] if learned["problem"] == Problem.single_label.value else None

    def score(self, scored: Sequence[Scored], learned: Mapping[str, Any]) -> Score:
        logits = np.array([one.predictions[0] for one in scored])
        labels: list[str] = learned["labels"]
        if learned["problem"] == Problem.regression.value:
            return scores.regression(np.array([float(one.example["label"]) for one in scored]), logits[:, 0])
        numbered = {label: number for number, label in enumerate(labels)}
        if learned["problem"] == Problem.single_label.value:
            truth = np.array([numbered[only(one.example["label"])] for one in scored])
            return scores.single_label(truth, logits.argmax(axis=-1), labels)
        found = np.zeros(logits.shape, np.int64)
        for number, one in enumerate(scored):
            found[number, [numbered[label] for label in several(one.example["label"])]] = 1
        return scores.multi_label(found, (logits > 0).astype(np.int64), labels)


def written(label: Any) -> str:
    """A label as text: 1, 1.0 and "1" are the same one. Raises ConfigError for what is none."""
    if isinstance(label, (dict, list)) or label is None:
        raise ConfigError(f"data.columns.label: {label!r}; allowed: text, a number, true or false, or a list of them")
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).lower() if isinstance(label, bool) else str(label)


def several(label: Any) -> list[str]:
    """The labels of an example."""
    return [written(one) for one in (label if isinstance(label, list) else [label])]


def only(label: Any) -> str:
    """The label of an example that has one."""
    return several(label)[0]


def problem_type(learned: Mapping[str, Any]) -> str:
    """As transformers names it."""
    problem: str = learned["problem"]
    return problem if problem == Problem.regression.value else f"{problem}_classification"


def targets_of(targets: Sequence[Ints], learned: Mapping[str, Any]) -> NDArray[Any]:
    """Targets of some examples for the loss: `[examples]` labels; `[examples, labels]` zeros and ones; or `[examples, 1]` values."""
    if learned["problem"] == Problem.single_label.value:
        return np.concatenate(targets) if targets else np.zeros(0, np.int64)
    if learned["problem"] == Problem.regression.value:
        values = np.concatenate(targets) if targets else np.zeros(0, np.int64)
        return values.astype(np.int32).view(np.float32)[:, None]
    found = np.zeros((len(targets), len(learned["labels"])), np.float32)
    for number, target in enumerate(targets):
        found[number, target] = 1.0
    return found
