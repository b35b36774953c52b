"""Stop agreement: all ranks stop after the same step, decided over the host-side store, without a device collective.

Ranks are coupled by the collectives inside a step, and each may be in another step when a stop is asked for. So:

1. A request is a key in the store; each rank's watcher thread sees it, *freezes* its rank and publishes the step last started there.
2. The last step is the maximum over all ranks. A frozen main thread starts no further step until that is known.
3. Everybody runs through that step and stops.

This cannot deadlock: watchers wait for watchers only, never for a main thread; and the maximum is a step that some rank has begun, so
every rank still behind may start it, and must, for the sake of the collectives in it.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from trainer.distributed import World

if TYPE_CHECKING:
    from torch.distributed import Store

# A request is seen within this time; a thousand ranks ask the store less often, so that it is not busy with them.
_POLL_SECONDS = 0.1
_POLLS_PER_SECOND = 1000.0
_NONE_STARTED = -1


class Stop:
    """This rank's part in the agreement. One a run, closed at its end."""

    def __init__(self, world: World, file: Path | None = None):
        """file: its existence asks for a stop; what it holds is the reason. One rank a node looks."""
        self.world = world
        self.reason: str | None = None
        self._file = file if world.local_rank == 0 else None
        # A connection of the watcher's own: a blocking call of the main thread would hold up a shared one.
        self._store: Store | None = world.store.clone() if world.store is not None else None  # type: ignore[attr-defined]
        self._asked: str | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._started = _NONE_STARTED
        self._frozen = False
        self._last: int | None = None
        self._failure: Exception | None = None
        self._interval = max(_POLL_SECONDS, world.size / _POLLS_PER_SECOND)
        self._watcher = threading.Thread(target=self._watch, name="stop-watcher", daemon=True)
        self._watcher.start()

    def request(self, reason: str) -> None:
        """Ask that all ranks stop after a step to come. Safe in a signal handler: it takes no lock."""
        self._asked = self._asked or reason

    def request_on(self, *numbers: signal.Signals) -> None:
        """Take signals oneself, under a launcher that sends them to ranks. To be called from the main thread."""

        def handler(number: int, _frame: FrameType | None) -> None:
            self.request(signal.Signals(number).name)

        for number in numbers:
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether a stop is on its way; ranks learn it at different moments."""
        return self._asked is not None or self._frozen

    @property
    def started(self) -> int:
        """The step last started on this rank, -1 before the first."""
        return self._started

    def should_stop(self, next_step: int) -> bool:
        """Whether all ranks stop here, before `next_step`; else it counts as started. The same answer on every rank.

        Costs a lock. After a request it waits for the other ranks' watchers, so only the one step in flight delays it.
        Raises ConnectionError where the store is lost while ranks agree.
        """
        with self._changed:
            while self._frozen and self._last is None and self._failure is None:
                self._changed.wait()
            if self._last is not None and next_step > self._last:
                return True
            if self._frozen and self._failure is not None:
                raise ConnectionError("the store was lost while the ranks agreed on where to stop") from self._failure
            self._started = next_step
            return False

    def close(self) -> None:
        """Stop watching. What this rank started last stays in the store, so that nobody waits for it in vain."""
        self._closing = True
        self._watcher.join(timeout=10 + self._interval)

    def _watch(self) -> None:
        try:
            while not self._closing:
                if self._seen():
                    self._agree()
                    return
                time.sleep(self._interval)
            self._freeze()
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _seen(self) -> bool:
        """Whether anyone asked; a request made here is posted for all."""
        if self._file is not None and self._asked is None and self._file.exists():
            self._asked = self._file.read_text().strip() or "stop file"
        if self._store is None:
            self.reason = self._asked
            return self._asked is not None
        if self._asked is not None:
            # The first request gives the reason on every rank.
            self._store.compare_set("stop/request", "", self._asked)
        elif not self._store.check(["stop/request"]):
            return False
        self.reason = self._store.get("stop/request").decode()
        return True

    def _freeze(self) -> None:
        """From here on the main thread starts nothing of its own accord; say how far it got."""
        with self._changed:
            self._frozen = True
            started = self._started
            if self._store is None:
                self._decide(started)
        if self._store is not None:
            self._store.set(f"stop/started/{self.world.rank}", str(started))

    def _agree(self) -> None:
        self._freeze()
        if self._store is None:
            return
        keys = [f"stop/started/{rank}" for rank in range(self.world.size)]
        while not self._store.check(keys):
            if self._closing:
                return
            time.sleep(min(self._interval, 0.02 * max(1, self.world.size // 64)))
        last = max(int(value) for value in self._store.multi_get(keys))
        with self._changed:
            self._decide(last)

    def _decide(self, last: int) -> None:
        self._last = last
        self._changed.notify_all()
