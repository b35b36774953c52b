"""An adapter in a folder of its own, as PEFT keeps it: without the model that it belongs to, which is named.

adapter_config.json  adapter_model.safetensors  model_config.json   and base/, where the model is no folder or repository of its own
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.adapters.prompts import STORED
from trainer.checkpoint.boxes import Box, Shape, whole
from trainer.checkpoint.files import plain
from trainer.choices import ConfigError, find, load_choices

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from trainer.adapters import Adapter

SETTINGS, VALUES, BASE = "adapter_config.json", "adapter_model.safetensors", "base"
# In place of PEFT's, for what it does not know.
OWN = "shardloom_adapter.json"
# In a file of PEFT: what stands in front of documents, as an encoder has made it.
IN_FRONT, ENCODER = "prompt_embeddings", "front_encoder"
# Sizes, labels and class of the model; under transformers' own name, it would look for weights beside it.
ARCHITECTURE = "model_config.json"


def file_name(name: str, wraps: bool = False) -> str:
    """What PEFT calls a parameter in its file. name: in a run. wraps: something stands in front of documents, and PEFT wraps the model."""
    if f".{ENCODER}." in name:
        return IN_FRONT
    inner = name.removeprefix("model." if wraps else "")
    return "base_model." + inner.replace(".default", "").replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a model."""
    return (folder / SETTINGS).is_file() or (folder / OWN).is_file()


def base_of(folder: Path) -> tuple[str, str | None]:
    """Path or hub id of the model that an adapter belongs to, and its revision."""
    settings = json.loads(plain(folder / (OWN if (folder / OWN).is_file() else SETTINGS)).read_text())
    named = settings["base_model_name_or_path"]
    inside = folder / BASE
    # Where it lies beside the adapter, the folder may have been moved since.
    return (str(inside) if inside.is_dir() else str(named)), settings.get("revision")


class Filed:
    """What an adapter's file holds, as `Read` gives it, by the names of a run."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.scalars: dict[str, int] = {}
        self.path = plain(folder / VALUES)
        self._file = safe_open(self.path, framework="pt", device="cpu")
        self._names = set(self._file.keys())

    @property
    def names(self) -> set[str]:
        """What the file holds, by PEFT's names."""
        return set(self._names)

    def name_of(self, name: str) -> str:
        """What the file calls a parameter of a run."""
        return file_name(name, IN_FRONT in self._names)

    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> Tensor:
        """Values of a box. Raises ConfigError where they are not there."""
        key = self.name_of(name)
        if key not in self._names:
            raise ConfigError(f"{self.path}: holds no {key}; it is of another adapter or model")
        values: Tensor = self._file.get_slice(key)[box.slices()]
        return values.float()


def load_adapted(folder: Path) -> PreTrainedModel:
    """The model that an adapter belongs to, with the adapter in it. Raises ConfigError where that model is not there."""
    import transformers

    path, revision = base_of(folder)
    config: Any = transformers.AutoConfig.from_pretrained(str(folder / ARCHITECTURE))
    kind = getattr(transformers, config.architectures[0])
    try:
        theirs: Any = transformers.AutoConfig.from_pretrained(path, revision=revision)
        config.vocab_size = theirs.vocab_size
        base = kind.from_pretrained(path, revision=revision, config=config)
    except OSError as error:
        raise ConfigError(f"{folder}: the model that this adapter belongs to is not there: {str(error).splitlines()[0]}") from error
    if (adapter := _read_by_us(folder)) is not None:
        return _filled(base, folder, adapter)
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder)).get_base_model()  # type: ignore[return-value]


def _read_by_us(folder: Path) -> Adapter | None:
    """An adapter that PEFT does not know, or whose model PEFT would wrap; None: PEFT puts it into the model."""
    load_choices()
    if (folder / OWN).is_file():
        options = json.loads(plain(folder / OWN).read_text())["adapter"]
        return find("adapter", str(options["name"]))(**options)  # type: ignore[return-value]
    settings = json.loads(plain(folder / SETTINGS).read_text())
    kind = STORED.get(settings["peft_type"])
    return kind(count=settings["num_virtual_tokens"]) if kind else None


def _filled(model: PreTrainedModel, folder: Path, adapter: Adapter) -> PreTrainedModel:
    import torch

    adapter.adapt(model)
    filed = Filed(folder)
    left = filed.names
    with torch.no_grad():
        for name, parameter in model.named_parameters(prefix="model"):
            if parameter.requires_grad or filed.name_of(name) in left:
                shape = tuple(parameter.shape)
                parameter.copy_(filed(name, "parameter", shape, whole(shape)))
                left.discard(filed.name_of(name))
    if left:
        raise ConfigError(f"{folder}: {VALUES} holds {sorted(left)[0]}, for which the model has no place")
    return model
