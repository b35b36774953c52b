"""Weights as transformers saves them, taken from a checkpoint tensor by tensor: no more than the largest one is in memory.

model.safetensors, or model-00001-of-00003.safetensors … with model.safetensors.index.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from trainer import averaging
from trainer.checkpoint.boxes import Box, Shape
from trainer.choices import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Held(Protocol):
    """A checkpoint, or what is read as one: a `Read` that knows what there is. shapes: by name and kind."""

    @property
    def shapes(self) -> Mapping[tuple[str, str], Shape]: ...
    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> Tensor: ...


# Where transformers begins a new file, too.
FILE_BYTES = 50 * 10**9

_TYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64", torch.int32: "I32",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Weights:
    """The tensors of a model, by the names that transformers saves them under.

    model: on the meta device, without padding rows; what it shares is read once. held: `model.…` in a checkpoint, perhaps with padding
    rows. averages: the moving averages of the weights are read. buffer: values of a buffer that is saved, by its name.
    """

    def __init__(
        self, model: PreTrainedModel, held: Held, dtype: torch.dtype, averages: bool, buffer: Callable[[str], Tensor] | None = None
    ):
        self.held, self.dtype, self.averages, self.buffer = held, dtype, averages, buffer
        ignored = set(model._keys_to_ignore_on_save or ())
        # As they are shared, so they are saved: under the one name that is no copy.
        copies: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
        self.parameters = {copies.get(name, name): (name, parameter) for name, parameter in model.named_parameters()}
        everywhere = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in everywhere and name not in ignored}

    @property
    def shapes(self) -> dict[str, Tensor]:
        """Every tensor without values, of the type that it is saved in."""
        found = {name: _cast(parameter.detach(), self.dtype) for name, (_, parameter) in self.parameters.items()}
        return found | {name: _cast(tensor, self.dtype) for name, tensor in self.buffers.items()}

    def __getitem__(self, name: str) -> Tensor:
        """Values of a tensor. Raises ConfigError where its type cannot hold them, CheckpointError where they are not there."""
        values = self._values(name)
        found = _cast(values, self.dtype)
        if self.dtype is torch.float16 and not torch.equal(found.isfinite(), values.isfinite()):
            raise ConfigError(f"dtype=float16: {name} has values beyond 65,504, the largest of this type; use dtype=bfloat16 or float32")
        return found

    def _values(self, name: str) -> Tensor:
        if name in self.buffers:
            assert self.buffer is not None
            return self.buffer(name)[tuple(map(slice, self.buffers[name].shape))]
        inner, parameter = self.parameters[name]
        key = f"model.{inner}"
        kind = averaging.KIND if self.averages and (key, averaging.KIND) in self.held.shapes else "parameter"
        shape = tuple(parameter.shape)
        # Only tensors with a row, or a column, for each entry of the vocabulary are larger there.
        there = self.held.shapes.get((key, kind), shape)
        fits = len(there) == len(shape) and all(ours <= theirs for ours, theirs in zip(shape, there, strict=True))
        return self.held(key, kind, there if fits else shape, Box((0,) * len(shape), shape))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def write_weights(folder: Path, weights: Weights, file_bytes: int = FILE_BYTES) -> int:
    """Write all tensors below a folder, a new file where one would be larger than so many bytes. Returns how many values there are."""
    from huggingface_hub import split_torch_state_dict_into_shards

    shapes = weights.shapes
    plan = split_torch_state_dict_into_shards(shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=file_bytes)
    for name, members in plan.filename_to_tensors.items():
        write_file(folder / name, {member: shapes[member] for member in members}, weights.__getitem__)
    count = sum(tensor.numel() for tensor in shapes.values())
    if plan.is_sharded:
        index: dict[str, Any] = {"metadata": {"total_parameters": count, **plan.metadata}, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return count


def write_file(path: Path, shapes: dict[str, Tensor], values_of: Callable[[str], Tensor]) -> None:
    """One file in the format safetensors: length of the header, header, values. The library itself wants all values at once.

    https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in shapes.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in shapes.items():
            values = values_of(name)
            assert values.shape == tensor.shape and values.dtype == tensor.dtype, name
            file.write(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del values
