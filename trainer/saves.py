"""A run's checkpoints as the loop sees them: saved once a step at most, told of when they are committed, and the last one is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.files import folder_of
from trainer.checkpoint.opening import Opened, open_best, open_newest, open_one
from trainer.checkpoint.remote import Remote
from trainer.checkpoint.retention import started_from
from trainer.checkpoint.saving import Saver
from trainer.checkpoint.store import Snapshot, snapshot
from trainer.choices import ConfigError, nearest
from trainer.config import Config, digest
from trainer.settings import End
from trainer.tracking.figures import is_figure

if TYPE_CHECKING:
    from trainer.distributed import World
    from trainer.run import RunDir
    from trainer.strategies import Placement


def remote_of(config: Config) -> Remote | None:
    """The other place of a run's checkpoints, if it has one. Raises ConfigError where nothing here can write to it."""
    path = config.checkpoint.path  # type: ignore[attr-defined]
    return Remote(path) if path else None


def open_latest(config: Config, run: RunDir, world: World) -> Opened | None:
    """What a run goes on from. Raises ConfigError where the other place holds another run's checkpoints."""
    opened = open_newest(run.checkpoints, world, print, remote_of(config))
    theirs = opened.about.get("digest") if opened is not None else None
    # A longer budget is another digest; what is here was compared, key by key, before launch.
    if opened is not None and opened.path.parent != run.checkpoints and not config.resume.extend and theirs != digest(config):
        raise ConfigError(
            f"checkpoint.path: {opened.path} is of another run (digest {theirs}, this one has {digest(config)}); name a folder of this "
            "run's own, or go on with the configuration of that one"
        )
    return opened


class Saves:
    """Saves of this attempt. event: records one (kind, **fields). opened: the checkpoint that it began from."""

    def __init__(self, config: Config, run: RunDir, world: World, event: Callable[..., None], opened: Opened | None):
        self.config, self.world, self.event, self.root = config, world, event, run.checkpoints
        # One that lies in another place, or is not yet named, is written once more where the run ends at its step.
        named = opened is not None and opened.path == folder_of(run.checkpoints, opened.step)
        self.saved_at = opened.step if opened is not None and named else -1
        beside = run.path.parent
        starts = lambda: started_from(path.parent for path in beside.glob("*/config.yaml"))  # noqa: E731
        self.saver = Saver(run.checkpoints, config.checkpoint, world, starts, remote_of(config))  # type: ignore[arg-type]
        self._figures: dict[str, float] = {}

    def save(self, step: int, take: Callable[[], Snapshot], last: bool = False) -> None:
        """Save this step, unless it is saved already. last: the run ends here, so return when it is committed.

        Raises ConfigError where the last one finds no room; else what `tell` raises.
        """
        for must in (False, True):
            if self.saved_at != step:
                self.saver.save(take)
                self.saved_at = step
            if not last:
                return
            self.saver.wait()
            # A disk that was full some steps ago is looked at again, before the run is given up.
            self.tell(must)
            if self.saved_at == step:
                return

    def ending(self, step: int) -> Opened:
        """The checkpoint that the final figures and `model/` are of, after the last one was saved at this step."""
        if self.config.checkpoint.end is End.best:  # type: ignore[attr-defined]
            return open_best(self.root, self.config.checkpoint, self.world, remote_of(self.config))  # type: ignore[arg-type]
        return open_one(folder_of(self.root, step), self.world)

    def wait(self) -> None:
        """Until no save is under way: an end without one more."""
        self.saver.wait()
        self.tell()

    def tell(self, must: bool = False) -> None:
        """Record the saves that have ended since the last call; next to nothing where there is none.

        must: one that found no room ends the run. Raises ConfigError then, and CheckpointError where one failed otherwise.
        """
        for ended in self.saver.ended():
            if ended.full:
                self.event("disk_full", step=ended.step, policy=self.config.checkpoint.on_full.value, reason=ended.full)  # type: ignore[attr-defined]
            if ended.upload:
                self.event("upload_failed", step=ended.step, reason=ended.upload)
            if ended.written is None:
                if ended.step == self.saved_at:
                    self.saved_at = -1
                if must:
                    raise ConfigError(self.saver.refusal(ended.step, ended.full))
                continue
            seconds = {"stall_seconds": ended.stall_seconds, "background_seconds": ended.background_seconds}
            self.event("checkpoint", step=ended.step, path=ended.written.path.name, bytes=ended.written.bytes, **seconds)
            for key, value in seconds.items():
                self._figures[f"checkpoint_{key}"] = self._figures.get(f"checkpoint_{key}", 0.0) + value

    def figures(self) -> dict[str, float]:
        """checkpoint_stall_seconds, checkpoint_background_seconds: of the saves told of since the last call; empty where there was none."""
        found, self._figures = self._figures, {}
        return found

    def snapshot(self, placement: Placement, state: dict[str, Any], measured: dict[str, Any]) -> Snapshot:
        """What is saved. measured: figures of these very weights. Raises ConfigError where `checkpoint.best` is not among them."""
        best = self.config.checkpoint.best  # type: ignore[attr-defined]
        held_out = [key for key in measured if key.startswith("eval_")]
        if best is not None and held_out and best not in measured:
            raise ConfigError(f"checkpoint.best: {best}; held-out figures here: {', '.join(held_out)}{nearest(best, held_out)}")
        place = {"strategy": self.config.strategy.name, "world_size": self.world.size, "digest": digest(self.config)}
        metrics = {key: value for key, value in measured.items() if is_figure(value)}
        return snapshot(state["step"], placement, state, {"time": time.time(), **place, "metrics": metrics})
