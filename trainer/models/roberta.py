"""RoBERTa (Liu et al. 2019) by its sizes, from scratch: BERT's network without segments, positions counted after the padding id."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.choices import ConfigError, choice
from trainer.models import NONE, Labels, Vocabulary
from trainer.models.bert import BERT
from trainer.models.objectives import ON_EXAMPLES, with_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@choice
class RoBERTa(BERT):
    """RoBERTa from scratch; the sizes are options."""

    name: str = "roberta"

    objectives: ClassVar[tuple[str, ...]] = ("masked", *ON_EXAMPLES)

    def verify(self, objective: str, vocabulary: Vocabulary, sequence_length: int) -> None:
        if vocabulary.pad is None:
            raise ConfigError("tokenizer: it has no padding token, after whose id RoBERTa counts its positions; add a pad_token to it")

    def build(self, objective: str, vocabulary: Vocabulary, sequence_length: int, labels: Labels = NONE) -> PreTrainedModel:
        from transformers import RobertaConfig

        assert vocabulary.pad is not None, "verify refuses a tokenizer without it"
        sizes = self.sizes(vocabulary) | {"max_position_embeddings": self.positions + vocabulary.pad + 1}
        # Its own defaults are ids of another vocabulary.
        sizes |= {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos}
        return with_head(objective, RobertaConfig(**sizes, type_vocab_size=1, layer_norm_eps=1e-5), labels)
