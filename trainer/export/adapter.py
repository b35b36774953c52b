"""An adapter given away: alone, in PEFT's format, or merged into a model that needs none."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.adapters.folder import ARCHITECTURE, OWN, VALUES, file_name
from trainer.atomic import write_json
from trainer.checkpoint.boxes import Box, Shape
from trainer.config import to_dict
from trainer.export.weights import write_file
from trainer.models.deferred import materialise

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from trainer.adapters.frozen import Composed
    from trainer.config import Config
    from trainer.export.weights import Weights

# What PEFT calls the use of a model, by its head.
_USES = {
    "causal": "CAUSAL_LM",
    "denoising": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "embedding": "FEATURE_EXTRACTION",
}


def save_adapter(folder: Path, whole: PreTrainedModel, weights: Weights, trained: Collection[str], config: Config, base: str) -> int:
    """Write PEFT's two files (of what PEFT does not know, our own), and the model's configuration. Returns how many values.

    whole: the model with the adapter in it, on the meta device; trained: names in the run; base: where the model itself lies.
    """
    shapes = {name: tensor for name, tensor in weights.shapes.items() if f"model.{name}" in trained}
    places = {file_name(f"model.{name}"): name for name in shapes}
    write_file(folder / VALUES, {key: shapes[name] for key, name in places.items()}, lambda key: weights[places[key]])
    whole.config.architectures, whole.config.dtype = [type(whole).__name__], "float32"
    whole.config.to_json_file(folder / ARCHITECTURE)
    place = {"base_model_name_or_path": base, "revision": getattr(config.model, "revision", None)}
    if not hasattr(whole, "peft_config"):
        write_json(folder / OWN, {"adapter": to_dict(config)["adapter"], **place})
        return sum(tensor.numel() for tensor in shapes.values())
    settings: Any = whole.peft_config["default"]
    settings.task_type = _USES.get(config.objective)
    settings.base_model_name_or_path, settings.revision = base, place["revision"]
    settings.inference_mode = True
    settings.modules_to_save = _beside(whole, shapes, getattr(settings, "bias", "none")) or None
    settings.save_pretrained(folder)
    return sum(tensor.numel() for tensor in shapes.values())


def base_path(config: Config) -> str | None:
    """The folder or hub id of the model that an adapter of this run belongs to; None where there is none that transformers reads."""
    path = getattr(config.model, "path", None)
    if path is None or config.init.run:
        return None
    return str(Path(path).resolve()) if Path(path).is_dir() else str(path)


def _beside(whole: nn.Module, shapes: Collection[str], bias: str) -> list[str]:
    """Modules of the model itself that were trained too; biases that PEFT's `bias` speaks of are not meant."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = tuple(f"{path}." for path, module in whole.named_modules() if isinstance(module, BaseTunerLayer))
    own = [name for name in shapes if not name.startswith(layers)]
    return sorted({name.rpartition(".")[0] for name in own if bias == "none" or not name.endswith(".bias")})


class Plain:
    """The model that an adapter belongs to, as a checkpoint of it would be read."""

    def __init__(self, read: Composed) -> None:
        self.read, self.scalars = read, read.scalars
        # PEFT keeps a layer that it adapts as the base_layer of its own.
        self.names = {name.replace(".base_layer.", "."): name for name, _ in read.shapes}
        self.shapes = {(plain, "parameter"): read.shapes[name, "parameter"] for plain, name in self.names.items()}

    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> Tensor:
        return self.read.base(name, kind, shape, box)


class Merged(Plain):
    """The same with its adapter in its weights: layer by layer."""

    def __init__(self, adapted: nn.Module, read: Composed) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        super().__init__(read)
        self.layers = {f"model.{path}": module for path, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)}
        self._last: tuple[str, dict[str, Tensor]] = "", {}

    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> Tensor:
        owner, inside, leaf = self.names[name].partition(".base_layer.")
        if not inside:
            return self.read(self.names[name], kind, shape, box)
        if self._last[0] != owner:
            self._last = owner, self._merge(owner)
        return self._last[1][leaf][box.slices()]

    def _merge(self, owner: str) -> dict[str, Tensor]:
        layer: Any = copy.deepcopy(self.layers[owner])
        materialise(layer, self.read, torch.device("cpu"), prefix=owner)
        layer.merge(safe_merge=True)
        return {name: parameter.detach() for name, parameter in layer.base_layer.named_parameters()}
