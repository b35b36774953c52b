"""Model FLOPs and the peak of a device: what MFU is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CONVENTION = (
    "MFU: model FLOPs (6 x matmul parameters, head at its padded size and on the rows it is computed for, of experts the share that a "
    "token takes, embedding lookups left out; plus full, non-causal attention inside each document, or inside the window of a local "
    "layer; nothing for padding) a second / dense bf16 peak of the devices"
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
    return named_peak(device_name(device))


def device_name(device: torch.device) -> str:
    """As its vendor calls a GPU; `CPU` for any other."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def named_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s by a device's name."""
    return next((peak for pattern, peak in PEAKS if re.search(pattern, name)), None)


@dataclass(frozen=True)
class Work:
    """What a model computes: matmul parameters used for every token, those of each term's head, and the size of attention.

    body: parameters. heads: term → parameters, used once a target of that term; a decoder beside an encoder is part of its term's.
    attention: Σ over layers of heads × head size. windows: the same of layers that see a window, by its size. decoder: the same of a
    decoder's layers beside an encoder.
    """

    body: int
    heads: Mapping[str, int]
    attention: int
    windows: Mapping[int, int] = field(default_factory=dict)
    decoder: int = 0

    def flops(self, tokens: int, targets: Mapping[str, int], lengths: Sequence[int], decoded: Sequence[int] = ()) -> float:
        """FLOPs of forward and backward of a batch. lengths: tokens of each document; decoded: what a decoder writes for each."""
        rows = self.body * tokens + sum(size * targets.get(term, 0) for term, size in self.heads.items())
        pairs = self.attention * sum(length * length for length in lengths)
        pairs += sum(size * sum(_band(length, window) for length in lengths) for window, size in self.windows.items())
        pairs += self.decoder * sum(length * (length + source) for length, source in zip(decoded, lengths, strict=bool(decoded)))
        # Scores and weighted values: 2 products of 2 FLOPs a pair of tokens forward, twice that backward.
        return 6.0 * rows + 12.0 * pairs


def _band(length: int, window: int) -> int:
    """Pairs of tokens of a document that lie closer than the window."""
    return length * length if length <= window else length * (2 * window - 1) - window * (window - 1)


def work_of(model: PreTrainedModel, terms: Sequence[str]) -> Work | None:
    """Measure a whole model, before a strategy shards it. terms: of the objective; the first is the one of the token head.

    None where the model mixes tokens by something else than attention, of which nothing is counted here.
    """
    config = model.config.get_text_config()
    heads_of_attention = getattr(config, "num_attention_heads", None)
    if not isinstance(heads_of_attention, int) or not _ATTENDS.issuperset(getattr(config, "layer_types", None) or ()):
        return None
    body, heads = 0, dict.fromkeys(terms, 0)
    for name, size in _products(model):
        term = _term(name, model, terms)
        if term is None:
            body += size
        else:
            heads[term] += size
    size = heads_of_attention * (getattr(config, "head_dim", None) or config.hidden_size // heads_of_attention)
    local = _windows(model)
    decoder = _decoder_layers(config) if config.is_encoder_decoder else 0
    return Work(body, heads, (config.num_hidden_layers - len(local)) * size, {w: local.count(w) * size for w in local}, decoder * size)


_ATTENDS = {"full_attention", "sliding_attention"}
# Products of a decoder that are taken of the encoder's tokens: keys and values.
_OF_SOURCE = re.compile(r"(EncDecAttention|encoder_attn|crossattention)\.(.*\.)?(k|v|k_proj|v_proj|key|value)$")


def _products(model: PreTrainedModel) -> Iterator[tuple[str, int]]:
    """Name and parameters of everything that a token is multiplied with; of experts, those that one token takes."""
    from torch import nn

    config: Any = model.config.get_text_config()
    # Layers that are used several times have their parameters once.
    uses = config.num_hidden_layers // config.num_hidden_groups if hasattr(config, "num_hidden_groups") else 1
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        for key, weight in module.named_parameters(recurse=False):
            if key == "weight" and weight.dim() == 2:
                yield name, weight.numel() * (uses if ".albert_layer_groups." in name else 1)
            elif weight.dim() == 3 and hasattr(config, "num_experts_per_tok"):
                yield name, weight.numel() * config.num_experts_per_tok // weight.shape[0]


def _term(name: str, model: PreTrainedModel, terms: Sequence[str]) -> str | None:
    """The term for each of whose targets a product is taken; None: it is taken for every token."""
    if model.config.is_encoder_decoder:
        decodes = name.startswith(("decoder.", "model.decoder.", "lm_head")) and not _OF_SOURCE.search(name)
        return terms[0] if decodes else None
    if "pooler" in name or "seq_relationship" in name:
        return "nsp" if "nsp" in terms else terms[0]
    return None if name.startswith(f"{model.base_model_prefix}.") else terms[0]


def _windows(model: PreTrainedModel) -> list[int]:
    """The windows of a model's local layers: pairs of tokens closer than this see each other."""
    # As a layer tells it to the attention function: some configurations count one side, or without an end.
    told: list[Any] = [
        module.sliding_window for module in model.modules() if hasattr(module, "is_causal") and hasattr(module, "sliding_window")
    ]
    config: Any = model.config.get_text_config()
    told = told or [getattr(config, "sliding_window", None)] * config.num_hidden_layers
    return [window for window in told if isinstance(window, int)]


def _decoder_layers(config: Any) -> int:
    return int(getattr(config, "num_decoder_layers", None) or config.decoder_layers)
