"""What is learned in front of every document: virtual tokens, or keys and values of every layer; the model itself stays as it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.adapters import Adapter
from trainer.choices import ConfigError, choice, identity, require_positive

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from trainer.config import Config

# What PEFT calls the use of a model, by its head: with keys or tokens in front, it has a class of its own for each.
USES = {
    "causal": "CAUSAL_LM",
    "masked": "FEATURE_EXTRACTION",
    "denoising": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}
# Families whose layers take keys and values in front: decoders, and the encoders that transformers also builds as decoders.
_TAKE_KEYS = frozenset({"gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "bert", "roberta", "xlm-roberta",
                        "camembert", "electra"})  # fmt: skip


@dataclass
class InFront(Adapter):
    """Something learned in front of every document, with an encoder of PEFT's that makes it."""

    count: int = identity(20, help="virtual tokens in front of every document")
    beside: list[str] | None = identity(
        None, help="parameters of the model that are trained too: patterns of names; null: those it has no values for, such as a new head"
    )

    def check(self) -> None:
        require_positive(self, "count")

    def adapt(self, model: PreTrainedModel, lacking: Collection[str] = ()) -> None:
        from trainer.adapters.injecting import train_beside, writing
        from trainer.models.objectives import objective_of

        model.requires_grad_(False)
        settings = self.settings(model)
        settings.task_type = USES.get(objective_of(model) or "")
        with writing(model):
            self.put(model, settings)
        model.peft_config = {"default": settings}  # type: ignore[dict-item]
        train_beside(model, self.beside, lacking)

    def settings(self, model: PreTrainedModel) -> PeftConfig:
        """PEFT's own configuration."""
        raise NotImplementedError

    def put(self, model: PreTrainedModel, settings: PeftConfig) -> None:
        """Put the encoder into the model."""
        raise NotImplementedError

    def fits(self, model: PreTrainedModel, config: Config) -> None:
        from trainer.models.layout import first_position

        objective, sequence_length, teacher = config.objective, config.sequence_length, config.teacher
        for key in ("hidden", "attention"):
            if getattr(teacher, key, 0):
                raise ConfigError(
                    f"teacher.{key}: {getattr(teacher, key)} with adapter={self.name}: the teacher has no places for what stands in front "
                    f"of documents here; set teacher.{key}=0, its soft targets are learned all the same"
                )
        if objective not in USES:
            raise ConfigError(
                f"adapter={self.name}: PEFT, in whose format it is given away, has no class for a {objective} head with something in "
                f"front of its documents, but for {', '.join(USES)}; take adapter=lora"
            )
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        room = None if positions is None else positions - first_position(model.config) - self.count
        if room is not None and sequence_length > room:
            raise ConfigError(
                f"adapter.count: {self.count} virtual tokens in front of {sequence_length} are more than the {room + self.count} positions "
                f"of the model; set sequence_length={room}, or a smaller adapter.count"
            )


class Tokens(InFront):
    """Virtual tokens at the embedding."""

    def put(self, model: PreTrainedModel, settings: PeftConfig) -> None:
        from trainer.models.front import put_tokens

        put_tokens(model, self.encoder(model, settings), self.count)

    def encoder(self, model: PreTrainedModel, settings: PeftConfig) -> Any:
        """`[count]` numbers → `[count, width]`."""
        raise NotImplementedError

    def sizes(self, model: PreTrainedModel) -> dict[str, Any]:
        """What PEFT would read of the model's configuration, and cannot where an embedding is narrower than the layers."""
        from trainer.models.front import embedding_of

        config: Any = model.config.get_text_config()
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        width = embedding_of(model).embedding_dim
        return {
            "num_virtual_tokens": self.count, "num_transformer_submodules": 1, "token_dim": width, "num_layers": layers,
            "num_attention_heads": heads,
        }  # fmt: skip

    def fits(self, model: PreTrainedModel, config: Config) -> None:
        super().fits(model, config)
        if model.config.is_encoder_decoder and config.objective != "denoising":
            raise ConfigError(
                f"adapter={self.name}: the {config.objective} head of a {model.config.model_type} reads ids in its decoder too, which "
                "have no virtual tokens; take adapter=lora"
            )


@choice
class Prompt(Tokens):
    """Prompt tuning: vectors in front of the tokens of every document (Lester et al. 2021, https://arxiv.org/abs/2104.08691)."""

    name: str = "prompt"
    first: str = identity("vocabulary", help="first values: vocabulary, the vectors of random tokens | normal, random numbers")

    def check(self) -> None:
        super().check()
        if self.first not in ("vocabulary", "normal"):
            raise ConfigError(f"adapter.first: {self.first!r}; allowed: vocabulary, normal")

    def settings(self, model: PreTrainedModel) -> PeftConfig:
        from peft import PromptTuningConfig, PromptTuningInit

        drawn = PromptTuningInit.SAMPLE_VOCAB if self.first == "vocabulary" else PromptTuningInit.RANDOM
        return PromptTuningConfig(prompt_tuning_init=drawn, **self.sizes(model))

    def encoder(self, model: PreTrainedModel, settings: PeftConfig) -> Any:
        from peft import PromptEmbedding

        from trainer.models.front import embedding_of

        return PromptEmbedding(settings, embedding_of(model))


@choice
class PTuning(Tokens):
    """P-tuning: the same vectors, made by a small network while they are trained (Liu et al. 2021, https://arxiv.org/abs/2103.10385)."""

    name: str = "p_tuning"
    hidden: int | None = identity(None, help="width of the small network; null: of the embedding")

    def check(self) -> None:
        super().check()
        require_positive(self, "hidden", optional=True)

    def settings(self, model: PreTrainedModel) -> PeftConfig:
        from peft import PromptEncoderConfig

        sizes = self.sizes(model)
        return PromptEncoderConfig(encoder_hidden_size=self.hidden or sizes["token_dim"], **sizes)

    def encoder(self, model: PreTrainedModel, settings: PeftConfig) -> Any:
        from peft import PromptEncoder

        return PromptEncoder(settings)

    def stored(self) -> Adapter:
        return Prompt(count=self.count, beside=self.beside)


@choice
class Prefix(InFront):
    """Prefix tuning: keys and values in front, at the attention of every layer (Li & Liang 2021, https://arxiv.org/abs/2101.00190)."""

    name: str = "prefix"
    projection: int | None = identity(None, help="make them by a network of this width while they are trained; null: train them themselves")

    def check(self) -> None:
        super().check()
        require_positive(self, "projection", optional=True)

    def settings(self, model: PreTrainedModel) -> PeftConfig:
        from peft import PrefixTuningConfig

        config: Any = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return PrefixTuningConfig(
            num_virtual_tokens=self.count, num_transformer_submodules=1, token_dim=heads * size, num_layers=config.num_hidden_layers,
            num_attention_heads=heads, prefix_projection=self.projection is not None, encoder_hidden_size=self.projection or heads * size,
        )  # fmt: skip

    def put(self, model: PreTrainedModel, settings: PeftConfig) -> None:
        from peft import PrefixEncoder

        from trainer.models.front import put_keys

        put_keys(model, PrefixEncoder(settings), self.count, settings.num_attention_heads)  # type: ignore[attr-defined]

    def stored(self) -> Adapter:
        return Prefix(count=self.count, beside=self.beside)

    def fits(self, model: PreTrainedModel, config: Config) -> None:
        super().fits(model, config)
        family = model.config.model_type
        if family not in _TAKE_KEYS:
            raise ConfigError(
                f"adapter=prefix: keys and values reach a model as its past, and transformers gives the layers of a {family} none (of an "
                f"encoder–decoder model it is not built here); models that take one: {', '.join(sorted(_TAKE_KEYS))}. adapter=prompt puts "
                "tokens in front of any"
            )


# By what PEFT writes in a folder: what reads it.
STORED = {"PROMPT_TUNING": Prompt, "P_TUNING": Prompt, "PREFIX_TUNING": Prefix}
