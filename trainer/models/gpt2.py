"""GPT-2 (Radford et al. 2019) by its sizes, from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.choices import ConfigError, choice, identity, require_positive, require_share
from trainer.models import NONE, Labels, Model, Vocabulary
from trainer.models.objectives import ON_EXAMPLES, with_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@choice
class GPT2(Model):
    """GPT-2 from scratch; the sizes are options."""

    name: str = "gpt2"
    layers: int = identity(12, help="transformer blocks")
    hidden: int = identity(768, help="width")
    heads: int = identity(12, help="attention heads")
    positions: int = identity(1024, help="longest sequence")
    dropout: float = identity(0.0, help="everywhere; 0 keeps the curve the same at any number of devices")
    initializer_range: float = identity(0.02, help="standard deviation of the first weights; narrow models start better with more")

    objectives: ClassVar[tuple[str, ...]] = ("causal", *ON_EXAMPLES)

    def check(self) -> None:
        require_positive(self, "layers", "hidden", "heads", "positions", "initializer_range")
        require_share(self, "dropout")
        if self.hidden % self.heads:
            raise ConfigError(f"model.hidden: {self.hidden} is not a multiple of model.heads: {self.heads}")

    def build(self, objective: str, vocabulary: Vocabulary, sequence_length: int, labels: Labels = NONE) -> PreTrainedModel:
        from transformers import GPT2Config

        return with_head(
            objective,
            GPT2Config(
                vocab_size=vocabulary.padded,
                n_positions=self.positions,
                n_embd=self.hidden,
                n_layer=self.layers,
                n_head=self.heads,
                initializer_range=self.initializer_range,
                resid_pdrop=self.dropout,
                embd_pdrop=self.dropout,
                attn_pdrop=self.dropout,
                # GPT-2's own defaults name ids beyond a smaller vocabulary.
                bos_token_id=vocabulary.bos,
                eos_token_id=vocabulary.eos,
                pad_token_id=vocabulary.pad,
            ),
            labels,
        )
