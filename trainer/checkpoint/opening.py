"""Opening: the newest checkpoint that is whole, its checksums verified before anything of it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.boxes import Shape
from trainer.checkpoint.files import COMMIT, MANIFEST, CheckpointError, plain, require_shard
from trainer.checkpoint.reading import Reader
from trainer.checkpoint.remote import Fetched, cache_of
from trainer.checkpoint.retention import Found, about, best_of
from trainer.checkpoint.shards import verify, verify_sizes
from trainer.checkpoint.store import FORMAT, committed, folders
from trainer.environment import cores
from trainer.exchange import exchange

if TYPE_CHECKING:
    from trainer.checkpoint.remote import Remote
    from trainer.distributed import World
    from trainer.settings import DefaultCheckpoint


# Manifest, what COMMIT tells, and a complaint where there is no manifest.
Checked = tuple[dict[str, Any] | None, dict[str, Any], str]


@dataclass
class Opened:
    """A checkpoint that was verified. problems: the newer ones that were passed over, and why."""

    path: Path
    step: int
    state: dict[str, Any]
    read: Reader
    about: dict[str, Any]
    problems: list[str] = field(default_factory=list)


def open_newest(root: Path, world: World, log: Callable[[str], None] = lambda line: None, remote: Remote | None = None) -> Opened | None:
    """The newest whole checkpoint below root, or in the other place, the same on all ranks; None where there is none at all.

    log: told of each checkpoint that is passed over, on rank 0. Raises CheckpointError where some were committed, but none is whole: to
    begin anew silently would lose them.
    """
    found = _candidates(root, remote, log) if world.leads else []
    found = json.loads(exchange(world, "checkpoint/list", json.dumps(found))[0])
    problems: list[str] = []
    for step, name, _ in found:
        opened, complaint = _opened(root, step, name, world, remote)
        if opened is not None:
            if problems and world.leads:
                log(f"going on from {opened.path}; passed over: {'; '.join(problems)}")
            opened.problems = problems
            return opened
        problems.append(complaint)
    if problems and not any(was_committed for *_, was_committed in found):
        if world.leads:
            log(f"no checkpoint in {root} yet; passed over: {'; '.join(problems)}")
        return None
    if problems:
        raise CheckpointError(
            f"no checkpoint in {root} is whole: {'; '.join(problems)}; restore one of them, or start anew with resume.overwrite=true"
        )
    return None


def open_best(root: Path, rules: DefaultCheckpoint, world: World, remote: Remote | None = None) -> Opened:
    """The checkpoint with the best figure, here or in the other place. Raises CheckpointError where it is damaged, or there is none."""
    best = -1, ""
    if world.leads:
        found = {each.step: (each, "") for each in (remote.committed() if remote else [])}
        found |= {step: (Found(step, folder, about(folder)), str(folder)) for step, folder in committed(root)}
        step = best_of([found[step][0] for step in sorted(found)], rules)
        best = (-1, "") if step is None else (step, found[step][1])
    step, name = json.loads(exchange(world, "checkpoint/best", json.dumps(best))[0])
    if step < 0:
        raise CheckpointError(f"no checkpoint in {root} has the figure {rules.best}")
    opened, complaint = _opened(root, step, name, world, remote)
    if opened is None:
        raise CheckpointError(f"the checkpoint with the best {rules.best} cannot be read: {complaint}")
    return opened


def _opened(root: Path, step: int, name: str, world: World, remote: Remote | None) -> tuple[Opened | None, str]:
    """A checkpoint here, or there where it has no name here; or None, and what is wrong with it."""
    if name or remote is None:
        folder = path = Path(name)
        fetched = None
        manifest, facts, complaint = _verified(folder, world)
    else:
        folder, path = cache_of(root, step), Path(remote.place(step))
        fetched = Fetched(remote, step, folder)
        manifest, facts, complaint = _verified_there(fetched, world)
    if manifest is None:
        return None, complaint
    return Opened(path, manifest["step"], manifest["state"], Reader(folder, manifest, fetched), facts), ""


def _candidates(root: Path, remote: Remote | None, log: Callable[[str], None]) -> list[tuple[int, str, bool]]:
    """(step, folder here or "" for there, whether it is committed), newest first; of a step that is in both places the one here first."""
    found = [(step, str(folder), (folder / COMMIT).exists()) for step, folder in folders(root)]
    if remote is not None:
        try:
            found += [(each.step, "", True) for each in remote.committed()]
        except Exception as error:  # each protocol has errors of its own
            log(f"{remote.url} cannot be read ({type(error).__name__}: {error}); only checkpoints in {root} are looked at")
    return sorted(found, key=lambda each: (each[0], bool(each[1])), reverse=True)


def open_one(folder: Path, world: World) -> Opened:
    """One checkpoint, verified. Raises CheckpointError saying what is missing or damaged."""
    manifest, facts, complaint = _verified(folder, world)
    if manifest is None:
        raise CheckpointError(complaint)
    return Opened(folder, manifest["step"], manifest["state"], Reader(folder, manifest), facts)


def shapes_in(folder: Path) -> dict[str, Shape]:
    """Parameters of a checkpoint and their shapes; nothing but the manifest is read. Raises CheckpointError where it is damaged."""
    return {piece["name"]: tuple(piece["shape"]) for piece in _manifest(folder)["pieces"] if piece["kind"] == "parameter"}


def state_in(folder: Path) -> dict[str, Any]:
    """What the loop has told of itself in a checkpoint; nothing but the manifest is read. Raises CheckpointError where it is damaged."""
    state: dict[str, Any] = _manifest(folder)["state"]
    return state


def complaint(folder: Path, checksums: bool) -> str:
    """What is wrong with a checkpoint; nothing where it is whole. checksums: read all of it, instead of looking at sizes alone."""
    try:
        files = _manifest(folder)["files"]
        (verify if checksums else verify_sizes)(folder, files)
    except CheckpointError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder} is not a checkpoint of ours: {type(error).__name__}: {error}"
    return ""


def _verified(folder: Path, world: World) -> Checked:
    """A checkpoint here: all of it is as it was written; the ranks share the checksums out."""

    def read() -> tuple[dict[str, Any], dict[str, Any]]:
        manifest, facts = _read(folder)
        verify(folder, manifest["files"], world.rank, world.size, threads=max(1, cores() // world.local_size))
        return manifest, facts

    return _agreed(folder, read, world)


def _verified_there(fetched: Fetched, world: World) -> Checked:
    """A checkpoint there, likewise; what a rank fetches to sum it, none of its machine fetches again to read it."""
    remote, step = fetched.remote, fetched.step

    def read() -> tuple[dict[str, Any], dict[str, Any]]:
        manifest, facts = _parsed(remote.place(step), remote.text(step, COMMIT), remote.text(step, MANIFEST))
        fetched.verify(manifest["files"], world.rank, world.size)
        return manifest, facts

    return _agreed(remote.place(step), read, world)


def _agreed(folder: object, read: Callable[[], tuple[dict[str, Any], dict[str, Any]]], world: World) -> Checked:
    """Manifest and what COMMIT tells where everything is as it was written, else why not; agreed on by all ranks."""
    found, complaint = None, ""
    try:
        found = read()
    except CheckpointError as error:
        complaint = str(error)
    except Exception as error:  # whatever is in a damaged file, and whatever a protocol's library raises
        complaint = f"{folder} is not a checkpoint of ours: {type(error).__name__}: {error}"
    complaints = [word for word in exchange(world, "checkpoint/verify", complaint) if word]
    return (None, {}, complaints[0]) if complaints or found is None else (*found, "")


def _manifest(folder: Path) -> dict[str, Any]:
    return _read(folder)[0]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not (folder / COMMIT).exists():
        raise CheckpointError(f"{folder} has no {COMMIT}: it was not written to the end")
    return _parsed(folder, plain(folder / COMMIT).read_bytes(), plain(folder / MANIFEST).read_bytes())


def _parsed(folder: object, commit: bytes, text: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest, and what COMMIT tells of it. Raises CheckpointError where the two do not fit, or a name leads elsewhere (S02)."""
    facts = json.loads(commit)
    if hashlib.sha256(text).hexdigest() != facts["manifest_sha256"]:
        raise CheckpointError(f"{folder}/{MANIFEST} does not have the checksum that {COMMIT} gives")
    manifest: dict[str, Any] = json.loads(text)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder} has format {manifest.get('format')!r}; this version reads {FORMAT}")
    names = {shard["file"] for shard in manifest["files"]}
    foreign = {piece["file"] for piece in manifest["pieces"]} - names
    for name in sorted(names | foreign):
        require_shard(folder, name)
    if foreign:
        raise CheckpointError(f"{folder}: {sorted(foreign)[0]} holds pieces, but the manifest gives no checksum for it")
    return manifest, facts.get("about", {})
