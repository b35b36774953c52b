"""Which versions a run is computed with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("shardloom", "torch", "transformers", "tokenizers", "accelerate", "deepspeed", "safetensors")


def versions() -> dict[str, str]:
    """Name → version of Python and of the packages that decide figures; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
