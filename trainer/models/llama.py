"""Llama (Touvron et al. 2023) by its sizes, from scratch: rotary positions, RMSNorm, SwiGLU, grouped-query attention, no biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.choices import ConfigError, choice, identity, require_positive
from trainer.models import NONE, Labels, Model, Vocabulary
from trainer.models.objectives import ON_EXAMPLES, with_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@choice
class Llama(Model):
    """Llama from scratch; the sizes are options."""

    name: str = "llama"
    layers: int = identity(12, help="transformer blocks")
    hidden: int = identity(768, help="width")
    heads: int = identity(12, help="attention heads")
    kv_heads: int | None = identity(None, help="heads of keys and values, shared by groups of attention heads; default: heads")
    intermediate: int | None = identity(None, help="width of the feed-forward layer; default 8/3 × hidden, up to a multiple of 256")
    positions: int = identity(2048, help="longest sequence; no parameter depends on it")
    rope_theta: float = identity(10_000.0, help="base of the rotary frequencies")
    tie_embeddings: bool = identity(True, help="one matrix for the embedding and the vocabulary head")
    initializer_range: float = identity(0.02, help="standard deviation of the first weights")

    objectives: ClassVar[tuple[str, ...]] = ("causal", *ON_EXAMPLES)

    def check(self) -> None:
        require_positive(self, "layers", "hidden", "heads", "positions", "rope_theta", "initializer_range")
        require_positive(self, "kv_heads", "intermediate", optional=True)
        if self.hidden % self.heads:
            raise ConfigError(f"model.hidden: {self.hidden} is not a multiple of model.heads: {self.heads}")
        if self.hidden // self.heads % 2:
            raise ConfigError(
                f"model.heads: {self.heads} gives heads of {self.hidden // self.heads} numbers; rotary positions turn pairs, "
                "so model.hidden / model.heads must be even"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ConfigError(f"model.heads: {self.heads} is not a multiple of model.kv_heads: {self.kv_heads}")

    def build(self, objective: str, vocabulary: Vocabulary, sequence_length: int, labels: Labels = NONE) -> PreTrainedModel:
        from transformers import LlamaConfig

        return with_head(
            objective,
            LlamaConfig(
                vocab_size=vocabulary.padded,
                hidden_size=self.hidden,
                intermediate_size=self.intermediate or feed_forward(self.hidden),
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads or self.heads,
                max_position_embeddings=self.positions,
                rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
                tie_word_embeddings=self.tie_embeddings,
                initializer_range=self.initializer_range,
                # Llama's own defaults are ids of another vocabulary.
                bos_token_id=vocabulary.bos,
                eos_token_id=vocabulary.eos,
                pad_token_id=vocabulary.pad,
            ),
            labels,
        )


def feed_forward(hidden: int, multiple: int = 256) -> int:
    """Llama's rule: three matrices of 8/3 × hidden have the parameters of two of 4 × hidden; rounded up to what kernels like."""
    return -(-(8 * hidden) // (3 * multiple)) * multiple
