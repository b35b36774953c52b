"""Which network: choices that build a transformers model, the packed attention, heads and losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import Choice

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from trainer.checkpoint.pieces import Read
    from trainer.config import Config
    from trainer.data.corpus import Corpus

Labels = Mapping[str, Any]
NONE: Labels = {}

CHOICES = ("gpt2", "llama", "bert", "roberta", "modernbert", "t5", "pretrained")


@dataclass(frozen=True)
class Vocabulary:
    """What a model must know of the tokenizer. sentinels: how many of its ids stand for hidden spans."""

    size: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    sentinels: int = 0

    @property
    def padded(self) -> int:
        """Rows of the embedding: the size rounded up to a multiple of 64, which tensor cores want."""
        return -(-self.size // 64) * 64


class Model(Choice, group="model"):
    """A network by its sizes, or a pretrained one."""

    objectives: ClassVar[tuple[str, ...]] = ()
    # Whether a text is marked by [CLS] and [SEP], as encoders have it, or only ended.
    marks: ClassVar[bool] = False

    @property
    def pairs(self) -> bool:
        """Whether an encoder reads what a decoder goes on from."""
        return "denoising" in self.objectives

    def verify(self, objective: str, vocabulary: Vocabulary, sequence_length: int) -> None:
        """Raise ConfigError where this model cannot take the objective, the tokens or the length; before launch, reads no weights."""

    def build(self, objective: str, vocabulary: Vocabulary, sequence_length: int, labels: Labels = NONE) -> PreTrainedModel:
        """The network with the head of an objective, fp32, its values as its constructor makes them.

        objective: a key of `trainer.models.objectives.HEADS`. labels: settings of its configuration that describe the head's outputs.
        """
        raise NotImplementedError

    def skeleton(self, objective: str, vocabulary: Vocabulary, sequence_length: int, labels: Labels = NONE) -> PreTrainedModel:
        """The same network without values: its parameters on the meta device, tied as they will be, its buffers real."""
        from trainer.models.deferred import deferred

        return deferred(lambda: self.build(objective, vocabulary, sequence_length, labels))

    def weights(self, module: nn.Module, seed: int) -> Read:
        """First values of a task's module around a skeleton, by the module's names; read tensor by tensor."""
        from trainer.models.deferred import First

        return First(module.model, seed)  # type: ignore[arg-type]


def skeleton_of(config: Config, corpus: Corpus) -> PreTrainedModel:
    """The network of a run without values, with the head that its task needs."""
    return config.model.skeleton(config.objective, corpus.vocabulary, config.sequence_length, config.task.labels_of(corpus))
