"""Model FLOPs and the peak of a device: what MFU is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trainer.adapters.folder import ENCODER

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

CONVENTION = (
    "MFU: model FLOPs (6 x matmul parameters: 2 forward, 2 for the gradient of what goes in, 2 for that of the parameter; of frozen ones "
    "4, and 2 in blocks below the first with something trained; head at its padded size and on the rows it is computed for, of experts the "
    "share that a token takes, embedding lookups and what makes virtual tokens left out; plus full, non-causal attention inside each "
    "document, or inside the window of a local layer; of a teacher its forward, 2; nothing for padding) a second / dense bf16 peak of "
    "the devices"
)

# Dense bf16 FLOP/s with fp32 sums, by the vendors' data sheets: half of what those say of sparse matrices. Of the RTX cards by NVIDIA's
# white papers on GA102 and on Ada. The first pattern that occurs in the device's name counts.
PEAKS = (
    (r"\bH(100|800) PCIe\b", 756e12),
    (r"\bH(100|200) NVL\b", 835e12),
    (r"\b(GH200|H200|H100|H800)\b", 989e12),
    (r"\bGB?200\b|\bB200\b", 2250e12),
    (r"\bH20\b", 148e12),
    (r"\bA(100|800)\b", 312e12),
    (r"\bL40S\b", 362e12),
    (r"\bL4\b", 121e12),
    (r"\bA10\b", 125e12),
    (r"\bRTX A6000\b", 154.8e12),
    # Not the 4090 D, nor that of laptops.
    (r"\bRTX 4090$", 165.2e12),
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
    """Dense bf16 FLOP/s by a device's name; None of a part of a GPU (MIG), whose share its name does not tell."""
    if re.search(r"\bMIG\b", name):
        return None
    return next((peak for pattern, peak in PEAKS if re.search(pattern, name)), None)


@dataclass(frozen=True)
class Products:
    """Matmul parameters used for every token, those of each term's head, and the size of attention.

    body: parameters. heads: term → parameters, used once a target of that term; a decoder beside an encoder is part of its term's.
    attention: Σ over layers of heads × head size. windows: the same of layers that see a window, by its size. decoder: the same of a
    decoder's layers beside an encoder.
    """

    body: int
    heads: Mapping[str, int]
    attention: int = 0
    windows: Mapping[int, int] = field(default_factory=dict)
    decoder: int = 0

    def rows(self, tokens: int, targets: Mapping[str, int]) -> int:
        """Parameters times what they are used for."""
        return self.body * tokens + sum(size * targets.get(term, 0) for term, size in self.heads.items())

    def pairs(self, lengths: Sequence[int], decoded: Sequence[int], prefix: int) -> int:
        """Sizes of attention times pairs of tokens."""
        found = self.attention * sum(length * (length + prefix) for length in lengths)
        found += sum(size * sum(_band(length, window) for length in lengths) for window, size in self.windows.items())
        return found + self.decoder * sum(length * (length + source) for length, source in zip(decoded, lengths, strict=bool(decoded)))


@dataclass(frozen=True)
class Work(Products):
    """What a model computes: forward; through: that of it whose input wants a gradient; trained: that of it which does itself.

    virtual, prefix: tokens, or keys and values, that stand in front of every document. teacher: what a teacher computes, forward alone.
    """

    through: Products = Products(0, {})
    trained: Products = Products(0, {})
    virtual: int = 0
    prefix: int = 0
    teacher: Products = Products(0, {})

    def flops(self, tokens: int, targets: Mapping[str, int], lengths: Sequence[int], decoded: Sequence[int] = ()) -> float:
        """FLOPs of forward and backward of a batch. lengths: tokens of each document; decoded: what a decoder writes for each."""
        # A teacher reads the documents as they are.
        taught = 2.0 * self.teacher.rows(tokens, targets) + 4.0 * self.teacher.pairs(lengths, decoded, 0)
        tokens, lengths = tokens + self.virtual * len(lengths), [length + self.virtual for length in lengths]
        rows = sum(each.rows(tokens, targets) for each in (self, self.through, self.trained))
        # Scores and weighted values: 2 products of 2 FLOPs a pair of tokens forward, twice that backward.
        forward, backward = (each.pairs(lengths, decoded, self.prefix) for each in (self, self.through))
        return 2.0 * rows + 4.0 * forward + 8.0 * backward + taught


def _band(length: int, window: int) -> int:
    """Pairs of tokens of a document that lie closer than the window."""
    return length * length if length <= window else length * (2 * window - 1) - window * (window - 1)


def work_of(model: PreTrainedModel, terms: Sequence[str], teacher: PreTrainedModel | None = None) -> Work | None:
    """Measure a whole model, before a strategy shards it. terms: of the objective; the first is the one of the token head. teacher: the
    model that it learns of.

    None where a model mixes tokens by something else than attention, of which nothing is counted here.
    """
    if teacher is not None:
        own, theirs = work_of(model, terms), work_of(teacher, terms)
        return replace(own, teacher=theirs) if own and theirs else None
    from trainer.models.front import prefix_length, virtual_tokens

    config = model.config.get_text_config()
    heads_of_attention = getattr(config, "num_attention_heads", None)
    if not isinstance(heads_of_attention, int) or not _ATTENDS.issuperset(getattr(config, "layer_types", None) or ()):
        return None
    size = heads_of_attention * (getattr(config, "head_dim", None) or config.hidden_size // heads_of_attention)
    local = _windows(model)
    decoder = _decoder_layers(config) if config.is_encoder_decoder else 0
    whole, windows = (config.num_hidden_layers - len(local)) * size, {window: local.count(window) * size for window in local}
    reached, share = _reached(model)
    products = [(_term(name, model, terms), size, name) for name, size in _products(model)]
    through = [(term, size) for term, size, name in products if reached(name)]
    trained = [(term, size) for term, size, name in products if any(one.requires_grad for one in _weights(model, name))]
    body, heads = _summed([(term, size) for term, size, _ in products], terms)
    behind = {window: round(each * share) for window, each in windows.items()}
    wanting = Products(*_summed(through, terms), round(whole * share), behind, round(decoder * size * share))
    front = virtual_tokens(model), prefix_length(model)
    return Work(body, heads, whole, windows, decoder * size, wanting, Products(*_summed(trained, terms)), *front)


def _summed(products: list[tuple[str | None, int]], terms: Sequence[str]) -> tuple[int, dict[str, int]]:
    """Parameters used for every token, and those of each term's head."""
    return sum(size for term, size in products if term is None), {
        each: sum(size for term, size in products if term == each) for each in terms
    }


def _weights(model: PreTrainedModel, name: str) -> Iterator[nn.Parameter]:
    return model.get_submodule(name).parameters(recurse=False)


def _reached(model: PreTrainedModel) -> tuple[Callable[[str], bool], float]:
    """Whether what goes into a module, by its name, wants a gradient, because something trained comes before it, or in its own block; and
    the share of the blocks of which that is so."""
    places = {name: place for place, (name, _) in enumerate(model.named_parameters(remove_duplicate=False))}
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    if not trained or any(ENCODER in name for name in trained):
        return (lambda _: True), 1.0  # what stands in front of documents comes before all
    from trainer.models.blocks import blocks

    first, inside = places[trained[0]], {id(block) for block in blocks(model)}
    whole = [name for name, module in model.named_modules() if id(module) in inside]

    def reached(name: str) -> bool:
        block = next((each for each in whole if f"{name}.".startswith(f"{each}.")), None)
        own = [place for each, place in places.items() if each.startswith(f"{block or name}.")]
        return bool(own) and (first <= max(own) if block else first < min(own))

    return reached, sum(map(reached, whole)) / len(whole) if whole else 1.0


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
        # What makes virtual tokens is no work of a token.
        if isinstance(module, nn.Embedding) or ENCODER in name:
            continue
        for key, weight in module.named_parameters(recurse=False):
            if weight.dim() == 2 and (key == "weight" or isinstance(module, nn.ParameterDict)):
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
