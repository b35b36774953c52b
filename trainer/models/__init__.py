"""Which network: choices that build a transformers model, the packed attention, heads and losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.choices import Choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
        """The model with the head of an objective, fp32, on the CPU, from the default generator.

        objective: `causal`, `masked`, `pretraining` (masked and next sentence) or `denoising` (encoder and decoder).
        """
        raise NotImplementedError

    def skeleton(self, objective: str, vocabulary: Vocabulary, sequence_length: int) -> PreTrainedModel:
        """The same model without values, on the meta device: names and shapes."""
        import torch

        with torch.device("meta"):
            return self.build(objective, vocabulary, sequence_length)
