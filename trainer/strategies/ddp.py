"""Data parallelism: every rank holds everything, gradients are averaged."""

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
class DDP(Strategy):
    """Everything on every device."""

    name: str = "ddp"

    def place(self, module: nn.Module, build_optimizer: BuildOptimizer, config: Config, world: World) -> Placement:
        raise NotImplementedError
