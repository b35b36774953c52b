"""Which network: choices that build a transformers model, the packed attention, heads and losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.choices import Choice

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from trainer.checkpoint.pieces import Read

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

    def verify(self, objective: str, vocabulary: Vocabulary, sequence_length: int) -> None:
        """Raise ConfigError where this model cannot take the objective, the tokens or the length; before launch, reads no weights."""

    def build(self, objective: str, vocabulary: Vocabulary, sequence_length: int) -> PreTrainedModel:
        """The network with the head of an objective, fp32, its values as its constructor makes them.

        objective: `causal`, `masked`, `pretraining` (masked and next sentence) or `denoising` (encoder and decoder).
        """
        raise NotImplementedError

    def skeleton(self, objective: str, vocabulary: Vocabulary, sequence_length: int) -> PreTrainedModel:
        """The same network without values: its parameters on the meta device, tied as they will be, its buffers real."""
        from trainer.models.deferred import deferred

        return deferred(lambda: self.build(objective, vocabulary, sequence_length))

    def weights(self, module: nn.Module, seed: int) -> Read:
        """First values of a task's module around a skeleton, by the module's names; read tensor by tensor."""
        from trainer.models.deferred import First

        return First(module.model, seed)  # type: ignore[arg-type]
