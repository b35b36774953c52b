"""Vocabulary head and cross-entropy together, so many rows at a time: the logits of a micro-batch are never there all at once.

A chunk's gradient is computed as soon as its logits are there, in the forward pass: nothing is computed twice, and what waits for the
backward pass has the size of the hidden states and of the weight. The idea is that of Hsu et al. 2024, https://arxiv.org/abs/2410.10989.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy_and_gradient(logits: Tensor, targets: Tensor, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    """The cross-entropy summed over targets, in fp32, and its gradient by the logits, in their dtype.

    logits: `[rows, padded vocabulary]`; the columns from `vocabulary_size` on count for nothing, and are set to −∞. targets: `[rows]`.
    """
    logits[:, vocabulary_size:] = -torch.inf
    logs = logits.log_softmax(-1, dtype=torch.float32)
    index = targets.unsqueeze(-1)
    chosen = logs.gather(-1, index)
    gradient = logs.exp_().scatter_(-1, index, chosen.exp() - 1)
    return -chosen.sum(), gradient.to(logits.dtype)


def fusible(logits: Tensor, targets: Tensor, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    """The same for a compiler: in two passes over the logits, nothing of their size in fp32 is written."""
    index, columns = targets.unsqueeze(-1), torch.arange(logits.shape[-1], device=logits.device)
    values = logits.float().masked_fill(columns >= vocabulary_size, -torch.inf)
    normalizers = values.logsumexp(-1, keepdim=True)
    # Not out of the values: they would be written for it.
    chosen = logits.gather(-1, index).float() - normalizers
    gradient = (values - normalizers).exp() - (columns == index).float()
    return -chosen.sum(), gradient.to(logits.dtype)


Compute = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class LinearCrossEntropy(torch.autograd.Function):
    """hidden `[rows, width]`, weight `[padded vocabulary, width]`, bias or None, targets `[rows]` → cross-entropy summed over rows, fp32.

    Products run in `dtype`, as under autocast; gradients by weight and bias are added up over chunks in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        size: int,
        rows: int,
        dtype: torch.dtype,
        compute: Compute,
    ) -> Tensor:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        by_hidden = torch.empty_like(inputs) if of_hidden else None
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if of_bias and bias is not None else None
        for start in range(0, len(inputs), rows):
            chunk = slice(start, start + rows)
            logits = F.linear(inputs[chunk], matrix, offset)
            loss, gradient = compute(logits, targets[chunk], size)
            total += loss
            del logits
            if by_hidden is not None:
                torch.mm(gradient, matrix, out=by_hidden[chunk])
            if by_weight is not None:
                _add_product(by_weight, gradient, inputs[chunk])
            if by_bias is not None:
                by_bias += gradient.sum(0, dtype=torch.float32)
        ctx.save_for_backward(by_hidden, by_weight, by_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # In place: a second backward pass through the same forward pass is refused by autograd, which sees the change.
        found = (
            None if gradient is None else gradient.mul_(above).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *found, None, None, None, None, None


def _add_product(total: Tensor, gradient: Tensor, inputs: Tensor) -> None:
    """total += gradientᵀ inputs, in the dtype of total."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.t(), inputs)
    else:
        total += gradient.t() @ inputs


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    vocabulary_size: int,
    rows: int,
    compute: Compute = cross_entropy_and_gradient,
) -> Tensor:
    """Cross-entropy of hidden · weightᵀ + bias over the first `vocabulary_size` columns, summed over targets: a scalar in fp32.

    hidden: `[targets, width]`; rows: of logits that are there at once; compute: what takes them. Its gradient is there after this call, for
    one backward pass.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        return LinearCrossEntropy.apply(hidden, weight, bias, targets, vocabulary_size, rows, dtype, compute)  # type: ignore[no-any-return]
