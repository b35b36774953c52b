"""Linear layers of transformer blocks in 8-bit floats: e4m3 for values and weights, e5m2 for gradients (Micikevicius et al. 2022,
https://arxiv.org/abs/2209.05433), each tensor scaled to its own largest value as it is used. Head, embeddings and norms are as before.

A GPU multiplies in 8 bits and adds up in fp32. A CPU rounds to the same 8 bits and multiplies in fp32: the same arithmetic, for tests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from trainer.choices import ConfigError
from trainer.models.blocks import blocks

# What the products take: sizes in multiples of it.
_MULTIPLE = 16


class Scaled(NamedTuple):
    """A tensor as values in 8 bits times a scale, a scalar in fp32 on the device."""

    values: Tensor
    scale: Tensor

    @staticmethod
    def of(tensor: Tensor, dtype: torch.dtype) -> Scaled:
        """Rounded so that the largest value is the largest of the dtype; what is not finite makes all of it NaN."""
        most = torch.finfo(dtype).max
        scale = (tensor.abs().amax().float() / most).clamp(min=1e-30)
        return Scaled((tensor.float() / scale).clamp(-most, most).to(dtype), scale)

    @property
    def t(self) -> Scaled:
        """Transposed, its rows in one piece."""
        return Scaled(self.values.t().contiguous(), self.scale)


def product(one: Scaled, other: Scaled, dtype: torch.dtype) -> Tensor:
    """one `[m, k]` · otherᵀ `[n, k]` → `[m, n]` in a dtype; both with their rows in one piece."""
    if one.values.is_cuda:
        # Of a matrix that is read by columns, which is what the transposed one is, as the kernel wants it.
        return torch._scaled_mm(one.values, other.values.t(), scale_a=one.scale, scale_b=other.scale, out_dtype=dtype)
    return ((one.values.float() @ other.values.float().t()) * (one.scale * other.scale)).to(dtype)


class Float8Product(torch.autograd.Function):
    """inputs `[rows, in]` and a weight, `[out, in]` or with `by_rows` `[in, out]` → `[rows, out]` in `dtype`. rows: a multiple of 16."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, by_rows: bool, dtype: torch.dtype) -> Tensor:
        read = Scaled.of(inputs, torch.float8_e4m3fn)
        matrix = Scaled.of(weight, torch.float8_e4m3fn)
        # The weight as it is, not its copy in 8 bits: a strategy that cuts it has it whole again in backward.
        ctx.save_for_backward(*read, weight)
        ctx.by_rows, ctx.dtype, ctx.of_inputs = by_rows, dtype, inputs.dtype
        return product(read, matrix.t if by_rows else matrix, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, scale, weight = ctx.saved_tensors
        of_inputs, of_weight = ctx.needs_input_grad[:2]
        gradient = Scaled.of(above, torch.float8_e5m2)
        by_inputs = by_weight = None
        if of_inputs:
            matrix = Scaled.of(weight, torch.float8_e4m3fn)
            by_inputs = product(gradient, matrix if ctx.by_rows else matrix.t, ctx.dtype).to(ctx.of_inputs)
        if of_weight:
            found = product(gradient.t, Scaled(values, scale).t, ctx.dtype).to(weight.dtype)
            by_weight = found.t() if ctx.by_rows else found
        return by_inputs, by_weight, None, None


class Float8Linear(nn.Linear):
    """torch's linear layer, multiplied in 8 bits."""

    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.weight, self.bias, by_rows=False)


class Float8Conv1D(Conv1D):
    """GPT-2's linear layer, whose weight is transposed, multiplied in 8 bits."""

    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.weight, self.bias, by_rows=True)


_IN_8_BITS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Float8Linear, Conv1D: Float8Conv1D}


def use_fp8(model: nn.Module) -> None:
    """Have the linear layers of a model's blocks compute in 8 bits, those whose sizes allow it. Raises ConfigError where none does."""
    found = [part for block in blocks(model) for part in block.modules() if _fits(part)]
    for part in found:
        # By the class, so that names and parameters stay what they are, and a compiler has one code for all of them.
        part.__class__ = _IN_8_BITS[type(part)]  # type: ignore[assignment]
    if not found:
        raise ConfigError(
            f"precision: fp8; no linear layer of this model's blocks has sizes that are multiples of {_MULTIPLE}; use precision=bf16"
        )


def _fits(part: nn.Module) -> bool:
    return type(part) in _IN_8_BITS and all(size % _MULTIPLE == 0 for size in part.weight.shape)  # type: ignore[union-attr]


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None, by_rows: bool) -> Tensor:
    device = inputs.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
    flat = inputs.flatten(0, -2)
    rows = len(flat)
    # Rows are summed over in backward; zeros add nothing to it.
    flat = F.pad(flat, (0, 0, 0, -rows % _MULTIPLE))
    with torch.autocast(device, enabled=False):
        found = Float8Product.apply(flat, weight, by_rows, dtype)[:rows]  # type: ignore[index]
        if bias is not None:
            found = found + bias.to(dtype)
    return found.unflatten(0, inputs.shape[:-1])
