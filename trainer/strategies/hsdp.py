"""Hybrid sharding: state cut over the processes of a group, and each group a replica of the others; gathers stay inside of a group.

What is between nodes is then one all-reduce of each rank's share of the gradients, instead of gathers of every block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.choices import ConfigError, choice, placement, require_positive
from trainer.strategies.fsdp import FSDP

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from trainer.distributed import World


@choice
class HSDP(FSDP):
    """Every tensor cut by rows over a group of processes, such as a node's; the groups are replicas."""

    name: str = "hsdp"
    shard_size: int | None = placement(None, help="processes that share one copy of the state; default: those of a node")

    def check(self) -> None:
        super().check()
        require_positive(self, "shard_size", optional=True)

    def fits(self, processes: int, per_node: int) -> None:
        shard = self.shard_size or per_node
        if processes % shard:
            fitting = [str(size) for size in range(1, processes + 1) if processes % size == 0]
            raise ConfigError(
                f"strategy.shard_size: {shard} does not divide {processes} processes into groups; allowed: {', '.join(fitting)}"
            )
        self.reshards_into(shard)

    def mesh(self, world: World) -> DeviceMesh:
        """Replicas × rows: neighbouring ranks, those of a node first, share one copy."""
        from torch.distributed.device_mesh import init_device_mesh

        shard = self.shard_size or world.local_size
        return init_device_mesh(world.device.type, (world.size // shard, shard), mesh_dim_names=("replica", "shard"))
