"""Whether a run compiles its model: the options, and what a machine needs for it."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.choices import ConfigError, placement

if TYPE_CHECKING:
    from trainer.config import Config

# Those that record CUDA graphs are left out: attention over documents reads their lengths on the host.
MODES = ("default", "max-autotune-no-cudagraphs")


@dataclass
class Compile:
    """Fewer and larger operations that give the same numbers to float noise: torch.compile of each transformer block, activations."""

    blocks: bool | None = placement(None, help="true | false; null: on GPUs, where a compiler is at hand")
    mode: str = placement("default", help="default | max-autotune-no-cudagraphs: minutes of trying, for the last per cent")
    backend: str = placement("inductor", help="inductor, or another backend of torch.compile")
    activations: bool = placement(True, help="GELU by tanh in one operation, where transformers has several for it")

    def check(self) -> None:
        """Raise ConfigError for options that cannot be."""
        if self.mode not in MODES:
            raise ConfigError(f"compile.mode: {self.mode}; allowed: {', '.join(MODES)}")
        if self.mode != "default" and self.backend != "inductor":
            raise ConfigError(f"compile.mode: {self.mode} is inductor's, and compile.backend is {self.backend}; leave one of them out")


def compiles(config: Config, device_type: str) -> bool:
    """Whether blocks are compiled on a device of this type. Raises ConfigError where they have to be and cannot."""
    options = config.compile
    if options.blocks is False or options.blocks is None and device_type != "cuda":
        return False
    obstacle = _obstacle(config, device_type)
    if obstacle is not None and options.blocks:
        raise ConfigError(f"compile.blocks: true, but {obstacle}; mend that, or set compile.blocks=false")
    return obstacle is None


def notice(config: Config, device_type: str) -> str | None:
    """A line for people where blocks would be compiled by themselves, and cannot be."""
    if device_type != "cuda" or config.compile.blocks is not None:
        return None
    obstacle = _obstacle(config, device_type)
    return f"blocks are not compiled: {obstacle}" if obstacle else None


def refuse_uncompilable(config: Config) -> None:
    """Raise ConfigError before launch where `compile.blocks=true` cannot be had on this machine."""
    if config.compile.blocks:
        import torch

        compiles(config, "cuda" if config.device.kind != "cpu" and torch.cuda.is_available() else "cpu")


def _obstacle(config: Config, device_type: str) -> str | None:
    if config.strategy.name == "zero3":
        return "strategy=zero3 gathers parameters inside of them"
    if config.recompute.keep:
        return "recompute.keep names results, which a compiled block does not have one by one"
    return _missing(device_type) if config.compile.backend == "inductor" else None


def _missing(device_type: str) -> str | None:
    """What inductor lacks on this machine. On a CPU it writes C++; on a GPU Triton, whose launchers are C."""
    if device_type == "cpu":
        return _without_compiler("C++", "CXX", ["g++", "clang++"])
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if find_spec("triton") is None:
        return "the package triton is not here"
    if not header.is_file():
        return f"Python's headers are not here ({header})"
    return _without_compiler("C", "CC", ["cc", "gcc", "clang"])


def _without_compiler(language: str, variable: str, usual: list[str]) -> str | None:
    names = [named] if (named := os.environ.get(variable)) else usual
    return None if any(map(shutil.which, names)) else f"there is no {language} compiler ({', '.join(names)})"
