"""Recomputing activations in backward instead of keeping them (Chen et al. 2016, https://arxiv.org/abs/1604.06174).

Done to a module's transformer blocks before a strategy wraps them. The same draws of dropout are made again, so nothing changes but
memory and time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from trainer.models.blocks import blocks

if TYPE_CHECKING:
    from trainer.config import Recompute

_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
_MATMUL = ("mm", "addmm", "bmm", "baddbmm")


def recompute_blocks(module: nn.Module, options: Recompute) -> None:
    """Have every `every`-th transformer block of a module computed again in backward; results of the operations in `keep` are kept."""
    if options.every is None:
        return
    kept = kept_operations(options.keep)
    contexts = {"context_fn": functools.partial(create_selective_checkpoint_contexts, kept)} if kept else {}
    for block in blocks(module)[:: options.every]:
        # On the instance, so that names, hooks and what a strategy makes of the class stay as they are.
        block.forward = functools.partial(_forward, block, block.forward, contexts)  # type: ignore[method-assign]


def _forward(block: nn.Module, forward: Callable[..., Any], contexts: dict[str, Any], *inputs: Any, **named: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, **contexts, **named)


def kept_operations(names: list[str]) -> list[Any]:
    """The operations whose results are kept, of the groups `attention` and `matmul`."""
    operators = {"attention": _ATTENTION, "matmul": _MATMUL}
    found = [getattr(torch.ops.aten, operator).default for name in names for operator in operators[name]]
    if "attention" in names:
        from torch.nn.attention import varlen  # noqa: F401 (registers it)

        found.append(torch.ops.torch_attn._varlen_attn.default)
    return found
