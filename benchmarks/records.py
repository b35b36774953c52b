"""Where measurements are kept: benchmarks/results/, by date, hardware and what was measured; Markdown for people, JSON for programs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def hardware() -> str:
    """What the figures were taken on, as part of a file's name: `1x-nvidia-h200`, `cpu-2-cores`."""
    import torch

    if torch.cuda.is_available():
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
        return f"{torch.cuda.device_count()}x-{name}"
    return f"cpu-{len(os.sched_getaffinity(0))}-cores"


def commit() -> str:
    """The commit that is checked out, with `+` where files differ from it; `no commit` outside of a repository.

    BENCH_COMMIT says it for a copy of the tree.
    """
    if os.environ.get("BENCH_COMMIT"):
        return os.environ["BENCH_COMMIT"]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


def versions(*more: str) -> dict[str, str]:
    """The software that the figures belong to."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "deepspeed", *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def write(what: str, text: str, figures: dict[str, Any], folder: Path | None = None) -> Path:
    """Write `<date>-<hardware>-<what>.md` and `.json`; the path of the Markdown."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    day, where = datetime.date.today().isoformat(), hardware()
    stem = folder / f"{day}-{where}-{what}"
    about = {"date": day, "hardware": where, "commit": commit(), "versions": versions()}
    stem.with_suffix(".json").write_text(json.dumps(about | figures, indent=1) + "\n")
    path = stem.with_suffix(".md")
    path.write_text(text.rstrip() + "\n")
    return path


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, figures to the right."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
