"""A pretrained model from a directory or a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError, choice, identity
from trainer.models import Model, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@choice
class Pretrained(Model):
    """Weights and sizes from a local directory or a hub id."""

    name: str = "pretrained"
    path: str = identity("", help="directory or hub id")
    revision: str | None = identity(None, help="commit of a hub repository")
    trust_remote_code: bool = identity(False, help="run the repository's own code; needs model.revision")

    def check(self) -> None:
        if not self.path:
            raise ConfigError("model.path: missing; model=pretrained needs a directory or a hub id, e.g. model.path=runs/x/model")
        if self.trust_remote_code and not self.revision:
            raise ConfigError(
                "model.trust_remote_code: true needs model.revision=<commit>, so that the code that runs is the code you read"
            )

    def verify(self, vocabulary: Vocabulary, sequence_length: int) -> None:
        from transformers import AutoConfig

        config = self._load(AutoConfig.from_pretrained)
        rows = getattr(config, "vocab_size", None)
        if rows is not None and vocabulary.size > rows:
            raise ConfigError(
                f"tokenizer: its largest id is {vocabulary.size - 1}, but the embedding of {self.path} has {rows} rows; "
                f"use the model's own tokenizer: tokenizer=pretrained tokenizer.path={self.path}"
            )
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and sequence_length > positions:
            raise ConfigError(
                f"sequence_length: {sequence_length} is longer than the {positions} positions of model.path: {self.path}; "
                f"set sequence_length={positions}"
            )

    def build(self, objective: str, vocabulary: Vocabulary, sequence_length: int) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForPreTraining

        auto = {"causal": AutoModelForCausalLM, "pretraining": AutoModelForPreTraining}[objective]
        model: PreTrainedModel = self._load(auto.from_pretrained, dtype=torch.float32)
        return model

    def _load(self, loader: Any, **options: Any) -> Any:
        """Call a transformers loader, turning its failures into one sentence on what was looked for where."""
        local = Path(self.path).is_dir()
        if not local and (self.path.startswith((".", "/", "~")) or self.path.count("/") > 1):
            raise ConfigError(f"model.path: {self.path}: no such directory (from {Path.cwd()})")
        try:
            return loader(self.path, revision=self.revision or "main", trust_remote_code=self.trust_remote_code, **options)
        except (OSError, ValueError) as error:
            where = "the directory" if local else "no local directory of that name, and the hub"
            raise ConfigError(
                f"model.path: {self.path}: looked in {where}: {str(error).splitlines()[0]}. Without a network, copy the repository's "
                f"files (config.json, model.safetensors) to a directory and name that"
            ) from error
