"""What a run came to, read from its directory: the curve, the samples of every step, the final weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.run import RunDir
from trainer.tracking import jsonl

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.checkpoint.opening import Opened

# Read from a checkpoint at once, per run: values of one tensor.
_VALUES = 1 << 24


@dataclass(frozen=True)
class Distance:
    """Relative L2 distance of two runs' parameters; the tensor that is furthest, by its own relative distance."""

    whole: float
    furthest: str
    at_furthest: float

    @property
    def equal(self) -> bool:
        """To the last bit."""
        return self.whole == 0


def curve(run: RunDir) -> dict[int, dict[str, Any]]:
    """Step → its line of metrics.jsonl with loss and grad_norm, as the steps that count were computed (log_every=1 logs each)."""
    lines = [line for line in jsonl.read(run / jsonl.METRICS) if "interval_steps" in line]
    return {line["step"]: line for line in jsonl.kept(lines)}


def samples(run: RunDir) -> dict[int, list[int]]:
    """Step → the rows that it consumed over all ranks, sorted, from the ledger.

    Of a step that was computed several times, the newest attempt counts: it is newest because no checkpoint had kept the one before.
    """
    newest: dict[int, tuple[int, list[int]]] = {}
    for path in sorted((run / "ledger").glob("rank-*.jsonl")):
        for line in jsonl.read(path):
            attempt, rows = newest.get(line["step"], (-1, []))
            if line["attempt"] > attempt:
                newest[line["step"]] = line["attempt"], list(line["rows"])
            elif line["attempt"] == attempt:
                rows.extend(line["rows"])
    return {step: sorted(rows) for step, (_, rows) in sorted(newest.items())}


def final(run: RunDir) -> Opened:
    """The newest checkpoint. Raises CheckpointError where it is not whole."""
    from trainer.checkpoint.opening import open_one
    from trainer.distributed import alone
    from trainer.run import checkpoint_of

    return open_one(checkpoint_of(str(run.path)), alone())


def distance(first: Opened, second: Opened) -> Distance:
    """How far the parameters of one checkpoint are from another's: tensor by tensor, in slices, so that models of any size can be held."""
    apart, size = 0.0, 0.0
    furthest, most = "", 0.0
    for (name, kind), shape in sorted(first.read.shapes.items()):
        if kind != "parameter":
            continue
        own_apart, own_size = 0.0, 0.0
        for box in _slices(shape):
            theirs, ours = (one.read(name, kind, shape, box).double() for one in (first, second))
            own_apart += float((ours - theirs).square().sum())
            own_size += float(theirs.square().sum())
        apart, size = apart + own_apart, size + own_size
        relative = math.sqrt(own_apart / own_size) if own_size else math.sqrt(own_apart)
        if not furthest or relative > most:
            furthest, most = name, relative
    return Distance(math.sqrt(apart / size) if size else math.sqrt(apart), furthest, most)


def _slices(shape: tuple[int, ...]) -> Iterable[Any]:
    """Boxes of whole rows that make up a tensor."""
    from trainer.checkpoint.boxes import Box

    if not shape:
        return [Box((), ())]
    rows = max(1, _VALUES // max(1, math.prod(shape[1:])))
    zeros = (0,) * (len(shape) - 1)
    return [Box((start, *zeros), (min(rows, shape[0] - start), *shape[1:])) for start in range(0, shape[0], rows)]


def relative(first: float | None, second: float | None) -> float:
    """|first − second| ÷ |first|; infinite where only one of them is finite (null in the log)."""
    if first is None or second is None:
        return 0.0 if first is second else math.inf
    return 0.0 if first == second else abs(first - second) / abs(first) if first else math.inf


def write_json(path: Path, verdict: dict[str, Any]) -> None:
    """A verdict as JSON, for programs."""
    from trainer.atomic import write_text

    write_text(path, json.dumps(jsonl.finite(verdict), indent=1) + "\n")
