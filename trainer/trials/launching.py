"""This machine's launcher, for ranks that do something beside training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.launch.local import Local

if TYPE_CHECKING:
    from trainer.config import Config


class Compared(Local):
    """Ranks of `trainer parity`."""

    module: ClassVar[str] = "trainer.trials.rank"


class Killed(Local):
    """Ranks of `trainer rehearse`."""

    module: ClassVar[str] = "trainer.trials.killing"


def here(config: Config, kind: type[Local]) -> Local:
    """A launcher on this machine with the processes that the configuration asks for, where its strategy leaves that open."""
    return kind(processes=config.launcher.processes if config.strategy.processes is None else None)
