"""Weights & Biases, in a thread of its own: whatever it meets, training neither waits nor fails.

Online with a key and a host that answers, else offline; an offline run ends with the command that uploads it.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import queue
import re
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.network import answers
from trainer.settings import Artifact, DefaultTracking, WandbMode
from trainer.tracking.figures import grouped, is_figure
from trainer.tracking.redaction import redacted_words
from trainer.tracking.report import REPORT

ID_FILE = "wandb.json"
QUEUE_LINES = 1000
PROBE_SECONDS = 3.0
INIT_SECONDS = 20.0
FINISH_SECONDS = 20.0
_DEFAULT_HOST = "https://api.wandb.ai"
_END, _ARTIFACT = "end", "artifact"
# Events that are worth a message to a person.
_ALERTS = {"halt": "halted", "nan": "a step was not finite", "restart": "restarted", "fallback": "a damaged checkpoint was passed over",
           "disk_full": "there was no room for a checkpoint", "upload_failed": "a checkpoint was not uploaded"}  # fmt: skip
_NO_NAME = re.compile(r"[^\w.-]+")


class WeightsAndBiases:
    """The mirror of a run at W&B.

    settings: the tracking choice. config: already redacted. say: prints a line to the person.
    """

    def __init__(self, settings: DefaultTracking, config: dict[str, Any], run_dir: Path, name: str, say: Callable[[str], None]):
        self.settings, self.config, self.run_dir, self.name, self.say = settings, config, run_dir, name, say
        self.mode, self.dropped, self.folder = "", 0, ""
        self._run: Any = None
        self._lines: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(QUEUE_LINES)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, figures: dict[str, Any]) -> None:
        """Queue a line; dropped, and counted, where the queue is full."""
        self._put("log", {grouped(key): value for key, value in figures.items() if is_figure(value)} | {"step": step})

    def samples(self, step: int, written: list[dict[str, str]]) -> None:
        """Queue a table of texts that the model has written."""
        self._put("samples", {"step": step, "rows": [[sample["prompt"], sample["text"]] for sample in written]})

    def event(self, kind: str, step: int | None, told: str = "") -> None:
        """Queue an event: a mark on the step axis, and an alert where one is wanted."""
        if step is not None:
            self._put("log", {f"event/{kind}": 1, "step": step})
        if self.settings.alerts and kind in _ALERTS:
            self._put("alert", {"title": f"{self.name}: {_ALERTS[kind]}", "text": f"step {step}: {told}", "level": kind})

    def finish(self, summary: dict[str, Any], seconds: float = FINISH_SECONDS) -> None:
        """Write the summary, keep what is wanted of a finished run, and end, in bounded time; print how to upload an offline run."""
        kept = [(_ARTIFACT, {"path": path}) for path in self._wanted()] if summary else []
        until = time.monotonic() + seconds + (self.settings.upload_seconds if kept else 0.0)
        for kind, content in (("summary", summary), *kept, (_END, {})):
            # A full queue may still be worked off; the end must not be what is dropped.
            with contextlib.suppress(queue.Full):
                self._lines.put((kind, content), timeout=max(0.0, until - time.monotonic()))
        self._thread.join(max(1.0, until - time.monotonic()))
        if self._thread.is_alive():
            self.say(f"W&B: gave up waiting; what it has is in {self.run_dir / 'wandb'}")
        # All is written by now; left alone, W&B's exit hook would go on asking a host that does not answer.
        _end_service()
        if self.dropped:
            self.say(f"W&B: {self.dropped} lines were left out, it did not keep up; metrics.jsonl has all")
        if self.folder and self.mode == "offline":
            self.say(f"W&B is offline; upload with: {self.sync_command()}")

    def sync_command(self) -> str:
        """The command that uploads every attempt of this run."""
        folders = sorted(str(path) for path in (self.run_dir / "wandb").glob("offline-run-*"))
        return shlex.join(["wandb", "sync", *folders])

    def _put(self, kind: str, content: dict[str, Any]) -> None:
        try:
            self._lines.put_nowait((kind, content))
        except queue.Full:
            self.dropped += 1

    def _work(self) -> None:
        try:
            self.mode, reason = decide(self.settings.wandb)
            if self.mode == "off":
                return self._drain()
            if not self._open(self.mode):
                self.mode, reason = "offline", f"{_host()} refused or did not answer"
                if not self._open(self.mode):
                    return self._drain()
            self.say(f"W&B: {getattr(self._run, 'url', None) if self.mode == 'online' else f'offline, {reason}'}")
            self._take()
        except Exception as error:  # whatever W&B raises, training goes on
            self.say(f"W&B: stopped, {type(error).__name__}: {error}; metrics.jsonl has everything")
            self._drain()

    def _take(self) -> None:
        while True:
            kind, content = self._lines.get()
            if kind == "log":
                self._run.log(content)
            elif kind == "summary":
                self._run.summary.update(content)
            elif kind == _END:
                self._run.finish()
                return
            else:
                self._take_extra(kind, content)

    def _take_extra(self, kind: str, content: dict[str, Any]) -> None:
        """What figures can do without: where it fails, they go on."""
        import wandb

        try:
            if kind == "samples":
                self._run.log({"samples": wandb.Table(["prompt", "text"], content["rows"]), "step": content["step"]})
            elif kind == "alert":
                level = "ERROR" if content["level"] == "halt" else "WARN"
                self._run.alert(content["title"], content["text"], level=level)
            elif kind == _ARTIFACT:
                path: Path = content["path"]
                artifact = wandb.Artifact(_NO_NAME.sub("-", f"{self.name}-{path.stem}"), type=path.stem)
                # Not copied: both are whole, and stay as they are.
                artifact.add_dir(str(path), policy="immutable") if path.is_dir() else artifact.add_file(str(path), policy="immutable")
                self._run.log_artifact(artifact)
        except Exception as error:
            self.say(f"W&B: no {kind}, {type(error).__name__}: {error}")

    def _wanted(self) -> list[Path]:
        """What `tracking.artifacts` asks for, and is there."""
        paths = {Artifact.model: self.run_dir / "model", Artifact.report: self.run_dir / REPORT}
        return [paths[each] for each in self.settings.artifacts if paths[each].exists()]

    def _drain(self) -> None:
        while self._lines.get()[0] != _END:
            pass

    def _open(self, mode: str) -> bool:
        # W&B's reports about itself are posted again at exit, for half a minute where nobody answers.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        options = wandb.Settings(
            # Nothing of W&B's own collecting: it records the words of the command line as they are, and writes to our terminal.
            x_disable_meta=True,
            x_disable_machine_info=True,
            disable_git=True,
            disable_code=True,
            console="off",
            silent=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS + (self.settings.upload_seconds if self.settings.artifacts else 0.0),
        )
        try:
            wandb.setup(options)
            self._run = wandb.init(
                mode="online" if mode == "online" else "offline",
                id=run_id(self.run_dir),
                resume="allow",
                dir=str(self.run_dir),
                name=self.name,
                project=self.settings.project,
                entity=self.settings.entity,
                tags=list(self.settings.tags),
                config={**self.config, "command": shlex.join(redacted_words(sys.argv))},
                settings=options,
            )
        except Exception as error:
            self.say(f"W&B: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}")
            # The failed attempt holds the run's id in W&B's process, and may hang there.
            _end_service()
            return False
        self.folder = str(Path(self._run.settings.sync_dir))
        # Steps repeat after a restart; W&B's own counter would refuse them, an axis of ours does not.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        return True


def _end_service() -> None:
    """End W&B's own process, our child, and forget it, so that a next `init` starts another."""
    if "wandb" not in sys.modules:
        return
    import psutil
    import wandb

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name().startswith("wandb-core"):
                child.kill()
                child.wait(5)
    with contextlib.suppress(Exception):
        wandb.teardown()


def decide(wanted: WandbMode, probe_seconds: float = PROBE_SECONDS) -> tuple[str, str]:
    """online | offline | off, and why not online. `WANDB_MODE` counts where the configuration says auto."""
    mode = wanted.value
    if wanted is WandbMode.auto and os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        mode = "off" if os.environ["WANDB_MODE"] == "disabled" else "offline"
    if mode == "off":
        return "off", ""
    if mode == "offline":
        return "offline", "as configured"
    if not has_key():
        return "offline", "no WANDB_API_KEY and no login"
    if not answers(_host(), probe_seconds):
        return "offline", f"{_host()} does not answer"
    return "online", ""


def has_key() -> bool:
    """Whether there is a key in the environment or a login in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators(urlsplit(_host()).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def run_id(run_dir: Path) -> str:
    """The id of this run at W&B, the same over all its attempts; kept in the run directory."""
    path = run_dir / ID_FILE
    try:
        return str(json.loads(path.read_text())["id"])
    except (OSError, ValueError, KeyError):
        made = uuid.uuid4().hex[:12]
        path.write_text(json.dumps({"id": made}) + "\n")
        return made


def _host() -> str:
    return os.environ.get("WANDB_BASE_URL", _DEFAULT_HOST).rstrip("/")
