"""An adapter given away: alone, in PEFT's format, or merged into a model that needs none."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.adapters.folder import ARCHITECTURE, ENCODER, IN_FRONT, OWN, VALUES, file_name
from trainer.adapters.prompts import USES
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
_USES = USES | {"embedding": "FEATURE_EXTRACTION"}


def save_adapter(folder: Path, whole: PreTrainedModel, weights: Weights, trained: Collection[str], config: Config, base: str) -> int:
    """Write PEFT's two files (of what PEFT does not know, our own), and the model's configuration. Returns how many values.

    whole: the model with the adapter in it, on the meta device; trained: names in the run; base: where the model itself lies.
    """
    front = _in_front(whole, weights)
    own = [name for name in weights.shapes if f"model.{name}" in trained and f".{ENCODER}." not in f".{name}"]
    places = {file_name(f"model.{name}", bool(front)): name for name in own}
    shapes = {key: weights.shapes[name] for key, name in places.items()} | front
    write_file(folder / VALUES, shapes, lambda key: front[key] if key in front else weights[places[key]])
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
    settings.modules_to_save = _beside(whole, own, getattr(settings, "bias", "none")) or None
    settings.save_pretrained(folder)
    return sum(tensor.numel() for tensor in shapes.values())


def base_path(config: Config) -> str | None:
    """The folder or hub id of the model that an adapter of this run belongs to; None where there is none that transformers reads."""
    path = getattr(config.model, "path", None)
    if path is None or config.init.run:
        return None
    return str(Path(path).resolve()) if Path(path).is_dir() else str(path)


def _beside(whole: nn.Module, names: Collection[str], bias: str) -> list[str]:
    """Modules of the model itself that were trained too; biases that PEFT's `bias` speaks of are not meant."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = tuple(f"{path}." for path, module in whole.named_modules() if isinstance(module, BaseTunerLayer))
    own = [name for name in names if not name.startswith(layers) and (bias == "none" or not name.endswith(".bias"))]
    return sorted({_whole_module(whole, name, own) for name in own})


def _whole_module(whole: nn.Module, name: str, own: Collection[str]) -> str:
    """The largest module around a parameter that was trained as a whole: PEFT takes a head for one module, however many it has."""
    parts = name.split(".")
    around = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    trained = (path for path in around if all(f"{path}.{each}" in own for each, _ in whole.get_submodule(path).named_parameters()))
    return next(trained, around[-1])


@torch.no_grad()
def _in_front(whole: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """What stands in front of documents, as its encoder makes it of its values; nothing where nothing does."""
    path = next((name for name, _ in whole.named_modules() if name.rpartition(".")[2] == ENCODER), None)
    if path is None:
        return {}
    encoder = copy.deepcopy(whole.get_submodule(path))

    def read(name: str, kind: str, shape: Shape, box: Box) -> Tensor:
        return weights[name][box.slices()]

    materialise(encoder, read, torch.device("cpu"), prefix=path)  # type: ignore[arg-type]
    count = whole.get_submodule(path).embedding.num_embeddings  # type: ignore[union-attr]
    return {IN_FRONT: encoder(torch.arange(count)).to(weights.dtype).contiguous()}  # type: ignore[arg-type]


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
