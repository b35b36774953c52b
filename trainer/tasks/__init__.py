"""What is learned: one file an objective. A task knows no device and no number of ranks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import Choice, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainer.config import Config
    from trainer.data.corpus import Corpus, Split
    from trainer.data.rows import RowWriter
    from trainer.models import Model


@dataclass(frozen=True)
class Pick:
    """One sample of a step: a row in one pass over the table. counted=False: a filler, whose targets are left out."""

    row: int
    epoch: int
    counted: bool = True


@dataclass(frozen=True)
class Field:
    """What a task reads of an example. columns: names that it usually goes by, the likeliest first. optional: examples may lack it.
    together: examples that agree in it (of several such fields, in the first that they have) are on the same side of a split that we make.
    none: a list of nothing is a value of it."""

    columns: tuple[str, ...]
    optional: bool = False
    together: bool = False
    none: bool = False


class BrokenExample(ConfigError):
    """An example that a task can make nothing of. number: of it, from 0, among those that the task was given; the words have it as
    `example 1`."""

    def __init__(self, number: int, said: str):
        super().__init__(said)
        self.number = number

    def at(self, place: str, number: int | None = None) -> BrokenExample:
        """The same with the place where it stands, if that is known. number: among all examples, where some were given at a time."""
        number = self.number if number is None else number
        named = f"example {number + 1:,}" + (f" ({place})" if place else "")
        return BrokenExample(number, re.sub(rf"\bexample {self.number + 1:,}(?![\d,]*\d)", lambda _: named, str(self), count=1))


@dataclass
class Batch:
    """A micro-batch, packed without padding.

    inputs: tensors [1, tokens] and whatever else the module's forward reads, by name.
    lengths: tokens of each packed document, in order; known on the host.
    targets: term → number of targets, known on the host.
    decoded: tokens that a decoder writes for each document, of encoder–decoder models.
    prompts: tokens of each document that a decoder alone is to go on from, where it writes by itself.
    rows: those that are scored, in order; the loader tells them.
    """

    inputs: dict[str, torch.Tensor]
    lengths: tuple[int, ...]
    targets: dict[str, int]
    tokens: int = 0
    decoded: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on a device, copied without waiting where memory is pinned."""
        return replace(self, inputs={name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()})

    def pinned(self) -> Batch:
        """The same batch in page-locked memory."""
        return replace(self, inputs={name: tensor.pin_memory() for name, tensor in self.inputs.items()})


class Task(Choice, group="task"):
    """An objective: how rows are made of documents, batches of rows, losses of batches."""

    # term → weight in the objective.
    terms: ClassVar[dict[str, float]] = {}
    # The head that this objective needs: a key of a model's `objectives`.
    objective: ClassVar[str] = ""
    # Whether documents are kept as sentences (with their boundaries) or as one run of tokens after a separator.
    sentences: ClassVar[bool] = False
    tokenizer_kind: ClassVar[str] = "bpe"
    # Ids that stand for hidden spans; a tokenizer that has none is given so many.
    sentinels: ClassVar[int] = 0
    # The held-out figures that matter, in order, for the end of a run.
    figures: ClassVar[tuple[str, ...]] = ()
    # What is read of an example, by name; none: the task learns from text (labelled.py has those that learn from examples).
    fields: ClassVar[Mapping[str, Field]] = {}
    # Whether the loss of a row depends on all others of the global batch, so that a rank takes all of its own at once.
    joint: ClassVar[bool] = False
    # Rows of the throwaway backward before step 1: so few as give a gradient.
    rehearsed: ClassVar[int] = 1
    # Those of the fields that are to be predicted.
    predicted: ClassVar[tuple[str, ...]] = ()

    @property
    def weights(self) -> dict[str, float]:
        """term → weight in the training objective: those of `terms`, and what this task's options add."""
        return dict(self.terms)

    def counted(self, targets: dict[str, int]) -> dict[str, int]:
        """term → number of targets, for every term of `weights`. targets: those of `terms`, as the rows have them."""
        return targets

    def objective_on(self, model: Model) -> str:
        """The head that this objective needs of a model."""
        return self.objective

    def labels_of(self, corpus: Corpus) -> dict[str, Any]:
        """Settings of the model's configuration that describe the outputs of its head."""
        return {}

    def compatible(self, model: Model) -> None:
        """Raise ConfigError where the model has no head for this objective."""
        from trainer.choices import groups

        objective = self.objective_on(model)
        if model.objectives and objective not in model.objectives:
            able = [name for name, other in sorted(groups()["model"].items()) if objective in other.objectives]  # type: ignore[attr-defined]
            raise ConfigError(
                f"task={self.name} needs a model with a {objective} head, but model={model.name} has {', '.join(model.objectives)}; "
                f"models with one: {', '.join(able) or 'none'}, their sizes, and model=pretrained"
            )

    def writing(self, model: Model) -> tuple[str, bool]:
        """The kind of a tokenizer trained for this task, and whether it has [CLS], [SEP] and [MASK] in place of an end of text."""
        return self.tokenizer_kind, self.sentences

    def learn(self, examples: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """What must be known of all training examples before any of them becomes a row, as plain values: kept as `corpus.learned`,
        beside `objective`, the head that the model has."""
        return {}

    def finish_folder(self, folder: Path) -> None:
        """Add to the folder of a trained model what its tokenizer, and other programs, must know of the task."""

    def rows(self, corpus: Corpus, split: str, sequence_length: int, seed: int, writer: RowWriter) -> None:
        """Write the static row table of one split, once, at prepare."""
        raise NotImplementedError

    def collate(self, split: Split, picks: Sequence[Pick]) -> Batch:
        """A micro-batch from rows of the table; a pure function of its arguments."""
        raise NotImplementedError

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        """What the strategies wrap: forward(batch) → {term: sum of losses}; the Hugging Face model at `.model`.

        Its parameters are on the meta device, for the strategy to fill with what it holds of them.
        In evaluation mode the forward may return further sums, which `metrics` reads."""
        raise NotImplementedError

    def metrics(self, sums: dict[str, float], targets: dict[str, int], corpus: Corpus) -> dict[str, Any]:
        """Figures of an evaluation, beside its losses, from sums and target counts over all its samples."""
        return {}

    def baselines(self, corpus: Corpus) -> dict[str, float]:
        """Figures to beat, counted on the data once at prepare and kept beside it."""
        return {}
