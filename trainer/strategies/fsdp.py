"""FSDP2: parameters, gradients and moments sharded by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.choices import choice
from trainer.strategies import Placement, Strategy

if TYPE_CHECKING:
    from torch import nn

    from trainer.config import Config
    from trainer.distributed import World
    from trainer.strategies import BuildOptimizer


@choice
class FSDP(Strategy):
    """Everything sharded."""

    name: str = "fsdp"

    def place(self, module: nn.Module, build_optimizer: BuildOptimizer, config: Config, world: World) -> Placement:
        raise NotImplementedError
