"""One process: no group, nothing to reduce."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.choices import choice
from trainer.strategies import Placement, Strategy

if TYPE_CHECKING:
    from torch import nn

    from trainer.checkpoint.pieces import Read
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.strategies import BuildOptimizer


@choice
class Single(Strategy):
    """One device, everything on it."""

    name: str = "single"
    processes: ClassVar[int | None] = 1

    def place(self, module: nn.Module, weights: Read, build_optimizer: BuildOptimizer, config: Config, world: World) -> Placement:
        from trainer.models.deferred import materialise
        from trainer.strategies.replicated import Replicated
        from trainer.strategies.torch_driven import Called

        assert world.size == 1, f"strategy=single in a world of {world.size}"
        config.adapter.place(module, weights, world.device)
        materialise(module, weights, world.device)
        called = Called(module, world.device, config.precision.autocast)
        return Replicated(called, module, build_optimizer(module.named_parameters()), world)
