"""The run directory: what a run is (frozen), where it is (placement), what happened (events), and who holds it (lock)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from trainer.atomic import write_text
from trainer.choices import ConfigError
from trainer.config import BUDGETS, Config, dump, flatten, identity_of, load, redacted, to_dict
from trainer.tracking import jsonl

# What `resume.overwrite=true` removes; anything else in the directory is the user's. Checkpoints first and config.yaml last: killed in
# between, it must not look like a new run to the next start.
OWN = ("checkpoints", "summary.json", "metrics.jsonl", "events.jsonl", "samples.jsonl", "evaluation", "report.html", "sample.txt", "model",
        "ledger", "logs", "wandb", "wandb.json", "tensorboard", "profile", "stop", "placement.json", "config.yaml")  # fmt: skip
_LOCK = ".lock"


class RunDir:
    """`runs/<name>/`. The front door freezes and locks it; ranks read it and append to its logs."""

    def __init__(self, path: Path | str):
        self.path = Path(path).absolute()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> dict[str, Any] | None:
        """The final figures, or None while the run is unfinished."""
        path = self.path / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def placement(self) -> dict[str, Any]:
        """What was resolved for the newest attempt: data paths, micro-batch, strategy, world size."""
        path = self.path / "placement.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_placement(self, **fields: Any) -> None:
        write_text(self.path / "placement.json", json.dumps(self.placement | fields, indent=1) + "\n")

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to events.jsonl: a short write in append mode is whole even with several writers."""
        lines = jsonl.Lines(self.path / jsonl.EVENTS)  # mends a line torn by a kill or a full disk
        try:
            lines.append({"time": time.time(), "kind": kind, **redacted(fields)})
        finally:
            lines.close()

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events so far, of one kind or all."""
        return [line for line in jsonl.read(self.path / "events.jsonl") if kind is None or line.get("kind") == kind]

    @contextmanager
    def locked(self) -> Iterator[IO[str]]:
        """Hold the run. Raises ConfigError where another process does; the lock goes with the process, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a+") as file:
            if not _lock(file, fcntl.LOCK_EX, tries=3):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise ConfigError(
                    f"output_dir: {self.path} is held by {holder}; wait for it, stop it with Ctrl-C, or name another run: name=…"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            yield file

    @property
    def held(self) -> bool:
        """Whether a process holds the run now; touches nothing."""
        try:
            with (self.path / _LOCK).open() as file:
                return not _lock(file, fcntl.LOCK_SH)
        except OSError:
            return False

    @property
    def holds_run(self) -> bool:
        """Whether something would be lost by another configuration: a start that was logged, or a checkpoint."""
        return self.config_path.exists() and (bool(self.events("start")) or any(self.checkpoints.glob("step-*")))

    def accepts(self, config: Config) -> None:
        """Raise ConfigError (B15) where the directory holds a run with other identity keys. Writes nothing."""
        if self.holds_run:
            self._refuse_other_identity(load_frozen(self.config_path), config)

    def freeze(self, config: Config) -> bool:
        """Write config.yaml. Returns whether this is a resume; then a changed placement is logged, and a changed identity refused."""
        self.accepts(config)
        resumes = self.holds_run
        before = load_frozen(self.config_path) if self.config_path.exists() else config
        if resumes:
            old, new = (flatten(redacted(to_dict(one))) for one in (before, config))
            changed = {key: [old.get(key), value] for key, value in new.items() if old.get(key) != value and not key.startswith("resume.")}
            if changed:
                self.event("placement", changed=changed)
        write_text(self.config_path, dump(config))
        return resumes

    def _refuse_other_identity(self, before: Config, config: Config) -> None:
        old, new = identity_of(before), identity_of(config)
        keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if "fingerprint" in keys and (old["fingerprint"] is None or new["fingerprint"] is None):
            keys.remove("fingerprint")  # not known before prepare; compared again after it
        if config.resume.extend:
            keys = [key for key in keys if key not in BUDGETS]
        if not keys:
            return
        lines = "\n".join(f"  {key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys)
        extend = ", or resume.extend=true to go on with the new budget" if all(key in BUDGETS for key in keys) else ""
        raise ConfigError(
            f"output_dir: {self.path} holds another configuration:\n{lines}\n"
            f"Go on with that one by leaving these keys out, name this one (name=…), or start anew with resume.overwrite=true{extend}"
        )

    def clear(self) -> None:
        """Remove what a run wrote here, and nothing else. Raises ConfigError where the directory is not one of ours."""
        if not self.config_path.exists():
            return
        load_frozen(self.config_path)
        for name in OWN:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _lock(file: IO[str], kind: int, tries: int = 1) -> bool:
    """Take a lock that lasts until the file is closed. Whoever only looks holds it for an instant: trying again passes that."""
    for attempt in range(tries):
        if attempt:
            time.sleep(0.05)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            continue
    return False


def load_frozen(path: Path) -> Config:
    """The frozen configuration of a run. Raises ConfigError where the file is damaged or of another version."""
    try:
        return load(path)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a frozen configuration ({type(error).__name__}: {error}); name another run with name=…") from error


def checkpoint_of(source: str, key: str = "init.run") -> Path:
    """The checkpoint folder that `init.run=runs/x` (its newest) or `init.run=runs/x@step` names. Raises ConfigError where there is none."""
    path, _, step = source.rpartition("@")
    # A run's own name may end like that.
    if not path or not step.isdecimal() or RunDir(source).config_path.exists():
        path, step = source, ""
    checkpoints = RunDir(path).checkpoints
    found = {int(folder.parent.name.removeprefix("step-")): folder.parent for folder in checkpoints.glob("step-*/COMMIT")}
    wanted = int(step) if step else max(found, default=None)
    if wanted not in found:
        have = ", ".join(str(known) for known in sorted(found)) or "none"
        raise ConfigError(f"{key}: {source}: no such checkpoint; steps in {checkpoints}: {have}")
    return found[wanted]
