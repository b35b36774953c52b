"""Which checkpoints are kept, and what for; the others are removed after a save."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainer.checkpoint.files import COMMIT, CheckpointError, plain, remove
from trainer.checkpoint.store import committed, finish_interrupted, folders
from trainer.tracking.figures import is_lower_better

if TYPE_CHECKING:
    from trainer.settings import DefaultCheckpoint


@dataclass(frozen=True)
class Found:
    """A committed checkpoint, and what COMMIT tells of it."""

    step: int
    folder: Path
    about: dict[str, Any]


@dataclass(frozen=True)
class Held(Found):
    """The same. recent: whether it is among the newest, in words. promised: what else it is kept for."""

    recent: str
    promised: list[str]

    @property
    def reasons(self) -> list[str]:
        """What it is kept for; none: it can go."""
        return [*filter(None, [self.recent]), *self.promised]


def about(folder: Path) -> dict[str, Any]:
    """What COMMIT tells of a checkpoint (time, bytes, strategy, world_size, metrics, …); empty where it cannot be read."""
    try:
        found = json.loads(plain(folder / COMMIT).read_text())["about"]
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return {}
    return found if isinstance(found, dict) else {}


def held(root: Path, rules: DefaultCheckpoint, starts: Mapping[Path, str] | None = None, newest: float = math.inf) -> list[Held]:
    """The committed checkpoints up to step `newest`, oldest first, and what each is kept for.

    starts: checkpoints that other runs start from, and which runs.
    """
    return kept_for([Found(step, folder, about(folder)) for step, folder in committed(root) if step <= newest], rules, starts)


def kept_for(found: list[Found], rules: DefaultCheckpoint, starts: Mapping[Path, str] | None = None) -> list[Held]:
    """The same for checkpoints wherever they are, oldest first."""
    lasting = {each.step for each in found[-rules.keep :]}
    best = best_of(found, rules)
    kept = []
    for each in found:
        step, folder = each.step, each.folder
        recent = "newest" if step == found[-1].step else f"one of the newest {rules.keep}" if step in lasting else ""
        promised = [f"best {rules.best}"] if step == best else []
        promised += [f"every {rules.keep_every} steps"] if rules.keep_every and step % rules.keep_every == 0 else []
        promised += [f"{run} starts from it" for path, run in (starts or {}).items() if path == folder.resolve()]
        kept.append(Held(step, folder, each.about, recent, promised))
    return kept


def best_of(found: list[Found], rules: DefaultCheckpoint) -> int | None:
    """The step of the checkpoint with the best figure, of several the newest; a figure belongs to the weights that it was measured on."""
    if rules.best is None:
        return None
    known = [(each.about.get("metrics", {}).get(rules.best), each.step) for each in found]
    figures = [(value, step) for value, step in known if isinstance(value, (int, float)) and math.isfinite(value)]
    lower = is_lower_better(rules.best) if rules.mode is None else rules.mode.value == "min"
    sign = -1 if lower else 1
    return max(figures, key=lambda figure: (sign * figure[0], figure[1]))[1] if figures else None


def prune(root: Path, rules: DefaultCheckpoint, newest: int, starts: Callable[[], Mapping[Path, str]] = dict) -> None:
    """Remove what is kept for nothing, after step `newest` was saved; called by one rank, outside of a save.

    Those above it were passed over as damaged: they neither count nor stay. What killed saves have left goes too.
    starts: asked only where something is to be removed.
    """
    finish_interrupted(root)
    if _removable(root, held(root, rules, {}, newest)):
        kept = held(root, rules, starts(), newest)
        for folder in _removable(root, kept):
            remove(folder)
    for left in root.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def _removable(root: Path, kept: list[Held]) -> list[Path]:
    wanted = {each.folder for each in kept if each.reasons}
    return [folder for _, folder in folders(root) if folder not in wanted]


def make_room(root: Path, rules: DefaultCheckpoint, starts: Callable[[], Mapping[Path, str]] = dict) -> list[int]:
    """Remove what is kept for its recency alone, but the newest; the steps that went. What was asked to be kept for ever stays."""
    gone = []
    for each in held(root, rules, starts()):
        if each.recent != "newest" and not each.promised:
            remove(each.folder)
            gone.append(each.step)
    return gone


def started_from(runs: Iterable[Path]) -> dict[Path, str]:
    """Checkpoints from which these runs start (`init.run`): killed before its first save, a run reads them again.

    One that is finished needs them no more, unless a part of the model is frozen, of which its own checkpoints hold nothing.
    """
    from trainer.choices import ConfigError
    from trainer.run import checkpoint_of

    found: dict[Path, str] = {}
    for run in runs:
        try:
            text = (run / "config.yaml").read_text()
            # To parse a configuration takes milliseconds, and there can be hundreds beside this one.
            if "\ninit:\n  run: null\n" in text:
                continue
            tree = yaml.safe_load(text)
            source = (tree.get("init") or {}).get("run")
            partial = (tree.get("adapter") or {}).get("name", "none") != "none" or (tree.get("optim") or {}).get("freeze")
            if source and (partial or not (run / "summary.json").exists()):
                found[checkpoint_of(str(source)).resolve()] = run.name
        except (OSError, ConfigError, yaml.YAMLError, AttributeError):
            continue
    return found
