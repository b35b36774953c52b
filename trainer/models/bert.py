"""BERT (Devlin et al. 2018) by its sizes, from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import ConfigError, choice, identity, require_positive, require_share
from trainer.models import NONE, Labels, Model, Vocabulary
from trainer.models.objectives import ON_EXAMPLES, with_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@choice
class BERT(Model):
    """BERT from scratch; the sizes are options."""

    name: str = "bert"
    layers: int = identity(12, help="transformer blocks")
    hidden: int = identity(768, help="width")
    heads: int = identity(12, help="attention heads")
    intermediate: int | None = identity(None, help="width of the feed-forward layer; default 4 × hidden")
    positions: int = identity(512, help="longest sequence")
    dropout: float = identity(0.0, help="everywhere; 0 keeps the curve the same at any number of devices")
    initializer_range: float = identity(0.02, help="standard deviation of the first weights; narrow models start better with more")

    objectives: ClassVar[tuple[str, ...]] = ("pretraining", "masked", *ON_EXAMPLES)
    marks: ClassVar[bool] = True

    def check(self) -> None:
        require_positive(self, "layers", "hidden", "heads", "positions", "initializer_range")
        require_positive(self, "intermediate", optional=True)
        require_share(self, "dropout")
        if self.hidden % self.heads:
            raise ConfigError(f"model.hidden: {self.hidden} is not a multiple of model.heads: {self.heads}")

    def sizes(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """What configurations of transformers call these options."""
        return {
            "vocab_size": vocabulary.padded,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate or 4 * self.hidden,
            "max_position_embeddings": self.positions,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
            "initializer_range": self.initializer_range,
            "pad_token_id": vocabulary.pad,
        }

    def build(self, objective: str, vocabulary: Vocabulary, sequence_length: int, labels: Labels = NONE) -> PreTrainedModel:
        from transformers import BertConfig

        return with_head(objective, BertConfig(**self.sizes(vocabulary)), labels)
