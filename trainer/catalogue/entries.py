"""The runs below a folder, each as one flat set of facts; read from the files of its directory alone, also while it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from trainer.choices import ConfigError, nearest
from trainer.config import flatten
from trainer.run import OWN, RunDir
from trainer.tracking import jsonl
from trainer.tracking.summary import SUMMARY

# How a run ended, by the last of these events; after any other it was cut off.
_ENDINGS = {"finish": "finished", "stop": "stopped", "killed": "stopped", "give_up": "failed", "failure": "failed"}
# Of a log that is not finished, so much of the end is read: the newest line of either kind is nearly always within.
_TAIL_BYTES = 1 << 18


@dataclass
class Entry:
    """A run. label: its path below the folder that was searched, by which a person names it."""

    run: RunDir
    label: str

    def fact(self, key: str) -> Any:
        """What is known under a key: of the run, of its newest figures, of its configuration (`optim.lr`); None where nothing is."""
        for facts in (self.own, self.figures, self.config):
            # An evaluation's figures are `eval_accuracy` in the log and `accuracy` in the summary; `loss` is that of training in both.
            for name in (key,) if key in ("loss", "eval_loss") else (key, f"eval_{key}", key.removeprefix("eval_")):
                if facts.get(name) is not None:
                    return facts[name]
        return None

    @cached_property
    def own(self) -> dict[str, Any]:
        """What belongs to the run itself. age: seconds since its first start."""
        starts = [event for event in self._events if event.get("kind") == "start"]
        placed = jsonl.read_object(self.run / "placement.json")
        first = self._events[0].get("time") if self._events else None
        return {
            "name": self.label,
            "state": self.state,
            "strategy": placed.get("strategy"),
            "world": placed.get("world_size"),
            "age": time.time() - first if first is not None else None,
            "digest": next((start["digest"] for start in reversed(starts) if start.get("digest")), None),
        }

    @cached_property
    def state(self) -> str:
        """running, finished, stopped (saved, to go on), halted (by the policy for NaN), failed, or new: never started."""
        if self.run.held:
            return "running"
        if jsonl.read_object(self.run / SUMMARY):
            return "finished"
        found = "new"
        for event in self._events:
            kind = event.get("kind")
            if kind in ("launch", "start", "restart"):
                found = "failed"  # unless a later event tells how it ended
            elif kind == "nan" and event.get("policy") == "halt":
                found = "halted"
            else:
                found = _ENDINGS.get(str(kind), found)
        return found

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The final figures; of a run that is not finished, those of its newest lines."""
        final = jsonl.read_object(self.run / SUMMARY)
        if final:
            return final
        path = self.run / jsonl.METRICS
        lines = _tail(path)
        found = _newest(lines)
        if "eval_loss" not in found and lines and path.stat().st_size > _TAIL_BYTES:
            found = _newest(jsonl.read(path))
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """The frozen configuration by dotted keys; empty where it cannot be read."""
        try:
            tree = yaml.load((self.run.config_path).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (OSError, yaml.YAMLError):
            return {}
        return flatten(tree) if isinstance(tree, dict) else {}

    @cached_property
    def _events(self) -> list[dict[str, Any]]:
        return jsonl.read(self.run / jsonl.EVENTS)


def entries(root: Path) -> list[Entry]:
    """The runs below a folder, also those of a multirun, by their names."""
    return [Entry(RunDir(path), str(path.relative_to(root)) if path != root else path.name) for path in sorted(run_folders(root))]


def run_folders(root: Path) -> Iterator[Path]:
    """Folders below root (or root itself) that hold a frozen configuration; what a run keeps in its own folders is not searched."""
    for folder, below, files in os.walk(root):
        if "config.yaml" in files:
            yield Path(folder)
            below[:] = [name for name in below if name not in OWN]
        below[:] = [name for name in below if not name.startswith(".")]


def named(word: str, root: Path) -> Entry:
    """The run that a person means: its directory, or its name below root. Raises ConfigError with the runs there are."""
    for path in (Path(word), root / word):
        if (path / "config.yaml").is_file():
            return Entry(RunDir(path), word.rstrip("/"))
    known = [entry.label for entry in entries(root)]
    have = f"runs in {root}: {', '.join(known[:20])}{' …' if len(known) > 20 else ''}" if known else f"there are no runs in {root}"
    raise ConfigError(f"{word}: no run there; {have}{nearest(word, known)}")


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last lines of a log; the first of them may be cut, and is then left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read()
    except OSError:
        return []
    return jsonl.parsed(text.decode(errors="replace").splitlines())


def _newest(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of the newest log line, and of the newest evaluation of each set."""
    trained: dict[str, Any] = next((line for line in reversed(lines) if line.get("interval_steps")), {})
    evaluated = {key: value for line in lines for key, value in line.items() if key.startswith("eval_")}
    return evaluated | {key: value for key, value in trained.items() if key != "step"} | {"steps": trained.get("step")}
