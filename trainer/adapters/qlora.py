"""LoRA on a base of 4-bit weights (Dettmers et al. 2023)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from trainer.adapters.lora import Lora
from trainer.choices import ConfigError, choice, identity

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainer.checkpoint.pieces import Read

_TYPES = ("nf4", "fp4")


@choice
class QLora(Lora):
    """QLoRA: LoRA beside frozen layers whose weights are kept in 4 bits, by bitsandbytes (https://arxiv.org/abs/2305.14314)."""

    name: str = "qlora"
    bits: str = identity("nf4", help="how a weight is kept: nf4, by quantiles of a normal distribution | fp4, as a number of 4 bits")
    nested: bool = identity(True, help="keep the scales of the weights in 8 bits, too")

    def check(self) -> None:
        super().check()
        if self.bits not in _TYPES:
            raise ConfigError(f"adapter.bits: {self.bits!r}; allowed: {', '.join(_TYPES)}")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError("adapter=qlora: bitsandbytes is not here; pip install 'shardloom[qlora]', or take adapter=lora")

    def place(self, module: nn.Module, weights: Read, device: torch.device) -> None:
        from trainer.adapters.quantized import quantize

        quantize(module, weights, device, self.bits, self.nested)
