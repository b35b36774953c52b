"""The processes of a run: who this rank is, the host-side store, the process group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store


@dataclass(frozen=True)
class World:
    """This rank's place. store: host-side, None where the world is one process without a group."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    store: Store | None = None
    attempt: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0
