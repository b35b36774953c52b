"""Reading: a verified checkpoint as values by name; of its files nothing is read but what is asked for, one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.boxes import Box, Shape, inside, intersection
from trainer.checkpoint.files import CheckpointError, regular
from trainer.choices import nearest

if TYPE_CHECKING:
    import torch

    from trainer.checkpoint.remote import Fetched


@dataclass(frozen=True)
class Part:
    """A box of a tensor, and where its values lie. start: their first byte in the file."""

    box: Box
    file: str
    key: str
    dtype: str
    start: int

    def bytes_of(self, wanted: Box) -> tuple[int, int]:
        """First byte and end of the range of the file that holds a box within this one."""
        import torch

        first, last, stride = 0, 0, 1
        for offset, length, at, count in zip(*(reversed(side) for side in (*self.box, *wanted)), strict=True):
            first += (at - offset) * stride
            last += (at + count - 1 - offset) * stride
            stride *= length
        size = torch.empty(0, dtype=getattr(torch, self.dtype)).element_size()
        return self.start + first * size, self.start + (last + 1) * size


class Reader:
    """A verified checkpoint as one mapping from (name, kind, box) to values; whichever ranks wrote them.

    fetched: brings here what is read, where the files are elsewhere.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], fetched: Fetched | None = None):
        self.folder, self._fetched = folder, fetched
        self.scalars: dict[str, int] = manifest["scalars"]
        # By name and kind: a factored moment is smaller than its parameter.
        self.shapes: dict[tuple[str, str], Shape] = {}
        self._pieces: dict[tuple[str, str], list[Part]] = {}
        # Bytes of each file's header.
        self._headers: dict[str, int] = {}
        self._files: dict[str, Any] = {}
        for piece in manifest["pieces"]:
            box = Box(tuple(piece["offset"]), tuple(piece["lengths"]))
            part = Part(box, piece["file"], piece["key"], piece["dtype"], piece["start"])
            self.shapes[piece["name"], piece["kind"]] = tuple(piece["shape"])
            self._pieces.setdefault((piece["name"], piece["kind"]), []).append(part)
            self._headers[part.file] = min(part.start, self._headers.get(part.file, part.start))

    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> torch.Tensor:
        """Values of a box, on the CPU. Raises CheckpointError where the checkpoint does not hold them."""
        import torch

        pieces = self._pieces.get((name, kind))
        if pieces is None:
            raise CheckpointError(f"{self.folder} holds no {kind} of {name}{self._instead(name)}; it is of another model or optimizer")
        if self.shapes[name, kind] != tuple(shape):
            raise CheckpointError(f"{self.folder}: {name} has shape {self.shapes[name, kind]}, the model's has {tuple(shape)}")
        if not inside(box, shape):
            raise ValueError(f"{box} is not within {name} of shape {shape}")
        if len(pieces) == 1 and intersection(box, pieces[0].box) == box:
            return self._values(pieces[0], box)
        out = torch.empty(box.lengths, dtype=getattr(torch, pieces[0].dtype))
        filled = 0
        for part in pieces:
            common = intersection(part.box, box)
            if common is not None:
                out[common.slices(box.offset)] = self._values(part, common)
                filled += common.size
        if filled != box.size:
            raise CheckpointError(f"{self.folder}: {filled} of {box.size} values of {name} ({kind}) at {box} are there")
        return out

    def _values(self, part: Part, wanted: Box) -> torch.Tensor:
        from safetensors import safe_open

        if self._fetched is not None:
            self._fetched.ensure(part.file, 0, self._headers[part.file])
            self._fetched.ensure(part.file, *part.bytes_of(wanted))
        if part.file not in self._files:
            self._files[part.file] = safe_open(regular(self.folder, part.file), framework="pt", device="cpu")
        opened = self._files[part.file]
        if not part.box.lengths:
            return opened.get_tensor(part.key)
        # Memory-mapped: only what is wanted is read.
        return opened.get_slice(part.key)[wanted.slices(part.box.offset)]

    def _instead(self, name: str) -> str:
        kinds = sorted(kind for known, kind in self._pieces if known == name)
        return f" (of it: {', '.join(kinds)})" if kinds else nearest(name, {known for known, _ in self.shapes})
