"""What a process does that another launcher started for a bench: start the rank of its seat whenever rank 0 orders a launch.

The process itself never touches a device. Each rank is a process of its own, so that nothing of one launch is left for the next; and it
goes when this one goes, however that ends.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.bench.board import Board, Order, Report, Seat
from trainer.bench.rank import FOLDER, WINDOW
from trainer.environment import RankEnv, cores
from trainer.launch.local import search_path
from trainer.node import Rank, within_machine
from trainer.process import interruptible
from trainer.run import RunDir
from trainer.survival import FINISHED, STOPPED
from trainer.survival.causes import Failure

MODULE = "trainer.bench.rank"
_INTERRUPTED = 130


@dataclass
class Part:
    """This seat's rank in one launch."""

    number: int
    order: Order
    board: Board
    rank: Rank
    figures: Path
    _halted: bool = False
    _reported: bool = False

    @classmethod
    def start(cls, number: int, order: Order, place: RankEnv, board: Board, store_fd: int | None = None, module: str = MODULE) -> Part:
        """place: of this process, as its launcher says. store_fd: where rank 0 listens. Raises OSError where the run is not here."""
        run, local_size = RunDir(order.run), order.sizes[place.rank]
        if not run.config_path.exists():
            raise FileNotFoundError(f"{run.path}: not the folder that rank 0 made ready; output_dir must be the same folder on all nodes")
        child = dataclasses.replace(
            place,
            size=len(order.sizes),
            local_size=local_size,
            address=order.address,
            port=order.port,
            launcher="agent",
            attempt=order.attempt,
            joins=False,
            store_fd=store_fd,
            device=order.device,
            # As a run under that launcher has it, whatever OMP_NUM_THREADS torchrun sets by itself.
            threads=max(1, cores() // local_size),
        )
        more = {WINDOW: json.dumps(order.window), "PYTHONPATH": search_path()}
        if local_size == child.size:
            more |= within_machine()
        figures = run / FOLDER / f"rank-{place.rank:05d}.json"
        figures.unlink(missing_ok=True)
        return cls(number, order, board, Rank.start(run.path, child, module, more), figures)

    def over(self) -> bool:
        """Whether it has ended; the first time it is told to rank 0."""
        code = self.rank.process.poll()
        if code is not None and not self._reported:
            self._reported = True
            self.rank.kill()  # what it started, and left
            self.board.report(self.number, self._report(code))
        return code is not None

    def _report(self, code: int) -> Report:
        if code == FINISHED:
            return Report(code, figures=json.loads(self.figures.read_text()))
        if code == STOPPED or self._halted:
            return Report(code)
        return Report(code, failure=asdict(self.rank.failure()))

    def obey(self) -> None:
        """End it where the launch is halted."""
        if not self._halted and self.board.halted(self.number):
            self._halted = True
            self.rank.kill()

    def kill(self) -> None:
        self.rank.kill()
        self.rank.process.wait()


def follow(place: RankEnv) -> int:
    """Serve rank 0 until it has no more orders. Returns the exit code. Raises ConnectionError where rank 0 is gone."""
    from torch.distributed import DistError

    from trainer.distributed import connect, leave

    store = connect(place)
    board, code = Board(store, place.rank), FINISHED
    try:
        try:
            with interruptible():
                serve(place, board)
        except KeyboardInterrupt:
            board.interrupt()
            code = _INTERRUPTED
        leave(store, place.rank, place.size)
    except DistError as error:
        raise ConnectionError(f"rank 0 of the bench is gone: {error}") from error
    return code


def serve(place: RankEnv, board: Board, module: str = MODULE) -> None:
    """Take a seat and follow orders until there are no more."""
    board.sit(seat_of(place))
    for number in itertools.count():
        order = board.order(number)
        if order is None:
            return
        if place.rank >= len(order.sizes):
            continue
        try:
            part = Part.start(number, order, place, board, module=module)
        except OSError as error:
            failure = Failure(place.rank, time.time(), f"{type(error).__name__}: {error}", host=socket.gethostname())
            board.report(number, Report(1, failure=asdict(failure)))
            continue
        try:
            while not part.over():
                part.obey()
                board.wait()
        finally:
            part.kill()


def seat_of(place: RankEnv) -> Seat:
    return Seat(socket.gethostname(), place.local_rank)


def nodes_of(seats: list[Seat]) -> list[int]:
    """Of each seat, the number of its node. Several containers may share their host's name; but on a node a local rank is there once."""
    keys = [(seat.host, seats[:rank].count(seat)) for rank, seat in enumerate(seats)]
    known = list(dict.fromkeys(keys))
    return [known.index(key) for key in keys]


def sizes_of(seats: list[Seat]) -> list[int]:
    """Of each seat, how many of these share its node."""
    nodes = nodes_of(seats)
    return [nodes.count(node) for node in nodes]
