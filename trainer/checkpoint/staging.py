"""Host memory that a rank's state is copied to at a step's border, so that the loop may change it while it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.checkpoint.shards import bytes_of

if TYPE_CHECKING:
    import torch

    from trainer.checkpoint.pieces import Piece

# Every part begins at a multiple of it, whatever its type.
_ALIGNED = 64


class Staging:
    """One buffer, kept from save to save: memory that is touched for the first time costs many times its copying.

    For a GPU its pages are locked, so that the device writes into them at the full rate of the bus.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._buffer: torch.Tensor | None = None

    def copied(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The same pieces, of values in the buffer, which are whole on return; they stand until the next call."""
        import torch

        starts, size = [], 0
        for piece in pieces:
            starts.append(size)
            size += -(-bytes_of([piece]) // _ALIGNED) * _ALIGNED
        buffer = self._of(size)
        found = []
        for start, piece in zip(starts, pieces, strict=True):
            flat = buffer[start : start + bytes_of([piece])]
            values = flat.view(piece.tensor.dtype).view(piece.tensor.shape)
            values.copy_(piece.tensor.detach(), non_blocking=True)
            found.append(dataclasses.replace(piece, tensor=values))
        if self._device.type == "cuda":
            # Copies follow the step that made the state, on its stream.
            torch.cuda.current_stream(self._device).synchronize()
        return found

    def _of(self, size: int) -> torch.Tensor:
        import torch

        if self._buffer is None or self._buffer.numel() < size:
            self._free()
            self._buffer = torch.empty(size, dtype=torch.uint8)
            if self._device.type == "cuda":
                # torch's own pinned allocation rounds up to a power of two. Where pages cannot be locked, copying is slower and right.
                torch.cuda.cudart().cudaHostRegister(self._buffer.data_ptr(), size, 0)
        return self._buffer

    def _free(self) -> None:
        import torch

        if self._buffer is not None and self._buffer.is_pinned():
            torch.cuda.cudart().cudaHostUnregister(self._buffer.data_ptr())
        self._buffer = None
