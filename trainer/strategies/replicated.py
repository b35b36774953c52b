"""Whole state on every rank: what `single` and `ddp` drive."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.checkpoint.boxes import Box, rows_of
from trainer.optimizers.on_device import OnDevice
from trainer.strategies.rounded import in_bfloat16
from trainer.strategies.torch_driven import Called, TorchPlacement

if TYPE_CHECKING:
    from trainer.distributed import World


class Replicated(TorchPlacement):
    """Whole parameters and moments here; of several ranks, each writes its rows to checkpoints."""

    def __init__(self, called: Called, task_module: nn.Module, optimizer: torch.optim.Optimizer, world: World):
        self.task_module = task_module
        super().__init__(called, list(task_module.named_parameters()), optimizer, world)

    def owned(self, tensor: Tensor) -> Box | None:
        return rows_of(tuple(tensor.shape), self.data_rank, self.data_size)

    def gathered(self) -> AbstractContextManager[nn.Module]:
        return nullcontext(self.task_module)


class Averaged(Replicated):
    """Replicas whose gradients DistributedDataParallel averages."""

    def __init__(
        self,
        wrapped: nn.Module,
        task_module: nn.Module,
        optimizer: torch.optim.Optimizer,
        autocast: str | None,
        world: World,
        reduce_dtype: str = "float32",
    ):
        assert isinstance(wrapped, DistributedDataParallel), f"Accelerate wrapped nothing: {type(wrapped).__name__}"
        self.ddp, self.reduce_dtype = wrapped, reduce_dtype
        if reduce_dtype == "bfloat16":
            wrapped.register_comm_hook(None, in_bfloat16)
        if isinstance(optimizer, OnDevice):
            optimizer.rank, optimizer.ranks = world.rank, world.size
        # Which micro-batch is the last is known at its backward, but DDP decides at a forward whether the next backward reduces. So
        # every forward runs without, and `accumulate` arms the reducer as a synchronising forward would have.
        super().__init__(Called(wrapped, world.device, autocast, around=wrapped.no_sync), task_module, optimizer, world)

    def accumulate(self, loss: Tensor, last: bool) -> None:
        if last:
            self.ddp.reducer.prepare_for_forward()
            self.ddp.reducer.prepare_for_backward([])
        # DDP averages over the ranks; a rank's loss is its share of a sum.
        self.scaled(loss * self.data_size).backward()

    def reductions(self) -> set[torch.dtype]:
        return {getattr(torch, self.reduce_dtype)}

    def asked(self) -> dict[str, str]:
        return {"reduction": self.reduce_dtype}
