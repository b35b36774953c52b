"""Model FLOPs and the peak of a device: what MFU is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CONVENTION = (
    "MFU: model FLOPs (6 x matmul parameters, head at its padded size and on the rows it is computed for, embedding lookups left out; "
    "plus full, non-causal attention inside each packed document) a second / dense bf16 peak of the devices"
)

# Dense bf16 FLOP/s by the vendors' data sheets, without sparsity. The first pattern that occurs in the device's name counts.
PEAKS = (
    (r"\b(GH200|H200|H100|H800)\b", 989e12),
    (r"\bGB?200\b|\bB200\b", 2250e12),
    (r"\bH20\b", 148e12),
    (r"\bA(100|800)\b", 312e12),
    (r"\bL40S\b", 362e12),
    (r"\bL4\b", 121e12),
    (r"\bMI300X\b", 1307e12),
)


def device_peak(device: torch.device, override_tflops: float | None = None) -> float | None:
    """FLOP/s of one device: `device.peak_tflops` if set, else by its name; None for a CPU or a name that is not in the table."""
    if override_tflops is not None:
        return override_tflops * 1e12
    if device.type != "cuda":
        return None
    import torch

    return named_peak(torch.cuda.get_device_name(device))


def named_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s by a device's name."""
    return next((peak for pattern, peak in PEAKS if re.search(pattern, name)), None)


@dataclass(frozen=True)
class Work:
    """What a model computes: matmul parameters used for every token, those of each term's head, and the size of attention.

    body: parameters. heads: term → parameters, used once a target of that term. attention: Σ over layers of heads × head size.
    """

    body: int
    heads: Mapping[str, int]
    attention: int

    def flops(self, tokens: int, targets: Mapping[str, int], lengths: Iterable[int]) -> float:
        """FLOPs of forward and backward of a batch. lengths: tokens of each packed document."""
        rows = self.body * tokens + sum(size * targets.get(term, 0) for term, size in self.heads.items())
        # Scores and weighted values: 2 products of 2 FLOPs a pair of tokens forward, twice that backward.
        return 6.0 * rows + 12.0 * self.attention * sum(length * length for length in lengths)


def work_of(model: PreTrainedModel, terms: Sequence[str]) -> Work:
    """Measure a whole model, before a strategy shards it. terms: of the objective; the first is the one of the token head."""
    from torch import nn

    prefix = model.base_model_prefix
    body, heads = 0, dict.fromkeys(terms, 0)
    sentence = "nsp" if "nsp" in terms else terms[0]
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding):
            continue
        if "pooler" in name or "seq_relationship" in name:
            heads[sentence] += weight.numel()
        elif name.startswith(f"{prefix}."):
            body += weight.numel()
        else:
            heads[terms[0]] += weight.numel()
    return Work(body, heads, _attention(model.config))


def _attention(config: Any) -> int:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers * config.num_attention_heads * size)
