"""The arithmetic of boxes: which part of a tensor a rank holds, and how flat ranges of ZeRO become boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

Shape = tuple[int, ...]


class Box(NamedTuple):
    """A part of a tensor: first index and length along each dimension. A scalar's box is ((), ())."""

    offset: Shape
    lengths: Shape

    @property
    def size(self) -> int:
        return math.prod(self.lengths)

    def slices(self, origin: Shape | None = None) -> tuple[slice, ...]:
        """Index of the box in its tensor, or in another box that begins at `origin`."""
        starts = self.offset if origin is None else tuple(mine - first for mine, first in zip(self.offset, origin, strict=True))
        return tuple(slice(start, start + length) for start, length in zip(starts, self.lengths, strict=True))


def whole(shape: Shape) -> Box:
    """The box that is all of a tensor."""
    return Box((0,) * len(shape), tuple(shape))


def intersection(first: Box, second: Box) -> Box | None:
    """What two boxes share, or None."""
    starts = tuple(map(max, first.offset, second.offset))
    ends = tuple(min(a + m, b + n) for a, m, b, n in zip(*first, *second, strict=True))
    lengths = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return Box(starts, lengths) if all(length > 0 for length in lengths) else None


def inside(box: Box, shape: Shape) -> bool:
    """Whether a box lies within a tensor of this shape."""
    return len(box.offset) == len(box.lengths) == len(shape) and all(
        start >= 0 and length >= 0 and start + length <= size for start, length, size in zip(*box, shape, strict=True)
    )


def rows_of(shape: Shape, rank: int, ranks: int) -> Box | None:
    """The share of one of several ranks when a tensor is cut along its first dimension, as evenly as it goes; None if it has none."""
    if not shape:
        return whole(shape) if rank == 0 else None
    start, end = shape[0] * rank // ranks, shape[0] * (rank + 1) // ranks
    if start == end:
        return None
    return Box((start, *(0,) * (len(shape) - 1)), (end - start, *shape[1:]))


def boxes_of_range(shape: Shape, start: int, length: int) -> Iterator[Box]:
    """The fewest boxes, in order, that make up the flat range [start, start + length) of a row-major tensor.

    A box's values in row-major order are contiguous in the range, so a flat buffer is cut along them and each cut reshaped.
    """
    if length == 0:
        return
    if not shape:
        yield Box((), ())
        return
    stride = math.prod(shape[1:])
    first, within = divmod(start, stride)
    if within or length < stride:
        part = min(stride - within, length)
        for box in boxes_of_range(shape[1:], within, part):
            yield Box((first, *box.offset), (1, *box.lengths))
        yield from boxes_of_range(shape, start + part, length - part)
        return
    rows = length // stride
    yield Box((first, *(0,) * (len(shape) - 1)), (rows, *shape[1:]))
    yield from boxes_of_range(shape, start + rows * stride, length - rows * stride)


def untiled(shape: Shape, boxes: list[Box]) -> str | None:
    """Why boxes do not make up a tensor, each element exactly once; None if they do."""
    outside = [box for box in boxes if not inside(box, shape)]
    if outside:
        return f"{outside[0]} lies outside of {shape}"
    ordered = sorted(boxes)
    for index, box in enumerate(ordered):
        for other in ordered[index + 1 :]:
            # Sorted by first index: nothing after this one can begin within the box.
            if shape and other.offset[0] >= box.offset[0] + box.lengths[0]:
                break
            if not shape or intersection(box, other):
                return f"{box} and {other} overlap"
    missing = math.prod(shape) - sum(box.size for box in boxes)
    return f"{missing} of {math.prod(shape)} values are missing" if missing else None
