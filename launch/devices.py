"""Which accelerators this host shows to a process, counted without importing torch, which takes seconds."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class GPUs:
    """present: in this host (or container). visible: left by CUDA_VISIBLE_DEVICES. usable: the installed torch can drive them."""

    present: int
    visible: int
    usable: bool = True
    variable: str | None = None

    @property
    def count(self) -> int:
        return self.visible if self.usable else 0

    def why(self) -> str:
        """What there is, on which host, and which variable hides some of it."""
        host = socket.gethostname()
        text = f"{self.visible} of {self.present} GPUs visible on {host}"
        if self.variable is not None:
            text += f"; {_VARIABLE}={self.variable!r} selects them"
        if self.present and not self.usable:
            text += "; the installed torch is built without CUDA and can use none"
        return text


def find_gpus(environment: Mapping[str, str] | None = None) -> GPUs:
    """The GPUs that a rank started with this environment would see."""
    variable = (os.environ if environment is None else environment).get(_VARIABLE)
    present = _present()
    visible = present if variable is None else selected(variable, present)
    return GPUs(present, visible, _torch_has_cuda() if present else True, variable)


def selected(variable: str, present: int) -> int:
    """How many of `present` GPUs a value of CUDA_VISIBLE_DEVICES leaves: as the driver reads it, up to the first that does not exist."""
    chosen: list[str] = []
    for word in (word.strip() for word in variable.split(",")):
        exists = int(word) < present if word.isdecimal() else re.match(r"(GPU|MIG)-", word) is not None and present > 0
        if not exists:
            break
        if word in chosen:
            return 0
        chosen.append(word)
    return len(chosen)


def capabilities() -> list[tuple[str, tuple[int, int]]]:
    """Name and compute capability of each GPU in this host, hidden ones too; empty where nvidia-smi does not tell."""
    told = _nvidia_smi("--query-gpu=name,compute_cap", "--format=csv,noheader") or ""
    return [(name, (int(major), int(minor))) for name, major, minor in re.findall(r"^(.+), *(\d+)\.(\d+)$", told, re.MULTILINE)]


def limits() -> dict[str, str]:
    """Driver, power limit and clocks of the GPUs in this host: what decides their speed beside their name.

    Where a limit is below what the card has by itself, both are told. Of unlike GPUs each; empty where nvidia-smi does not tell.
    """
    fields = "driver_version,power.limit,power.default_limit,clocks.applications.graphics,clocks.max.graphics"
    told = _nvidia_smi(f"--query-gpu={fields}", "--format=csv,noheader") or ""
    found: dict[str, list[str]] = {"driver": [], "power_limit": [], "clocks": []}
    for driver, power, most_power, clocks, most_clocks in re.findall(r"^(.+), *(.+), *(.+), *(.+), *(.+)$", told, re.MULTILINE):
        found["driver"].append(driver)
        found["power_limit"].append(_limit(power, most_power))
        found["clocks"].append(_limit(clocks, most_clocks))
    return {key: text for key, each in found.items() if (text := " + ".join(dict.fromkeys(filter(None, each))))}


def _limit(now: str, most: str) -> str:
    """What is not known stands in brackets."""
    known = [each for each in dict.fromkeys((now, most)) if not each.startswith("[")]
    return " of ".join(known)


def _present() -> int:
    """nvidia-smi knows what a container was given; without it, the driver's own list, cut to the device files that there are."""
    told = _nvidia_smi("-L")
    if told is not None:
        return len(re.findall(r"^GPU \d+:", told, re.MULTILINE))
    listed = Path("/proc/driver/nvidia/gpus")
    nodes = [node for node in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", node.name)]
    return min(len(list(listed.iterdir())), len(nodes)) if listed.is_dir() else 0


def _nvidia_smi(*options: str) -> str | None:
    """What it prints; None where there is no such command, or it fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    try:
        done = subprocess.run([command, *options], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _torch_has_cuda() -> bool:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return any((Path(spec.origin).parent / "lib" / name).exists() for name in ("libtorch_cuda.so", "torch_cuda.dll"))
