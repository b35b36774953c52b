"""Saving: every rank writes its pieces, rank 0 the manifest, and COMMIT last. Which checkpoints there are, and which are kept.

    checkpoints/step-0000100/  rank-00000.safetensors …  manifest.json  COMMIT

The manifest lists every piece (name, kind, shape, box, file, key), each file's bytes and SHA-256, scalars, and the state of the loop.
COMMIT holds the manifest's own SHA-256. A folder without it is no checkpoint. It is written aside too, so that a folder shows up whole;
a save that was killed between COMMIT and the last rename counts, and the next one finishes it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.atomic import flush, write_json
from trainer.checkpoint.boxes import Box, untiled
from trainer.checkpoint.files import COMMIT, MANIFEST, CheckpointError, folder_of, remove, sha256, step_of
from trainer.exchange import exchange

if TYPE_CHECKING:
    from trainer.checkpoint.pieces import Piece
    from trainer.distributed import World
    from trainer.strategies import Placement

FORMAT = 1


def save(root: Path, step: int, placement: Placement, state: dict[str, Any], world: World) -> Path:
    """Write a checkpoint, called by all ranks; returns when it is committed. state: what else the loop needs, JSON-like.

    Raises CheckpointError on every rank when one of them fails (a full disk); older checkpoints are untouched.
    """
    final = folder_of(root, step)
    aside = root / f".{final.name}.partial"
    _agreed(world, "checkpoint/begin", lambda: _begin(root, aside) if world.leads else None)
    entries = _agreed(world, "checkpoint/write", lambda: _write_shard(aside, world.rank, placement.pieces()))
    _agreed(world, "checkpoint/commit", lambda: _commit(aside, final, step, entries, placement.scalars(), state) if world.leads else None)
    return final


def _agreed(world: World, topic: str, act: Callable[[], Any]) -> list[Any]:
    """Every rank's result of one phase, by rank; where one of them failed, CheckpointError on all."""
    error = None
    try:
        word = {"done": act()}
    except Exception as caught:  # whatever it was, the others must hear of it
        error = caught
        word = {"failed": f"{type(caught).__name__}: {caught}"}
    words = [json.loads(text) for text in exchange(world, topic, json.dumps(word))]
    failures = [f"rank {rank}: {word['failed']}" for rank, word in enumerate(words) if "failed" in word]
    if failures:
        raise CheckpointError("the checkpoint was not written; " + "; ".join(failures)) from error
    return [word["done"] for word in words]


def _begin(root: Path, aside: Path) -> None:
    _finish_interrupted(root)
    shutil.rmtree(aside, ignore_errors=True)  # left by a save that was killed
    aside.mkdir(parents=True)


def _write_shard(aside: Path, rank: int, pieces: Iterable[Piece]) -> dict[str, Any]:
    """Write one rank's pieces and their index; the shard's entry in the manifest."""
    from safetensors.torch import save_file

    name = f"rank-{rank:05d}"
    tensors, index = {}, []
    for number, piece in enumerate(pieces):
        key = f"{number:06d}"
        # A clone: what lies on a CPU would otherwise be a view of a larger buffer, which safetensors refuses.
        tensors[key] = piece.tensor.detach().cpu().contiguous().clone()
        place = {"shape": piece.shape, "offset": piece.box.offset, "lengths": piece.box.lengths}
        dtype = str(piece.tensor.dtype).removeprefix("torch.")
        index.append({"name": piece.name, "kind": piece.kind, **place, "dtype": dtype, "key": key})
    path = aside / f"{name}.safetensors"
    save_file(tensors, path)
    flush(path)
    # Too long for the store when there are many tensors: rank 0 reads it here.
    write_json(aside / f"{name}.json", index)
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _commit(aside: Path, final: Path, step: int, shards: list[dict[str, Any]], scalars: dict[str, int], state: dict[str, Any]) -> None:
    pieces = []
    for shard in shards:
        index = (aside / shard["file"]).with_suffix(".json")
        pieces += [{**entry, "file": shard["file"]} for entry in json.loads(index.read_text())]
        index.unlink()
    _require_tiling(pieces)
    manifest = {"format": FORMAT, "step": step, "scalars": scalars, "state": state, "files": shards, "pieces": pieces}
    write_json(aside / MANIFEST, manifest)
    write_json(aside / COMMIT, {"manifest_sha256": sha256(aside / MANIFEST)})
    _show(aside, final)


def _show(aside: Path, final: Path) -> None:
    """Give a committed folder its name. One of this step may lie there, damaged, when a run fell back behind it and came by again."""
    remove(final)
    aside.rename(final)
    flush(final.parent)


def _finish_interrupted(root: Path) -> None:
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


def prune(root: Path, keep: int, newest: int) -> None:
    """Keep the newest committed checkpoints up to step `newest`, which was saved last; called by one rank, outside of a save.

    Those above it were passed over as damaged: they neither count nor stay. What killed saves have left goes too.
    """
    _finish_interrupted(root)
    kept = [folder for step, folder in committed(root) if step <= newest][-keep:]
    for _, folder in folders(root):
        if folder not in kept:
            remove(folder)
    for left in root.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)
