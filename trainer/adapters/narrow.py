"""The layers of `adapter=bottleneck`, and where in a model they go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.adapters.injecting import writing
from trainer.choices import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# By transformers' model_type: how the last linear layers of attention and of the feed-forward layer end.
_BERT = ("attention.output.dense", "output.dense")
_LLAMA = ("self_attn.o_proj", "mlp.down_proj")
PLACES = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "opt": ("self_attn.out_proj", "fc2"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2"), _LLAMA),
    "modernbert": ("attn.Wo", "mlp.Wo"),
    "t5": ("SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"),
}


class Narrow(nn.Module):
    """y + U act(D y) of what a layer gives; U begins at zero, so at first nothing is changed."""

    def __init__(self, base_layer: nn.Module, width: int, size: int, activation: str):
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation = activation

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        given: Tensor = self.base_layer(*inputs, **named)
        inner = getattr(F, self.activation)(self.down(given))
        out: Tensor = given + self.up(inner)
        return out

    @property
    def weight(self) -> Tensor:
        """Some models look at the type of a layer's weight before they call it."""
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return weight


def put_behind(model: PreTrainedModel, size: int, activation: str) -> None:
    """Freeze a model and put narrow layers behind attention and feed-forward of every block. Raises ConfigError for an unknown family."""
    family = model.config.model_type
    if family not in PLACES:
        raise ConfigError(f"adapter=bottleneck: where in a {family} to put it is not known; known: {', '.join(sorted(PLACES))}")
    model.requires_grad_(False)
    found = [name for name, _ in model.named_modules() if name.endswith(tuple(f".{place}" for place in PLACES[family]))]
    with writing(model):
        for name in found:
            owner, _, leaf = name.rpartition(".")
            layer: Any = model.get_submodule(name)
            # GPT-2's own linear layer keeps its sizes elsewhere.
            width = layer.nf if hasattr(layer, "nf") else layer.out_features
            setattr(model.get_submodule(owner), leaf, Narrow(layer, width, size, activation))
