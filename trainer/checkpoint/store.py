"""Saving: every rank writes its pieces, rank 0 the manifest, and COMMIT last. Which checkpoints there are.

    checkpoints/step-0000100/  rank-00000.safetensors …  manifest.json  COMMIT

The manifest lists every piece (name, kind, shape, box, file, key), each file's bytes and the SHA-256 of its blocks, scalars, and the state
of the loop. COMMIT holds the manifest's own SHA-256, and what `trainer runs checkpoints` tells. A folder without it is no checkpoint. It is
written aside too, so that a folder shows up whole; a save that was killed between COMMIT and the last rename counts, and the next one
finishes it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.atomic import flush, write_json
from trainer.checkpoint import shards
from trainer.checkpoint.boxes import Box, untiled
from trainer.checkpoint.files import COMMIT, MANIFEST, CheckpointError, DiskFullError, folder_of, remove, sha256, shard_of, step_of
from trainer.exchange import exchange

if TYPE_CHECKING:
    from trainer.checkpoint.pieces import Piece
    from trainer.distributed import World
    from trainer.strategies import Placement

FORMAT = 2
# No room on the device, or within the quota.
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Beside a rank's values: the header of its shard, its part of the manifest.
_MARGIN = 1 << 16


@dataclass(frozen=True)
class Snapshot:
    """What one rank saves. pieces: their values stay as they are until they are written.

    scalars: of the placement. state: what else the loop needs. about: what a person wants to know of the checkpoint; nothing is computed
    from it. All three JSON-like, and the same on all ranks.
    """

    step: int
    pieces: list[Piece]
    scalars: dict[str, int]
    state: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A checkpoint that is committed. bytes: of all shards."""

    step: int
    path: Path
    bytes: int


def snapshot(step: int, placement: Placement, state: dict[str, Any], about: dict[str, Any] | None = None) -> Snapshot:
    """This rank's part of a checkpoint, sharing memory with the state."""
    return Snapshot(step, list(placement.pieces()), placement.scalars(), state, about or {})


def save(root: Path, step: int, placement: Placement, state: dict[str, Any], world: World) -> Path:
    """Write a checkpoint, called by all ranks; returns when it is committed. state: what else the loop needs, JSON-like.

    Raises CheckpointError on every rank when one of them fails (DiskFullError: for want of room); older checkpoints are untouched.
    """
    return write(root, snapshot(step, placement, state), world).path


def write(root: Path, taken: Snapshot, world: World) -> Written:
    """The same for a snapshot. Touches no device and no process group, so that it can run beside the loop, with a store of its own."""
    final = folder_of(root, taken.step)
    aside = root / f".{final.name}.partial"
    try:
        needed = sum(agreed(world, "checkpoint/size", lambda: shards.bytes_of(taken.pieces) + _MARGIN))
        agreed(world, "checkpoint/begin", lambda: _begin(root, aside, needed) if world.leads else None)
        entries = agreed(world, "checkpoint/write", lambda: _write_shard(aside, world.rank, taken.pieces))
        agreed(world, "checkpoint/commit", lambda: _commit(aside, final, taken, entries) if world.leads else None)
    except CheckpointError:
        # All ranks have stopped writing. Once committed it counts, whatever failed after that.
        if world.leads and not (aside / COMMIT).exists():
            shutil.rmtree(aside, ignore_errors=True)
        raise
    return Written(taken.step, final, sum(entry["bytes"] for entry in entries))


def agreed(world: World, topic: str, act: Callable[[], Any], failure: str = "the checkpoint was not written") -> list[Any]:
    """Every rank's result of one phase, by rank; where one of them failed, CheckpointError on all."""
    error = None
    try:
        word = {"done": act()}
    except Exception as caught:  # whatever it was, the others must hear of it
        error = caught
        word = {"failed": f"{type(caught).__name__}: {caught}", "full": isinstance(caught, OSError) and caught.errno in _FULL}
    words = [json.loads(text) for text in exchange(world, topic, json.dumps(word))]
    failed = {rank: word for rank, word in enumerate(words) if "failed" in word}
    if failed:
        kind = DiskFullError if any(word["full"] for word in failed.values()) else CheckpointError
        told = "; ".join(f"rank {rank}: {word['failed']}" for rank, word in failed.items())
        raise kind(f"{failure}; {told}") from error
    return [word["done"] for word in words]


def _begin(root: Path, aside: Path, needed: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    finish_interrupted(root)
    shutil.rmtree(aside, ignore_errors=True)  # left by a save that was killed
    disk = os.statvfs(root)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        # Told before a gigabyte is written in vain; what a quota leaves is known only by trying.
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed, {free:,} are free", str(root))
    aside.mkdir()


def _write_shard(aside: Path, rank: int, pieces: list[Piece]) -> dict[str, Any]:
    """Write one rank's pieces and their index; the shard's entry in the manifest but for its checksums."""
    path = aside / shard_of(rank)
    index = shards.write(path, pieces)
    # Too long for the store when there are many tensors: rank 0 reads it here.
    write_json(path.with_suffix(".json"), index)
    return {"file": path.name, "bytes": index["bytes"]}


def _commit(aside: Path, final: Path, taken: Snapshot, entries: list[dict[str, Any]]) -> None:
    files, pieces = [], []
    for entry in entries:
        path = (aside / entry["file"]).with_suffix(".json")
        index = json.loads(path.read_text())
        files.append({**entry, "blocks": index["blocks"]})
        pieces += [{**piece, "file": entry["file"]} for piece in index["pieces"]]
        path.unlink()
    _require_tiling(pieces)
    manifest = {"format": FORMAT, "step": taken.step, "scalars": taken.scalars, "state": taken.state, "files": files, "pieces": pieces}
    write_json(aside / MANIFEST, manifest)
    size = sum(entry["bytes"] for entry in entries)
    write_json(aside / COMMIT, {"manifest_sha256": sha256(aside / MANIFEST), "about": {**taken.about, "bytes": size}})
    _show(aside, final)


def _show(aside: Path, final: Path) -> None:
    """Give a committed folder its name. One of this step may lie there, damaged, when a run fell back behind it and came by again."""
    remove(final)
    aside.rename(final)
    flush(final.parent)


def finish_interrupted(root: Path) -> None:
    """Name what a killed save has committed; outside of a save."""
    for step, folder in committed(root):
        if folder != folder_of(root, step):
            _show(folder, folder_of(root, step))


def _require_tiling(pieces: list[dict[str, Any]]) -> None:
    """The ranks' pieces together are every tensor, each value once; else a bug of a placement would be found at a resume, too late."""
    boxes: dict[tuple[str, str], list[Box]] = {}
    shapes = {}
    for piece in pieces:
        boxes.setdefault((piece["name"], piece["kind"]), []).append(Box(tuple(piece["offset"]), tuple(piece["lengths"])))
        shapes[piece["name"], piece["kind"]] = tuple(piece["shape"])
    for (name, kind), found in boxes.items():
        reason = untiled(shapes[name, kind], found)
        if reason:
            raise CheckpointError(f"the ranks' pieces of {name} ({kind}) do not make it up: {reason}")


def committed(root: Path) -> list[tuple[int, Path]]:
    """Checkpoints that were written to the end, (step, folder), oldest first."""
    return [(step, folder) for step, folder in folders(root) if (folder / COMMIT).is_file()]


def folders(root: Path) -> list[tuple[int, Path]]:
    """Folders of checkpoints, committed or not, oldest first; of a step without one, what a save has committed but not yet named."""
    if not root.is_dir():
        return []
    found = {step: folder for folder in root.iterdir() if (step := step_of(folder)) is not None}
    for aside in root.glob(f".step-*.partial/{COMMIT}"):
        step = step_of(Path(aside.parent.name.removeprefix(".").removesuffix(".partial")))
        if step is not None:
            found.setdefault(step, aside.parent)
    return sorted(found.items())
