"""FSDP2: parameters, gradients and moments sharded by row over the ranks; torch's own `fully_shard`.

Not through Accelerate, which ignores its FSDP plugin on a CPU without a word and would train unsynchronised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.choices import choice
from trainer.strategies import Placement, Strategy

if TYPE_CHECKING:
    from torch import nn

    from trainer.checkpoint.pieces import Read
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.strategies import BuildOptimizer


@choice
class FSDP(Strategy):
    """Every tensor cut by rows; a transformer block is gathered while it computes."""

    name: str = "fsdp"

    def place(self, module: nn.Module, weights: Read, build_optimizer: BuildOptimizer, config: Config, world: World) -> Placement:
        import copy

        from trainer.strategies.sharded import Sharded, fill, shard
        from trainer.strategies.torch_driven import Called

        skeleton = copy.deepcopy(module)
        shard(module, world)
        fill(module, weights, world.device)
        called = Called(module, world.device, config.precision.autocast)
        return Sharded(called, module, skeleton, build_optimizer(module.named_parameters()), world)
