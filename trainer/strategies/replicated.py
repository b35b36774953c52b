"""Whole state on every rank: what `single` and `ddp` drive."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.checkpoint.boxes import Box, rows_of
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

    def __init__(self, wrapped: nn.Module, task_module: nn.Module, optimizer: torch.optim.Optimizer, autocast: str | None, world: World):
        assert isinstance(wrapped, DistributedDataParallel), f"Accelerate wrapped nothing: {type(wrapped).__name__}"
        self.ddp = wrapped
        # Which micro-batch is the last is known at its backward, but DDP decides at a forward whether the next backward reduces. So
        # every forward runs without, and `accumulate` arms the reducer as a synchronising forward would have.
        super().__init__(Called(wrapped, world.device, autocast, around=wrapped.no_sync), task_module, optimizer, world)

    def accumulate(self, loss: Tensor, last: bool) -> None:
        if last:
            self.ddp.reducer.prepare_for_forward()
            self.ddp.reducer.prepare_for_backward([])
        # DDP averages over the ranks; a rank's loss is its share of a sum.
        self.scaled(loss * self.data_size).backward()
