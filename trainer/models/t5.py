"""T5 (Raffel et al. 2020) by its sizes, from scratch: an encoder and a decoder with learned biases by distance instead of positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.choices import choice, identity, require_positive, require_share
from trainer.models import NONE, Labels, Model, Vocabulary
from trainer.models.objectives import ON_EXAMPLES, with_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@choice
class T5(Model):
    """T5 from scratch; the sizes are options."""

    name: str = "t5"
    layers: int = identity(6, help="transformer blocks of the encoder")
    decoder_layers: int | None = identity(None, help="transformer blocks of the decoder; default: layers")
    hidden: int = identity(512, help="width")
    heads: int = identity(8, help="attention heads")
    head_size: int = identity(64, help="width of a head")
    intermediate: int | None = identity(None, help="width of the feed-forward layer; default 4 × hidden")
    dropout: float = identity(0.0, help="everywhere; 0 keeps the curve the same at any number of devices")

    objectives: ClassVar[tuple[str, ...]] = ("denoising", *ON_EXAMPLES)

    def check(self) -> None:
        require_positive(self, "layers", "hidden", "heads", "head_size")
        require_positive(self, "decoder_layers", "intermediate", optional=True)
        require_share(self, "dropout")

    def build(self, objective: str, vocabulary: Vocabulary, sequence_length: int, labels: Labels = NONE) -> PreTrainedModel:
        from transformers import T5Config

        return with_head(
            objective,
            T5Config(
                vocab_size=vocabulary.padded,
                d_model=self.hidden,
                d_kv=self.head_size,
                d_ff=self.intermediate or 4 * self.hidden,
                num_layers=self.layers,
                num_decoder_layers=self.decoder_layers or self.layers,
                num_heads=self.heads,
                dropout_rate=self.dropout,
                pad_token_id=vocabulary.pad,
                eos_token_id=vocabulary.eos,
                # What the decoder begins with.
                decoder_start_token_id=vocabulary.pad,  # type: ignore[call-arg]
            ),
            labels,
        )
