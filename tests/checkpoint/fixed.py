"""State that is not a model's: two tensors and a scalar; and what a checkpoint holds of it."""

from __future__ import annotations

import torch

from trainer.checkpoint.boxes import whole
from trainer.checkpoint.pieces import Piece
from trainer.distributed import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


class Fixed:
    """A placement's part in a save."""

    def __init__(self, value=1.0):
        self.tensors = {"a.weight": torch.full((3, 5), value), "scale": torch.tensor(value)}

    def pieces(self):
        for name, tensor in self.tensors.items():
            yield Piece(name, "parameter", tuple(tensor.shape), whole(tuple(tensor.shape)), tensor)

    def scalars(self):
        return {"optimizer_step": 3}


def value(opened):
    return opened.read("a.weight", "parameter", (3, 5), whole((3, 5)))[0, 0].item()
