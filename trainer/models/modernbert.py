"""ModernBERT (Warner et al. 2024) by its sizes, from scratch: rotary positions, gated feed-forward layers without biases, and layers
that see a window of neighbours between layers that see all."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.choices import ConfigError, choice, identity, require_positive
from trainer.models import NONE, Labels, Model, Vocabulary
from trainer.models.objectives import ON_EXAMPLES, with_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@choice
class ModernBERT(Model):
    """ModernBERT from scratch; the sizes are options."""

    name: str = "modernbert"
    layers: int = identity(22, help="transformer blocks")
    hidden: int = identity(768, help="width")
    heads: int = identity(12, help="attention heads")
    intermediate: int | None = identity(None, help="width of the feed-forward layer; default 3/2 × hidden")
    positions: int = identity(8192, help="longest sequence; no parameter depends on it")
    window: int = identity(128, help="tokens that a local layer sees, half of them on each side")
    global_every: int = identity(3, help="one layer in so many sees all tokens, the first one among them")
    global_theta: float = identity(160_000.0, help="base of the rotary frequencies of layers that see all")
    local_theta: float = identity(10_000.0, help="base of the rotary frequencies of local layers")
    initializer_range: float = identity(0.02, help="standard deviation of the first weights; narrow models start better with more")

    objectives: ClassVar[tuple[str, ...]] = ("masked", *ON_EXAMPLES)
    marks: ClassVar[bool] = True

    def check(self) -> None:
        require_positive(self, "layers", "hidden", "heads", "positions", "global_every", "global_theta", "local_theta", "initializer_range")
        require_positive(self, "intermediate", optional=True)
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise ConfigError(
                f"model.hidden: {self.hidden} is not an even multiple of model.heads: {self.heads}; rotary positions turn pairs of numbers"
            )
        if self.window < 2 or self.window % 2:
            raise ConfigError(f"model.window: {self.window}; allowed: even numbers from 2, half on each side")

    def build(self, objective: str, vocabulary: Vocabulary, sequence_length: int, labels: Labels = NONE) -> PreTrainedModel:
        from transformers import ModernBertConfig

        return with_head(
            objective,
            ModernBertConfig(
                vocab_size=vocabulary.padded,
                hidden_size=self.hidden,
                intermediate_size=self.intermediate or 3 * self.hidden // 2,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                max_position_embeddings=self.positions,
                local_attention=self.window,
                layer_types=["sliding_attention" if layer % self.global_every else "full_attention" for layer in range(self.layers)],
                rope_parameters={
                    "full_attention": {"rope_type": "default", "rope_theta": self.global_theta},
                    "sliding_attention": {"rope_type": "default", "rope_theta": self.local_theta},
                },
                initializer_range=self.initializer_range,
                # Its own defaults are ids of another vocabulary.
                bos_token_id=vocabulary.bos,
                eos_token_id=vocabulary.eos,
                cls_token_id=vocabulary.bos,
                sep_token_id=vocabulary.eos,
                pad_token_id=vocabulary.pad,
            ),
            labels,
        )
