"""Where a run's state lives: one file a strategy. A strategy knows no objective, and the loop knows no engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import Choice

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainer.adapters import Budget
    from trainer.checkpoint.pieces import Piece, Read
    from trainer.config import Config
    from trainer.distributed import World

    BuildOptimizer = Callable[[Iterator[tuple[str, torch.nn.Parameter]]], torch.optim.Optimizer]

CHOICES = ("single", "ddp", "zero", "fsdp", "hsdp")


def tell_engines(device_type: str) -> None:
    """Say where this process computes before Accelerate is imported: that imports DeepSpeed, which on a CPU warns that it had to guess."""
    os.environ.setdefault("DS_ACCELERATOR", device_type)


class Strategy(Choice, group="strategy", role="placement"):
    """How state is placed on devices."""

    # None: any number of processes.
    processes: ClassVar[int | None] = None

    def fits(self, processes: int, per_node: int) -> None:
        """Raise ConfigError where the options do not fit so many processes, of them so many on a node; before launch."""

    def composed(self, config: Config) -> None:
        """Raise ConfigError for what takes long to look up: once, where a run is composed, and not again in its ranks."""

    def place(self, module: nn.Module, weights: Read, build_optimizer: BuildOptimizer, config: Config, world: World) -> Placement:
        """Put a task's module and its optimizer on the devices of this world; the optimizer has those that require gradients, no others.

        module: its parameters are on the meta device, its buffers real, its ties made. weights: where values come from, by name, kind
        `parameter` and box, on the CPU: first values, a pretrained directory, a checkpoint; every rank reads the same. What holds whole
        parameters fills them by `trainer.models.deferred.materialise`; what cuts them cuts the module as it is, makes room for this
        rank's part (`exchange_parameters` keeps ties), and reads that box by box: at no time more than its share and the tensor in hand.
        """
        raise NotImplementedError


class Placement:
    """All that the loop sees of an engine.

    module: what the loop calls; forward(batch) → {term: sum of losses}, autocast included.
    data_rank, data_size: this rank's place among those that take different rows.
    """

    module: nn.Module
    data_rank: int
    data_size: int

    def accumulate(self, loss: torch.Tensor, last: bool) -> None:
        """Backward of one micro-batch. loss: this rank's share of the global objective; the engine's mean over ranks is undone here."""
        raise NotImplementedError

    def unscaled(self) -> AbstractContextManager[None]:
        """Backward passes inside are of the loss itself, where they would be of a scaled one (fp16), which can overflow."""
        return nullcontext()

    def finish(self, lr_factor: float, max_norm: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip, step every group at its base rate × lr_factor, clear gradients.

        Returns (global gradient norm before clipping, 1.0 if the update was applied and 0.0 if it was dropped as non-finite),
        both scalars on the device, without waiting for them.
        """
        raise NotImplementedError

    def allocate(self, budget: Budget | None) -> None:
        """Of the ranks of adapted layers keep those that matter most, of all layers together; None: all that there are."""
        if budget is not None:
            raise NotImplementedError

    def discard(self) -> torch.Tensor:
        """Drop the accumulated gradients; the global norm they had, as a device scalar. No parameter, moment or counter changes."""
        raise NotImplementedError

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's share of the gradients accumulated so far, reduced over the ranks, by parameter name; called by every rank.

        Only `discard` may follow: a strategy may have to reduce them for this.
        """
        raise NotImplementedError

    def pieces(self) -> Iterator[Piece]:
        """This rank's share of the state of what is trained, by name; over all ranks each tensor is tiled exactly once."""
        raise NotImplementedError

    def scalars(self) -> dict[str, int]:
        """State that is a whole number and the same on all ranks: `optimizer_step`, the updates that were applied."""
        raise NotImplementedError

    def load(self, read: Read) -> None:
        """Set trained parameters, moments and step counts from a checkpoint: this rank's share."""
        raise NotImplementedError

    def averaged(self) -> AbstractContextManager[None]:
        """Forward passes and `gathered` inside are of the moving averages of the weights (`optim.ema`); entered by every rank."""
        raise NotImplementedError

    def gathered(self) -> AbstractContextManager[nn.Module]:
        """Whole parameters for export and generation; entered by every rank, of use on rank 0."""
        raise NotImplementedError

    def state_table(self) -> list[dict[str, Any]]:
        """Rows {kind, dtype, bytes, device} of parameters, gradients and moments held here; and the dtype of reductions, of no bytes."""
        raise NotImplementedError

    def asked(self) -> dict[str, str]:
        """kind → dtype, where the user has asked for another than float32: the proof at start holds each against what is there."""
        return {}

    def on_host(self) -> set[str]:
        """Kinds that have to lie in the host's memory, whatever the device: the proof at start looks where they are."""
        return set()

    def shares(self) -> dict[str, int]:
        """kind → most bytes that theory lets this rank hold: the proof at start compares `state_table` with it."""
        raise NotImplementedError
