"""What tasks on examples with labels share: a row is one example, cut into tokens once; a batch holds whole examples, unpadded.

A row's piece is (start, example, length of each section …): the sections lie one after the other in the split's values from `start` on,
the token ids first; `example` is the number of the record that the row was made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.data.sources import TRAIN
from trainer.tasks import Batch, BrokenExample, Pick, Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from trainer.config import Config
    from trainer.data.corpus import Corpus, Split
    from trainer.data.rows import RowWriter
    from trainer.models import Model

Ints = NDArray[np.int64]

# Examples that are cut into tokens together: the tokenizer's threads share them.
_AT_ONCE = 1024


@dataclass(frozen=True)
class Row:
    """A row to be. example: which record of the split it is made of. sections: integers, the token ids first. targets: by term."""

    example: int
    sections: Sequence[Sequence[int] | NDArray[np.integer]]
    targets: Mapping[str, int]


@dataclass(frozen=True)
class Scored:
    """An example that was evaluated: its fields, and what was predicted of each of its rows, in order."""

    example: dict[str, Any]
    predictions: list[Any]


@dataclass(frozen=True)
class Score:
    """figures: one number each. tables: what has more, such as figures by label, as plain values."""

    figures: dict[str, float]
    tables: dict[str, Any] = field(default_factory=dict)


@dataclass
class Labelled(Task):
    """An objective on examples. Of a row: sections in, tensors out; of all predictions: figures."""

    # Names of a row's sections, `input_ids` first; which of them are tokens that a model reads or writes.
    sections: ClassVar[tuple[str, ...]] = ("input_ids",)
    tokens: ClassVar[tuple[str, ...]] = ("input_ids",)

    def labels_of(self, corpus: Corpus) -> dict[str, Any]:
        labels = corpus.learned["labels"]
        numbered = {label: number for number, label in enumerate(labels)}
        return {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": numbered}

    def writing(self, model: Model) -> tuple[str, bool]:
        return ("wordpiece", True) if model.marks else ("bpe", False)

    def encode(
        self,
        examples: Sequence[dict[str, Any]],
        first: int,
        tokenizer: PreTrainedTokenizerFast,
        learned: Mapping[str, Any],
        sequence_length: int,
    ) -> Iterator[Row]:
        """The rows of some examples, the number of the first of which is `first`. Raises ConfigError (B05) naming the example."""
        raise NotImplementedError

    def around(self, model: PreTrainedModel, learned: Mapping[str, Any]) -> nn.Module:
        """What is trained: forward(batch) → {term: sum of losses}, and in evaluation mode outputs of the rows that are scored."""
        raise NotImplementedError

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        from trainer.models import skeleton_of

        return self.around(skeleton_of(config, corpus), corpus.learned)

    def inputs(
        self, rows: Sequence[Mapping[str, Ints]], counted: NDArray[np.bool_], learned: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        """Arrays for the module of a micro-batch beside the packed ids, and the number of targets of each term.

        rows: the sections of each by name. counted: which of them are scored; the others fill up. learned: what `learn` found.
        """
        raise NotImplementedError

    def predictions(self, outputs: Mapping[str, NDArray[Any]], tokenizer: PreTrainedTokenizerFast) -> Sequence[Any]:
        """What the module says of each row that is scored, as plain values. outputs: those of its results in evaluation mode that are no
        sums."""
        raise NotImplementedError

    def unanswered(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        """Values for the fields that are to be predicted, of an example that has none: any that can be encoded."""
        raise NotImplementedError

    def answer(self, example: Mapping[str, Any], predictions: Sequence[Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        """What is predicted of an example, by field, as people read it. predictions: of its rows, in order."""
        raise NotImplementedError

    def score(self, scored: Sequence[Scored], learned: Mapping[str, Any]) -> Score:
        """Figures of an evaluation, over all its examples."""
        raise NotImplementedError

    def classes(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> Sequence[str]:
        """The classes that an example counts for, where a few of each are drawn; where there are no classes, all are one."""
        return ("",)

    def guess(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> list[Any] | None:
        """Predictions for the rows of an example by whoever knows no more than what is commonest; None: there is no such guess."""
        return None

    def baselines(self, corpus: Corpus) -> dict[str, float]:
        """`baseline_…`: the figures of guesses alone, over the held-out examples."""
        from trainer.data.baselines import guessed

        return guessed(self, corpus)

    def answering(self) -> Labelled:
        """The same task where predictions are wanted and nothing else."""
        return self

    def rows(self, corpus: Corpus, split: str, sequence_length: int, seed: int, writer: RowWriter) -> None:
        from trainer.data.tokenizer_files import load_tokenizer

        writer.offsets = (0,)
        tokenizer = load_tokenizer(corpus.tokenizer_path)
        for first, examples in taken(corpus, split):
            rows = list(self.encode(examples, first, tokenizer, corpus.learned, sequence_length))
            writer.left_out += len(examples) - len({row.example for row in rows})
            self._write(rows, writer)

    def _write(self, rows: Sequence[Row], writer: RowWriter) -> None:
        pieces, start = np.empty((len(rows), 2 + len(self.sections)), np.int64), writer.values
        for number, row in enumerate(rows):
            lengths = [len(section) for section in row.sections]
            pieces[number] = (start, row.example, *lengths)
            start += sum(lengths)
        if not rows:
            return
        writer.append_values(np.concatenate([np.asarray(section, np.int64) for row in rows for section in row.sections]))
        targets = {term: np.array([row.targets[term] for row in rows]) for term in self.terms}
        sizes = pieces[:, [2 + self.sections.index(name) for name in self.tokens]].sum(1)
        writer.append(pieces, np.ones(len(rows), np.int64), sizes, targets)

    def collate(self, split: Split, picks: Sequence[Pick]) -> Batch:
        return self.batch([self.row(split, pick.row) for pick in picks], np.array([pick.counted for pick in picks]), split.learned)

    def batch(self, rows: Sequence[Mapping[str, Ints]], counted: NDArray[np.bool_], learned: Mapping[str, Any]) -> Batch:
        """Rows one after the other. counted: which of them are scored."""
        import torch

        lengths = [length for row in rows for length in self.lengths(row)]
        arrays: dict[str, NDArray[Any]] = {
            "input_ids": np.concatenate([row["input_ids"] for row in rows])[None],
            "position_ids": np.concatenate([np.arange(length) for length in lengths])[None],
        }
        more, targets = self.inputs(rows, counted, learned)
        tensors = {name: torch.from_numpy(values) for name, values in (arrays | more).items()}
        tokens = sum(len(row["input_ids"]) for row, scored in zip(rows, counted, strict=True) if scored)
        return Batch(tensors, tuple(lengths), targets, tokens=tokens)

    def lengths(self, row: Mapping[str, Ints]) -> list[int]:
        """Tokens of each text of a row that is read by itself."""
        return [len(row["input_ids"])]

    def row(self, split: Split, number: int) -> dict[str, Ints]:
        """The sections of a row by name."""
        ((start, _, *lengths),) = split.rows.pieces(number).tolist()
        values = split.tokens.read(start, sum(lengths))
        return dict(zip(self.sections, np.split(values, np.cumsum(lengths)[:-1]), strict=True))


def taken(corpus: Corpus, split: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The examples of a split that become rows, some at a time, and the number of the first of them."""
    records = corpus.records(split)
    if split == TRAIN and corpus.drawn is not None:
        yield from ((number, [records[number]]) for number in corpus.drawn)
        return
    each, first = iter(records), 0
    while examples := list(islice(each, _AT_ONCE)):
        yield first, examples
        first += len(examples)


def token_types(rows: Sequence[Mapping[str, Ints]]) -> dict[str, NDArray[Any]]:
    """Which of two texts each token is of, `token_type_ids` `[1, tokens]`; nothing where no row has two, of which it is kept."""
    if not any(len(row["token_type_ids"]) for row in rows):
        return {}
    types = [row["token_type_ids"] if len(row["token_type_ids"]) else np.zeros_like(row["input_ids"]) for row in rows]
    return {"token_type_ids": np.concatenate(types)[None]}


def numbers(values: Sequence[str]) -> list[float] | None:
    """Values as numbers; None where one is none."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def in_order(labels: set[str]) -> list[str]:
    """Labels as people order them: numbers by size, all else by letters."""
    ordered = sorted(labels)
    found = numbers(ordered)
    return ordered if found is None else [label for _, label in sorted(zip(found, ordered, strict=True))]


def refuse_label(label: str, known: Sequence[str], example: int, field: str = "label") -> BrokenExample:
    """The error (B05) for a label that is none of those known."""
    shown = ", ".join(known[:20]) + (" …" if len(known) > 20 else "")
    return BrokenExample(
        example,
        f"data.columns.{field}: {label!r} of example {example + 1:,} is none of the {len(known)} labels: {shown}; mend the example, "
        "or name all labels: 'task.labels=[…]'",
    )
