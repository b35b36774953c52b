"""Opening: the newest checkpoint that is whole, its checksums verified before anything of it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.boxes import Box, Shape, inside, intersection
from trainer.checkpoint.files import COMMIT, MANIFEST, CheckpointError, plain, regular, sha256
from trainer.checkpoint.store import FORMAT, folders
from trainer.choices import nearest
from trainer.exchange import exchange

if TYPE_CHECKING:
    import torch

    from trainer.distributed import World


@dataclass
class Opened:
    """A checkpoint that was verified. problems: the newer ones that were passed over, and why."""

    path: Path
    step: int
    state: dict[str, Any]
    read: Reader
    problems: list[str] = field(default_factory=list)


def open_newest(root: Path, world: World, log: Callable[[str], None] = lambda line: None) -> Opened | None:
    """The newest whole checkpoint below root, the same on all ranks; None where there is none at all.

    log: told of each checkpoint that is passed over, on rank 0. Raises CheckpointError where some were committed, but none is whole: to
    begin anew silently would lose them.
    """
    found = [(str(folder), (folder / COMMIT).exists()) for _, folder in folders(root)] if world.leads else None
    found = json.loads(exchange(world, "checkpoint/list", json.dumps(found))[0])
    problems: list[str] = []
    for folder in (Path(name) for name, _ in reversed(found)):
        manifest, complaint = _verified(folder, world)
        if manifest is not None:
            reader = Reader(folder, manifest)
            if problems and world.leads:
                log(f"going on from {folder}; passed over: {'; '.join(problems)}")
            return Opened(folder, manifest["step"], manifest["state"], reader, problems)
        problems.append(complaint)
    if problems and not any(was_committed for _, was_committed in found):
        if world.leads:
            log(f"no checkpoint in {root} yet; passed over: {'; '.join(problems)}")
        return None
    if problems:
        raise CheckpointError(
            f"no checkpoint in {root} is whole: {'; '.join(problems)}; restore one of them, or start anew with resume.overwrite=true"
        )
    return None


def open_one(folder: Path, world: World) -> Opened:
    """One checkpoint, verified. Raises CheckpointError saying what is missing or damaged."""
    manifest, complaint = _verified(folder, world)
    if manifest is None:
        raise CheckpointError(complaint)
    return Opened(folder, manifest["step"], manifest["state"], Reader(folder, manifest))


def shapes_in(folder: Path) -> dict[str, Shape]:
    """Parameters of a checkpoint and their shapes; nothing but the manifest is read. Raises CheckpointError where it is damaged."""
    return {piece["name"]: tuple(piece["shape"]) for piece in _manifest(folder)["pieces"] if piece["kind"] == "parameter"}


def _verified(folder: Path, world: World) -> tuple[dict[str, Any] | None, str]:
    """The manifest where everything is as it was written, else why not; agreed on by all ranks, which share the checksums out."""
    manifest, complaint = None, ""
    try:
        manifest = _manifest(folder)
        for shard in manifest["files"][world.rank :: world.size]:
            _verify_shard(folder, shard)
    except CheckpointError as error:
        complaint = str(error)
    except (OSError, ValueError, KeyError, TypeError) as error:
        complaint = f"{folder} is not a checkpoint of ours: {type(error).__name__}: {error}"
    complaints = [word for word in exchange(world, "checkpoint/verify", complaint) if word]
    return (None, complaints[0]) if complaints else (manifest, "")


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / COMMIT).exists():
        raise CheckpointError(f"{folder} has no {COMMIT}: it was not written to the end")
    commit = json.loads(plain(folder / COMMIT).read_text())
    text = plain(folder / MANIFEST).read_bytes()
    if hashlib.sha256(text).hexdigest() != commit["manifest_sha256"]:
        raise CheckpointError(f"{folder / MANIFEST} does not have the checksum that {COMMIT} gives")
    manifest: dict[str, Any] = json.loads(text)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder} has format {manifest.get('format')!r}; this version reads {FORMAT}")
    names = {shard["file"] for shard in manifest["files"]}
    foreign = {piece["file"] for piece in manifest["pieces"]} - names
    for name in sorted(names | foreign):
        regular(folder, name)
    if foreign:
        raise CheckpointError(f"{folder}: {sorted(foreign)[0]} holds pieces, but the manifest gives no checksum for it")
    return manifest


def _verify_shard(folder: Path, shard: dict[str, Any]) -> None:
    path = regular(folder, shard["file"])
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise CheckpointError(f"{path} has {size:,} bytes, {shard['bytes']:,} were written")
    if sha256(path) != shard["sha256"]:
        raise CheckpointError(f"{path} does not have the checksum that it was written with")


class Reader:
    """A verified checkpoint as one mapping from (name, kind, box) to values; whichever ranks wrote them."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder = folder
        self.scalars: dict[str, int] = manifest["scalars"]
        # By name and kind: a factored moment is smaller than its parameter.
        self.shapes: dict[tuple[str, str], Shape] = {}
        self._pieces: dict[tuple[str, str], list[tuple[Box, str, str, str]]] = {}
        self._files: dict[str, Any] = {}
        for piece in manifest["pieces"]:
            box = Box(tuple(piece["offset"]), tuple(piece["lengths"]))
            self.shapes[piece["name"], piece["kind"]] = tuple(piece["shape"])
            self._pieces.setdefault((piece["name"], piece["kind"]), []).append((box, piece["file"], piece["key"], piece["dtype"]))

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
        out = torch.empty(box.lengths, dtype=getattr(torch, pieces[0][3]))
        filled = 0
        for held, file, key, _ in pieces:
            common = intersection(held, box)
            if common is not None:
                out[common.slices(box.offset)] = self._values(file, key, held, common)
                filled += common.size
        if filled != box.size:
            raise CheckpointError(f"{self.folder}: {filled} of {box.size} values of {name} ({kind}) at {box} are there")
        return out

    def _values(self, file: str, key: str, held: Box, wanted: Box) -> torch.Tensor:
        from safetensors import safe_open

        if file not in self._files:
            self._files[file] = safe_open(regular(self.folder, file), framework="pt", device="cpu")
        opened = self._files[file]
        if not held.lengths:
            return opened.get_tensor(key)
        # Memory-mapped: only what is wanted is read.
        return opened.get_slice(key)[wanted.slices(held.offset)]

    def _instead(self, name: str) -> str:
        kinds = sorted(kind for known, kind in self._pieces if known == name)
        return f" (of it: {', '.join(kinds)})" if kinds else nearest(name, {known for known, _ in self.shapes})
