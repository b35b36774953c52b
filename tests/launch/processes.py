"""Starting stand-in runs, and looking at the processes and sockets that they leave."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from trainer.launch.local import LocalHandle, start_agent

from tests.launch.standin import MODULE, ROOT


def new_run(path: Path, steps: int = 12, save_every: int = 4, step_seconds: float = 0.01) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(json.dumps({"steps": steps, "save_every": save_every, "step_seconds": step_seconds}))
    return path


@contextmanager
def launched(
    run: Path, *options: str, processes: int = 2, faults: list[dict[str, Any]] | None = None, lock: int | None = None
) -> Iterator[LocalHandle]:
    """An agent over stand-in ranks; whatever of it is left at the end is killed."""
    words = [sys.executable, "-P", "-m", "trainer.agent", str(run), f"--processes={processes}", f"--module={MODULE}", *options]
    changed = {
        "STANDIN_FAULTS": json.dumps(faults or []),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        handle = LocalHandle(start_agent(words, lock))
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        yield handle
    finally:
        for process in family(run):
            process.kill()
        handle.agent.wait()


def family(run: Path, word: str | None = None, without: str | None = None) -> list[psutil.Process]:
    """Every live process whose command names this run (and this word, and not that one), and without a word all below them."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if process.pid == os.getpid() or str(run) not in command or (word and word not in command) or without in command:
                continue
            for one in (process, *([] if word else process.children(recursive=True))):
                if one.status() != psutil.STATUS_ZOMBIE:  # dead, and waiting for its parent or for init
                    found[one.pid] = one
        except psutil.Error:
            continue
    return list(found.values())


def ranks(run: Path) -> list[psutil.Process]:
    """The rank processes of an agent."""
    return family(run, MODULE, without="trainer.agent")


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def steps(run: Path, rank: int = 0) -> list[int]:
    """The steps that a rank has run, over all attempts."""
    path = run / f"steps-{rank}.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["kind"] == kind]


def total(run: Path) -> float:
    return float(json.loads((run / "final.json").read_text())["total"])
