"""Layers whose weight is kept in 4 bits; they compute in the type of what goes in, and are never trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

# First, as it tells bitsandbytes to keep to itself which kernels a CPU lacks.
import trainer.adapters.injecting  # noqa: F401
from trainer.checkpoint.boxes import whole
from trainer.models.blocks import blocks

if TYPE_CHECKING:
    from trainer.checkpoint.pieces import Read


class FourBit(nn.Module):
    """x Wᵀ + b. weight: `[outputs, inputs]`, on the device that it will be used on. turned: in a checkpoint it is `[inputs, outputs]`."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, kind: str, nested: bool, turned: bool):
        super().__init__()
        from bitsandbytes.functional import quantize_4bit

        self.bias, self.turned = bias, turned
        # No parameters: nobody is to count, cut, average or save them. A state is a tensor of scales and how they are meant.
        self.packed, self.state = quantize_4bit(weight.contiguous(), quant_type=kind, compress_statistics=nested)

    def forward(self, x: Tensor) -> Tensor:
        from bitsandbytes import matmul_4bit

        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        found: Tensor = matmul_4bit(x, self.packed.t(), quant_state=self.state)
        return found if self.bias is None else found + self.bias.to(found.dtype)

    @property
    def weight(self) -> Tensor:
        """What it computes with, as a checkpoint has it."""
        from bitsandbytes.functional import dequantize_4bit

        weight: Tensor = dequantize_4bit(self.packed, self.state)
        return weight.T if self.turned else weight

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


def quantize(module: nn.Module, weights: Read, device: torch.device, kind: str, nested: bool) -> None:
    """Put 4-bit layers in the place of the frozen linear ones of all blocks of a task's model on meta, read one after the other."""
    from transformers.pytorch_utils import Conv1D

    model: Any = module.model
    inside = {id(part) for block in blocks(model) for part in block.modules()}
    for name, layer in list(model.named_modules(prefix="model")):
        if not isinstance(layer, (nn.Linear, Conv1D)) or id(layer) not in inside or layer.weight.requires_grad:
            continue
        shape, turned = tuple(layer.weight.shape), isinstance(layer, Conv1D)
        values = weights(f"{name}.weight", "parameter", shape, whole(shape)).to(device)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, FourBit(values.T if turned else values, layer.bias, kind, nested, turned))
