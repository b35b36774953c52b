"""Rank 0 of a bench that another launcher started: it orders launches of the first so many seats, and gathers what they report.

A rank that fails ends its launch alone. A process that vanishes ends the bench: under torchrun, which then kills the others, at once;
elsewhere after a minute without a sign of life. If rank 0 vanishes, the store does, and the others end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainer.bench.board import Board, Order, Report, Seat
from trainer.bench.launching import LaunchError, Machines
from trainer.bench.supervising import MODULE, Part, nodes_of, seat_of, sizes_of
from trainer.choices import ConfigError
from trainer.distributed import CONNECT_SECONDS, connect, leave, listen
from trainer.survival import STOPPED
from trainer.survival.attempts import next_attempt
from trainer.survival.causes import Failure, root

if TYPE_CHECKING:
    from trainer.bench.cells import Cell
    from trainer.config import Config
    from trainer.environment import RankEnv
    from trainer.run import RunDir

SILENCE_SECONDS = 60.0
# After the first rank has failed its peers fail too: their accounts are waited for this long, so that the earliest is found.
_ACCOUNT_SECONDS = 1.0


class Crew(Machines):
    """The processes that another launcher started. place: rank 0's. lost: how many do not answer any more."""

    def __init__(self, place: RankEnv, board: Board, module: str = MODULE):
        self.place, self.board, self.module = place, board, module
        self.launches, self.lost = 0, 0
        self.seats: list[Seat] = []

    def gather(self) -> None:
        """Wait until every process has its seat. Raises ConnectionError where one does not come."""
        self.board.sit(seat_of(self.place))
        deadline = time.monotonic() + CONNECT_SECONDS
        seats = self.board.seats(self.place.size)
        while None in seats:
            if time.monotonic() > deadline:
                late = [rank for rank, seat in enumerate(seats) if seat is None]
                self.lost = len(late)
                raise ConnectionError(f"ranks {late} of {self.place.size} did not come within {CONNECT_SECONDS:.0f} s")
            self.board.wait()
            seats = self.board.seats(self.place.size)
        self.seats = [seat for seat in seats if seat is not None]

    def dismiss(self) -> None:
        """There are no more launches."""
        self.board.post(self.launches, None)

    def placed(self, config: Config, processes: int | None) -> tuple[Config, int]:
        world = processes or self.place.size
        if world > self.place.size:
            raise ConfigError(f"processes: {world}, but {self.place.launcher} started {self.place.size}; start more, or ask for fewer")
        config.launcher.ready(config)  # on this node: the device, and what it computes in
        return config, world

    def per_node(self, world: int) -> int:
        return sizes_of(self.seats[:world])[0]

    def conditions(self, kind: str) -> dict[str, Any]:
        hosts = ", ".join(dict.fromkeys(seat.host for seat in self.seats))
        found = {"launcher": self.place.launcher, "nodes": len(set(nodes_of(self.seats))), "host": hosts}
        found |= {"threads": None}  # each rank has its share of the cores
        return found | ({"devices": self.place.size} if kind == "cuda" else {})

    def launch(self, cell: Cell, run: RunDir, window: dict[str, int], lock: int) -> list[dict[str, Any]]:
        assert cell.config is not None
        number, attempt = self.launches, next_attempt(run)
        run.event("launch", attempt=attempt, world_size=cell.world)
        kind = cell.config.launcher.resources(cell.config)[1]
        sizes = sizes_of(self.seats[: cell.world])
        # To loopback alone where all ranks are on this machine. Bound here and inherited by rank 0, so nobody can take the port.
        address = "127.0.0.1" if sizes[0] == cell.world else self.place.address
        first = dataclasses.replace(self.place, size=cell.world, local_size=sizes[0], address=address, port=0)
        with listen(first) as listener:
            order = Order(str(run.path), attempt, kind, window, address, listener.getsockname()[1], sizes)
            part = Part.start(number, order, self.place, self.board, listener.fileno(), self.module)
        try:
            self.launches += 1
            self.board.post(number, order)
            reports = self._reports(part)
        finally:
            part.kill()
            self.board.halt(number)
        if any(report.code == STOPPED for report in reports):
            raise KeyboardInterrupt
        failures = [Failure(**report.failure) for report in reports if report.failure is not None]
        if failures:
            raise LaunchError(_told(failures, run, attempt))
        return [report.figures or {} for report in reports]

    def _reports(self, part: Part) -> list[Report]:
        """Of every rank, once all have ended.

        Raises KeyboardInterrupt where a process was told to stop, ConnectionError where one is gone.
        """
        world = len(part.order.sizes)
        pulse = Pulse(self.board, world)
        deadline: float | None = None
        while True:
            part.over()
            if self.board.interrupted():
                raise KeyboardInterrupt
            ended, failed = self.board.ended(part.number)
            if ended == world:
                return self.board.reports(part.number, world)
            if failed and deadline is None:
                deadline = time.monotonic() + _ACCOUNT_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                self.board.halt(part.number)
            part.obey()
            if silent := pulse.silent():
                self.lost = len(silent)
                names = ", ".join(f"{rank} on {self.seats[rank].host}" for rank in silent)
                raise ConnectionError(f"no sign of life from rank {names} for {SILENCE_SECONDS:.0f} s; what was measured is kept")
            self.board.wait()


class Pulse:
    """Who of the first so many gives no sign of life any more, by this machine's clock."""

    def __init__(self, board: Board, world: int):
        self._board = board
        self._seen = [(beat, time.monotonic()) for beat in board.beats(world)]

    def silent(self) -> list[int]:
        """The ranks that have not been heard of for `SILENCE_SECONDS`."""
        now = time.monotonic()
        beats = self._board.beats(len(self._seen))
        self._seen = [(beat, now if beat != before else when) for beat, (before, when) in zip(beats, self._seen, strict=True)]
        return [rank for rank, (_, when) in enumerate(self._seen) if now - when > SILENCE_SECONDS]


def _told(failures: list[Failure], run: RunDir, attempt: int) -> str:
    """The root cause, as an event of the run too; its details go to the log of the launch."""
    cause = root(failures)
    print(cause, cause.details.rstrip(), sep="\n", file=sys.stderr, flush=True)
    run.event("failure", attempt=attempt, rank=cause.rank, step=cause.step, host=cause.host, reason=cause.reason)
    return str(cause)


@contextlib.contextmanager
def assembled(place: RankEnv) -> Iterator[Crew]:
    """The crew of a bench whose rank 0 is this process. Raises ConnectionError where it does not come together."""
    from torch.distributed import DistError

    store = connect(place)
    crew = Crew(place, Board(store, place.rank))
    try:
        crew.gather()
        yield crew
    except DistError as error:
        raise ConnectionError(f"the store of {place.launcher} is gone: {error}") from error
    finally:
        with contextlib.suppress(DistError):
            crew.dismiss()
            leave(store, place.rank, place.size - crew.lost)
