"""FSDP2: parameters, gradients and moments sharded by row over the ranks; torch's own `fully_shard`.

Not through Accelerate, which ignores its FSDP plugin on a CPU without a word and would train unsynchronised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError, choice, placement, require_at_least
from trainer.strategies import Placement, Strategy

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from trainer.checkpoint.pieces import Read
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.strategies import BuildOptimizer

_DTYPES = ("float32", "bfloat16")


@choice
class FSDP(Strategy):
    """Every tensor cut by rows; a transformer block is gathered while it computes."""

    name: str = "fsdp"
    reshard_after_forward: Any = placement(
        True, help="true: gathered anew for backward; false: kept, for memory; a number: cut over so many neighbouring processes"
    )
    param_dtype: str = placement("float32", help="gathered and computed in: float32 | bfloat16; what is stored is float32 in any case")
    reduce_dtype: str = placement("float32", help="gradients are added up in: float32 | bfloat16")
    prefetch: int = placement(0, help="blocks to gather ahead of the one that computes; 0: as FSDP does by itself")
    cpu_offload: bool = placement(False, help="state in the host's memory, and the update on the host")

    def check(self) -> None:
        again = self.reshard_after_forward
        if not isinstance(again, bool) and not (isinstance(again, int) and again > 1):
            raise ConfigError(f"strategy.reshard_after_forward: {again}; allowed: true, false, or a number of processes from 2")
        for field in ("param_dtype", "reduce_dtype"):
            if getattr(self, field) not in _DTYPES:
                raise ConfigError(f"strategy.{field}: {getattr(self, field)}; allowed: {', '.join(_DTYPES)}")
        require_at_least(self, 0, "prefetch")

    def fits(self, processes: int, per_node: int) -> None:
        self.reshards_into(processes)

    def reshards_into(self, shard: int) -> None:
        """Raise ConfigError where the rows of so many processes cannot be cut over groups of `reshard_after_forward`."""
        again = self.reshard_after_forward
        if not isinstance(again, bool) and (again >= shard or shard % again):
            raise ConfigError(
                f"strategy.reshard_after_forward: {again} does not divide the {shard} processes that share the state into smaller groups; "
                "set true, false, or a divisor of that number"
            )

    def mesh(self, world: World) -> DeviceMesh:
        """The ranks that share the rows out: all of them."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))

    def place(self, module: nn.Module, weights: Read, build_optimizer: BuildOptimizer, config: Config, world: World) -> Placement:
        import copy

        from trainer.strategies.sharded import Sharded, fill, shard
        from trainer.strategies.torch_driven import Called

        skeleton = copy.deepcopy(module)
        mesh = self.mesh(world)
        shard(module, mesh, self)
        fill(module, weights, world.device, on_host=self.cpu_offload)
        called = Called(module, world.device, config.precision.autocast)
        return Sharded(called, module, skeleton, build_optimizer(module.named_parameters()), world, mesh, self.reduce_dtype)
