"""Orders of rank 0 and reports of all, where another launcher started a bench: keys in that launcher's store.

A launch is started by an order, ended before its time by a halt, and over when every rank of it has reported. Whoever waits looks several
times a second; whoever looks gives a sign of life, so that rank 0 does not wait for one that is gone.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import Store

POLL_SECONDS = 0.2
BEAT_SECONDS = 2.0


@dataclass(frozen=True)
class Seat:
    """Where the launcher put a process. local_rank: its number on this node, by which it knows its device."""

    host: str
    local_rank: int


@dataclass(frozen=True)
class Order:
    """A launch. device: cpu or cuda. window: fields of a `Window`. address, port: of its store.

    sizes: of each rank, how many share its node; so many ranks there are.
    """

    run: str
    attempt: int
    device: str
    window: dict[str, int]
    address: str
    port: int
    sizes: list[int]


@dataclass(frozen=True)
class Report:
    """How a rank ended. figures: what it measured. failure: fields of a `Failure`; none where it was halted."""

    code: int
    figures: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None


class Board:
    """One process's view of it."""

    def __init__(self, store: Store, rank: int):
        self._store, self._rank = store, rank
        self._beats, self._last_beat = 0, 0.0

    def sit(self, seat: Seat) -> None:
        """Say that this process is here."""
        self.beat()
        self._write(f"seat-{self._rank}", asdict(seat))

    def seats(self, size: int) -> list[Seat | None]:
        """Of each process, where it sits; None of one that is not here yet."""
        keys = [f"seat-{rank}" for rank in range(size)]
        return [Seat(**self._read(key)) if self._store.check([key]) else None for key in keys]

    def beat(self) -> None:
        """A sign of life, now and then."""
        if time.monotonic() - self._last_beat > BEAT_SECONDS:
            self._beats, self._last_beat = self._beats + 1, time.monotonic()
            self._store.set(f"beat-{self._rank}", str(self._beats))

    def beats(self, ranks: int) -> list[bytes]:
        """Of the first so many, which sign of life was the last."""
        found: list[bytes] = self._store.multi_get([f"beat-{rank}" for rank in range(ranks)])
        return found

    def post(self, number: int, order: Order | None) -> None:
        """The launch of this number, from 0; None: there are no more."""
        self._write(f"order-{number}", asdict(order) if order is not None else None)

    def order(self, number: int) -> Order | None:
        """Wait for it, without a time limit: rank 0 may be tokenizing."""
        while not self._store.check([f"order-{number}"]):
            self.wait()
        found = self._read(f"order-{number}")
        return Order(**found) if found is not None else None

    def wait(self) -> None:
        self.beat()
        time.sleep(POLL_SECONDS)

    def halt(self, number: int) -> None:
        """End the ranks of a launch that still run."""
        self._store.set(f"halt-{number}", "")

    def halted(self, number: int) -> bool:
        return bool(self._store.check([f"halt-{number}"]))

    def report(self, number: int, report: Report) -> None:
        """Of this process's rank in a launch."""
        self._write(f"report-{number}-{self._rank}", asdict(report))
        if report.failure is not None:
            self._store.add(f"failed-{number}", 1)
        self._store.add(f"ended-{number}", 1)

    def ended(self, number: int) -> tuple[int, bool]:
        """How many ranks of a launch have reported, and whether one has failed."""
        return self._store.add(f"ended-{number}", 0), self._store.add(f"failed-{number}", 0) > 0

    def reports(self, number: int, world: int) -> list[Report]:
        """Of all ranks, in their order."""
        return [Report(**self._read(f"report-{number}-{rank}")) for rank in range(world)]

    def interrupt(self) -> None:
        """This process was told to stop, and so the bench is."""
        self._store.set("interrupted", "")

    def interrupted(self) -> bool:
        return bool(self._store.check(["interrupted"]))

    def _write(self, key: str, value: Any) -> None:
        self._store.set(key, json.dumps(value))

    def _read(self, key: str) -> Any:
        return json.loads(self._store.get(key))
