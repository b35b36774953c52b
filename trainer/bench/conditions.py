"""Under what a bench was measured: the machine, the software, the commit. Figures of other conditions are other figures."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from trainer.environment import cores
from trainer.versions import versions


def conditions(kind: str) -> dict[str, Any]:
    """Plain values, for results.json. kind: of the devices, as the launcher resolves it (cpu, cuda)."""
    found: dict[str, Any] = {"device": _cpu(), "devices": 0, "cores": cores(), "host": platform.node()}
    if kind == "cuda":
        found |= _gpus()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found | {"memory_bytes": memory, "threads": os.environ.get("OMP_NUM_THREADS"), "commit": commit(), "versions": versions()}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """In words, what is not the same in two of them; the versions one by one."""
    flat = [{**each, **{f"version of {name}": value for name, value in each.get("versions", {}).items()}} for each in (one, other)]
    keys = [key for key in dict.fromkeys([*flat[0], *flat[1]]) if key not in ("versions", "memory_bytes")]
    return [f"{key}: {flat[0].get(key)}, {flat[1].get(key)}" for key in keys if flat[0].get(key) != flat[1].get(key)]


def commit() -> str | None:
    """The commit that this code is checked out at, with `+` where files differ from it; None outside of a repository."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installation inside of another project's folder is not that project's commit.
        if not git("ls-files", Path(__file__).name):
            return None
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None


def _gpus() -> dict[str, Any]:
    """The GPUs by the driver's tool: the front door makes no context of its own on a device."""
    from trainer.launch.devices import capabilities, find_gpus, limits

    names = " + ".join(dict.fromkeys(name for name, _ in capabilities())) or "GPU"
    return {"device": names, "devices": find_gpus().count} | limits()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
