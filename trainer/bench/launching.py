"""This machine's launcher, for ranks that are measured."""

from __future__ import annotations

from typing import ClassVar

from trainer.launch.local import Local


class Measured(Local):
    """Ranks of `trainer bench`."""

    module: ClassVar[str] = "trainer.bench.rank"
