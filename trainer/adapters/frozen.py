"""Frozen parameters: which they are, where their values come from, and how a checkpoint that does not hold them is bound to that."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from trainer import averaging
from trainer.checkpoint.boxes import Box, Shape, whole
from trainer.choices import ConfigError, nearest
from trainer.models.deferred import First

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.checkpoint.pieces import Read
    from trainer.checkpoint.reading import Reader


@dataclass(frozen=True)
class Base:
    """Where frozen parameters come from, as the checkpoints beside it tell. frozen: their names; digest: of their values."""

    source: str
    digest: str
    frozen: tuple[str, ...]

    def told(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"source": self.source, "digest": self.digest, "frozen": list(self.frozen)}

    def refuse_other(self, theirs: Mapping[str, Any], mend: str) -> None:
        """Raise ConfigError where a checkpoint (what it tells) was trained beside other values than these."""
        if (apart := sorted(set(theirs["frozen"]) ^ set(self.frozen))) or theirs["digest"] != self.digest:
            what = f"other parameters were frozen there ({apart[0]} …)" if apart else "its values are not those that were trained with"
            raise ConfigError(
                f"{self.source}: {what} (digest {theirs['digest']} there, {self.digest} here). A checkpoint of a run with frozen "
                f"parameters holds only what is trained, and means nothing beside another model; {mend}"
            )


def freeze(parameters: Iterable[tuple[str, nn.Parameter]], patterns: Sequence[str]) -> None:
    """Freeze what the patterns of `optim.freeze` name. Raises ConfigError for one that matches nothing, and where nothing is left."""
    named = list(parameters)
    for pattern in patterns:
        matched = [parameter for name, parameter in named if fnmatchcase(name, pattern)]
        if not matched:
            names = [name for name, _ in named]
            some = ", ".join(names[:3])
            raise ConfigError(f"optim.freeze: {pattern!r} matches no parameter; the model has {some} …{nearest(pattern, names)}")
        for parameter in matched:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for _, parameter in named):
        raise ConfigError(f"optim.freeze: {list(patterns)} freezes every parameter; leave something to train")


class Composed:
    """Values of a module of which a part is frozen: of some parameters from a base, of all others from somewhere else.

    origin: names of those that the base has → their names there. shapes: of every parameter. averages: of what is trained, moving
    averages are read for parameters.
    """

    def __init__(
        self, base: Read, rest: Read | Reader, origin: Mapping[str, str], shapes: Mapping[str, Shape], averages: bool = False
    ) -> None:
        self.base, self.rest, self.origin = base, rest, origin
        self.kind = averaging.KIND if averages else "parameter"
        self.scalars = rest.scalars
        # As a checkpoint's `Reader` has them.
        self.shapes = {(name, "parameter"): shape for name, shape in shapes.items()}

    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> Tensor:
        if kind == "parameter" and name in self.origin:
            return self.base(self.origin[name], kind, shape, box)
        return self.rest(name, self.kind if kind == "parameter" else kind, shape, box)


def digest_of(base: Read, shapes: Mapping[str, Shape]) -> str:
    """A short hash of names, shapes and values: the first row of each tensor, the last one and one between; or the seed of first values."""
    found = hashlib.sha256()
    for name, shape in sorted(shapes.items()):
        found.update(f"{name}{shape}".encode())
        if isinstance(base, First):
            found.update(struct.pack("<q", base.seed))
            continue
        for row in sorted({0, shape[0] // 2, shape[0] - 1}) if shape else [0]:
            box = Box((row, *(0,) * (len(shape) - 1)), (1, *shape[1:])) if shape else whole(shape)
            found.update(base(name, "parameter", shape, box).float().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
