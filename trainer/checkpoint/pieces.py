"""What placements and checkpoints hand to each other: pieces of state by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trainer.checkpoint.boxes import Box, Shape

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Piece:
    """A box of the tensor `name` of a kind (`parameter`, `exp_avg`, `exp_avg_sq`, `momentum`, …).

    shape: of the whole tensor. tensor: the box's values, of shape `box.lengths`, detached; not to be written to.
    """

    name: str
    kind: str
    shape: Shape
    box: Box
    tensor: torch.Tensor


class Read(Protocol):
    """How a placement reads state: a checkpoint seen as one mapping from (name, kind, box) to values."""

    # Whole numbers by name: `optimizer_step`, …
    scalars: dict[str, int]

    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> torch.Tensor:
        """Values of a box, on the CPU. shape: of the whole tensor as the model has it; raises where the checkpoint's is another."""
        ...
