"""What a program and all processes that it starts hold of the memory while they run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

_FIELDS = re.compile(r"^(Pss|Pss_Anon|Rss):\s+(\d+) kB", re.MULTILINE)
SAMPLE_SECONDS = 0.1


def held(process: int | str = "self") -> dict[str, int]:
    """Bytes of a process now. Rss: resident; Pss: that, pages which several share divided between them; Pss_Anon: without files."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return {name: 1024 * int(size) for name, size in _FIELDS.findall(text)}


def tree(root: int) -> list[int]:
    """A process and all below it."""
    children = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                # Behind the name, which may hold anything: state, parent.
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children[parent].append(int(entry))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children[found[-1]]
    return found


def peak(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Runs a command: largest sum over its tree of each figure in bytes, sampled ten times a second, and seconds. It must succeed."""
    most: dict[str, float] = {"Pss": 0, "Pss_Anon": 0, "processes": 0}
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            sums: dict[str, float] = dict.fromkeys(most, 0)
            for one in tree(process.pid):
                try:
                    figures = held(one)
                except OSError:  # it has ended since
                    continue
                sums = {name: sums[name] + figures.get(name, 0) for name in sums} | {"processes": sums["processes"] + bool(figures)}
            most = {name: max(most[name], sums[name]) for name in most}
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    return most | {"seconds": time.perf_counter() - began}
