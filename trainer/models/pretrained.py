"""A pretrained model from a directory or a hub."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError, choice, identity, require_share
from trainer.models import NONE, Labels, Model, Vocabulary
from trainer.models.objectives import HEADS, has_head, with_head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from transformers import PreTrainedModel

    from trainer.checkpoint.pieces import Read
    from trainer.models.stored import Sliced


# Families of an encoder and a decoder, as repositories are named.
_PAIRS = ("t5", "bart", "opus-mt", "marian", "pegasus", "prophetnet", "led-", "m2m100", "nllb")


@choice
class Pretrained(Model):
    """Weights and sizes from a local directory or a hub id."""

    name: str = "pretrained"
    path: str = identity("", help="directory or hub id")
    revision: str | None = identity(None, help="commit of a hub repository")
    dropout: float | None = identity(None, help="everywhere; default: what its configuration says, of each part")
    keep_layers: list[int] | None = identity(
        None, help="build the model of these transformer blocks alone, counted from 0; default: of all"
    )
    trust_remote_code: bool = identity(False, help="run the repository's own code; needs model.revision")

    def check(self) -> None:
        if not self.path:
            raise ConfigError("model.path: missing; model=pretrained needs a directory or a hub id, e.g. model.path=runs/x/model")
        if self.trust_remote_code and not self.revision:
            raise ConfigError(
                "model.trust_remote_code: true needs model.revision=<commit>, so that the code that runs is the code you read"
            )
        if self.dropout is not None:
            require_share(self, "dropout")
        kept = self.keep_layers
        if kept is not None and (not kept or kept != sorted(set(kept)) or kept[0] < 0):
            raise ConfigError(f"model.keep_layers: {kept}; allowed: numbers of blocks from 0, in their order, e.g. [0,2,4,6,8,11]")

    @property
    def pairs(self) -> bool:
        """By its configuration, in a directory or in the hub's cache; nothing is fetched to compose a run, so of others by its name."""
        from huggingface_hub import try_to_load_from_cache

        told: Any = Path(self.path) / "config.json"
        if not told.is_file():
            told = try_to_load_from_cache(self.path, "config.json", revision=self.revision) if self.path.count("/") < 2 else None
        if isinstance(told, (str, Path)):
            return bool(json.loads(Path(told).read_text()).get("is_encoder_decoder"))
        name = self.path.rpartition("/")[2].lower()
        return any(family in name for family in _PAIRS)

    def verify(self, objective: str, vocabulary: Vocabulary, sequence_length: int) -> None:
        from transformers import AutoConfig

        from trainer.models.layout import first_position

        config = self._load(AutoConfig.from_pretrained)
        if objective in ("denoising", "causal") and bool(config.is_encoder_decoder) != (objective == "denoising"):
            # Its name has misled, before its configuration was here.
            raise ConfigError(f"model.path: {self.path} is a {config.model_type}; it is in the cache now, so start the same command again")
        if self.dropout and not dropouts_of(config) + dropouts_of(config.get_text_config()):
            raise ConfigError(f"model.dropout: {self.dropout}, but the configuration of {self.path} names no dropout; leave it out")
        if self.keep_layers and (config.is_encoder_decoder or self.keep_layers[-1] >= config.num_hidden_layers):
            blocks = (
                "an encoder and a decoder, of which blocks cannot be chosen" if config.is_encoder_decoder else f"{config.num_hidden_layers}"
            )
            raise ConfigError(f"model.keep_layers: {self.keep_layers}, but {self.path} has {blocks}; the last of several is one less")
        if not has_head(config, objective) and not self.trust_remote_code:
            have = [name for name in HEADS if has_head(config, name)]
            raise ConfigError(
                f"model.path: {self.path} is a {config.model_type}, for which there is no {objective} head, "
                f"but {' and '.join(have) or 'none that is trained here'}; choose the task that fits"
            )
        if getattr(config, "quantization_config", None) is not None:
            raise ConfigError(
                f"model.path: {self.path} holds quantized weights, which are not trained here; name the ones they were made of"
            )
        sizes = config.get_text_config()
        rows = getattr(sizes, "vocab_size", None)
        if rows is not None and vocabulary.size - vocabulary.sentinels > rows:
            raise ConfigError(
                f"tokenizer: its largest id is {vocabulary.size - 1}, but the embedding of {self.path} has {rows} rows; "
                f"use the model's own tokenizer: tokenizer=pretrained tokenizer.path={self.path}"
            )
        positions = getattr(sizes, "max_position_embeddings", None)
        if positions is not None and sequence_length > positions - first_position(config):
            raise ConfigError(
                f"sequence_length: {sequence_length} is longer than the {positions - first_position(config)} positions of "
                f"model.path: {self.path}; set sequence_length={positions - first_position(config)}"
            )

    def build(self, objective: str, vocabulary: Vocabulary, sequence_length: int, labels: Labels = NONE) -> PreTrainedModel:
        import torch
        from transformers import AutoConfig, GenerationConfig

        config = self._load(AutoConfig.from_pretrained)
        if self.dropout is not None:
            set_dropout(config, self.dropout)
        if self.keep_layers:
            config.num_hidden_layers = len(self.keep_layers)
            if getattr(config, "layer_types", None):
                config.layer_types = [config.layer_types[layer] for layer in self.keep_layers]
        if "num_labels" in labels and config.pad_token_id is None:
            # The head of a decoder finds the end of a text by it.
            config.pad_token_id = vocabulary.pad
        # Trained in fp32, whatever it is stored in.
        model = with_head(objective, config, labels, dtype=torch.float32, trust_remote_code=self.trust_remote_code)
        if model.can_generate():
            with contextlib.suppress(OSError):  # not every repository has one
                model.generation_config = GenerationConfig.from_pretrained(self.path, revision=self.revision or "main")
            if "eos_token_id" in labels:
                model.generation_config.eos_token_id = labels["eos_token_id"]
        return _with_sentinels(model, vocabulary)

    def skeleton(self, objective: str, vocabulary: Vocabulary, sequence_length: int, labels: Labels = NONE) -> PreTrainedModel:
        model = super().skeleton(objective, vocabulary, sequence_length, labels)
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
        if buffers:
            # Training does not change them and no checkpoint holds them, but the directory may have other values than the code makes.
            stored, _ = self._stored(model)
            for name, buffer in buffers.items():
                if name in stored:
                    # Fewer where tokens were added.
                    buffer[tuple(map(slice, stored[name].get_shape()))] = stored[name][...]
        return model

    def weights(self, module: nn.Module, seed: int) -> Read:
        from transformers import AutoConfig

        from trainer.models.stored import Stored

        model: Any = module.model
        stored, why_whole = self._stored(model)
        rows = self._load(AutoConfig.from_pretrained).get_text_config().vocab_size
        found = Stored(model, stored, seed, rows, self.path)
        if why_whole:
            line = f"model.path: {self.path}: read whole into every process's memory before it is shared out: {why_whole}"
            found.notice = "\n".join(filter(None, [line, found.notice]))
        return found

    def _stored(self, model: PreTrainedModel) -> tuple[Mapping[str, Sliced], str]:
        """Its tensors by the names of the model; and why they are in memory already, where they cannot be read one by one."""
        from trainer.checkpoint.files import CheckpointError
        from trainer.models.stored import Held, sliced

        try:
            files = self._files()
        except CheckpointError as error:
            raise ConfigError(f"model.path: {error}") from error
        stored = sliced(model, files, self.keep_layers) if files is not None else None
        if stored is not None:
            return stored, ""
        if self.keep_layers:
            raise ConfigError(
                f"model.keep_layers: {self.keep_layers}; blocks can be chosen of a model in safetensors alone, whose tensors are the ones "
                f"that are trained; {self.path} is none"
            )
        why = "its files are no safetensors" if files is None else "transformers converts its tensors as it loads them"
        return {name: Held(tensor) for name, tensor in self._loaded(type(model)).items()}, why

    def _files(self) -> list[Path] | None:
        """Its safetensors files, from a directory or by way of the hub's cache; None where it has none."""
        from transformers.utils import cached_file

        from trainer.models.stored import INDEX, SINGLE, files_in

        if Path(self.path).is_dir():
            return files_in(Path(self.path))
        options = {"_raise_exceptions_for_missing_entries": False}
        single = self._load(cached_file, filename=SINGLE, **options)
        if single is not None:
            return [Path(single)]
        index = self._load(cached_file, filename=INDEX, **options)
        if index is None:
            return None
        for name in sorted(set(json.loads(Path(index).read_text())["weight_map"].values())):
            self._load(cached_file, filename=name)
        return files_in(Path(index).parent)

    def _loaded(self, kind: type[PreTrainedModel]) -> dict[str, Any]:
        """The tensors that transformers finds in the files, all of them in memory."""
        import torch

        model, info = self._load(kind.from_pretrained, dtype=torch.float32, output_loading_info=True)
        return {name: tensor for name, tensor in model.state_dict().items() if name not in info["missing_keys"]}

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


# What leaves out whole layers is not what `model.dropout` is of; without dropout nothing is left out.
_OF_LAYERS = ("layerdrop", "drop_path_rate")


def dropouts_of(config: Any) -> list[str]:
    """Names under which a configuration has its dropouts: `resid_pdrop`, `hidden_dropout_prob`, `attention_dropout`, `dropout_rate` …"""
    numbers = [name for name, value in config.to_dict().items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return [name for name in numbers if "drop" in name and not name.endswith(_OF_LAYERS)]


def set_dropout(config: Any, dropout: float) -> None:
    """Set every dropout of a configuration and of the one of its text, if that is another."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        names = dropouts_of(part)
        if dropout == 0:
            names += [name for name in part.to_dict() if name.endswith(_OF_LAYERS)]
        for name in names:
            setattr(part, name, dropout)


def _with_sentinels(model: PreTrainedModel, vocabulary: Vocabulary) -> PreTrainedModel:
    """The model with rows for the sentinels that its tokenizer was given, if it has none for them; drawn as its first weights were."""
    table: Any = model.get_input_embeddings()
    if table.num_embeddings < vocabulary.size:
        model.resize_token_embeddings(vocabulary.padded, mean_resizing=False)
    return model
