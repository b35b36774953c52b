"""Where prepared data is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder that prepared data is kept in: $TRAINER_CACHE, or ~/.cache/shardloom."""
    return Path(os.environ.get("TRAINER_CACHE") or "~/.cache/shardloom").expanduser().absolute()
