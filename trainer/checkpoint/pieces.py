"""A piece: one box of one tensor of the state, by name; and the arithmetic of boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Piece:
    """A box of the tensor `name` of a kind (`parameter`, `exp_avg`, `exp_avg_sq`, `momentum`, …).

    shape: of the whole tensor. offset, lengths: of the box, one entry a dimension. tensor: its values, of shape `lengths`, detached.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    lengths: tuple[int, ...]
    tensor: torch.Tensor


class Read(Protocol):
    """How a placement reads state: a checkpoint seen as one mapping from (name, kind, box) to values."""

    # Scalars by name: `optimizer_step`, …
    scalars: dict[str, int]

    def __call__(self, name: str, kind: str, offset: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor: ...
