"""A bench in the seats of another launcher: who starts which rank, who is told what, and that nobody waits for one that is gone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from torch.distributed import PrefixStore, Store, TCPStore

from tests.bench.standin import MODULE
from tests.launch.processes import until
from trainer import compose
from trainer.bench import board, crew
from trainer.bench.board import Board, Order, Seat
from trainer.bench.cells import Cell, Plan, Scaling, State, cells_of
from trainer.bench.crew import Crew
from trainer.bench.launching import LaunchError
from trainer.bench.supervising import nodes_of, serve, sizes_of
from trainer.environment import RankEnv, cores
from trainer.node import within_machine
from trainer.run import RunDir

WINDOW = {"warmup": 1, "steps": 2, "looked": 0}
# Two on the first node, one on the second; all here.
LOCAL = (0, 1, 0)


def place(rank: int, port: int) -> RankEnv:
    return RankEnv(rank, len(LOCAL), LOCAL[rank], LOCAL[rank] + 1, "127.0.0.1", port, "environment")


class Bench:
    """A crew, the store that it talks over, and a run to launch."""

    def __init__(self, folder: Path):
        self.server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.run = RunDir(folder)
        self.run.path.mkdir()
        self.run.config_path.touch()
        self.crew = Crew(place(0, self.server.port), Board(self.store(), 0), MODULE)
        self.config = compose("strategy=ddp", "device=cpu", "steps=3", f"output_dir={folder}")

    def store(self) -> Store:
        """Another process's connection."""
        return PrefixStore("bench", TCPStore("127.0.0.1", self.server.port, wait_for_workers=False))

    def launch(self, world: int, **fault: str) -> list[dict]:
        (self.run / "fault.json").write_text(json.dumps(fault))
        return self.crew.launch(Cell({}, [], config=self.config, world=world), self.run, WINDOW, lock=0)

    @property
    def alive(self) -> list[int]:
        """Ranks of the last launches that still run."""
        return [pid for file in self.run.path.glob("pid-*") if psutil.pid_exists(pid := int(file.read_text()))]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for name in within_machine():
        monkeypatch.delenv(name, raising=False)  # other tests speak within the machine alone
    made = Bench(tmp_path / "run")
    others = [threading.Thread(target=serve, args=(place(rank, 0), Board(made.store(), rank), MODULE)) for rank in (1, 2)]
    for thread in others:
        thread.start()
    made.crew.gather()
    yield made
    made.crew.dismiss()
    for thread in others:
        thread.join(timeout=30)
        assert not thread.is_alive(), "who is dismissed leaves"


def test_each_launch_is_of_the_first_so_many_seats(bench: Bench) -> None:
    for world, sizes in ((3, (2, 2, 1)), (1, (1,))):
        ranks = bench.launch(world)
        assert [(rank["rank"], rank["size"], rank["local_rank"], rank["local_size"]) for rank in ranks] == [
            (number, world, LOCAL[number], size) for number, size in enumerate(sizes)
        ]
        assert {rank["port"] for rank in ranks} != {bench.server.port} and len({rank["port"] for rank in ranks}) == 1
        assert [rank["store_fd"] is not None for rank in ranks] == [True] + [False] * (world - 1)
        assert all(rank["window"] == WINDOW and rank["device"] == "cpu" for rank in ranks)
        assert all(rank["threads"] == max(1, cores() // rank["local_size"]) for rank in ranks)
        assert all(rank["loopback"] == (world == 1) for rank in ranks), "one machine is not spoken of outside of it"
    found = bench.crew.conditions("cpu")
    assert (found["launcher"], found["nodes"]) == ("environment", 2) and "devices" not in found
    assert bench.crew.conditions("cuda")["devices"] == 3


def test_a_rank_that_fails_ends_its_launch_and_no_other(bench: Bench) -> None:
    with pytest.raises(LaunchError, match=r"rank 1 at step 3 on .*MemoryError: out of memory: injected"):
        bench.launch(3, **{"1": "raise"})
    assert not bench.alive
    (event,) = bench.run.events("failure")
    assert event["rank"] == 1 and "injected" in event["reason"]
    assert len(bench.launch(2)) == 2


def test_a_run_that_a_node_does_not_have_is_a_failure_of_its_ranks(bench: Bench, tmp_path: Path) -> None:
    told = bench.crew.board
    told.post(0, Order(str(tmp_path / "elsewhere"), 0, "cpu", WINDOW, "127.0.0.1", 1, [2, 2, 1]))
    bench.crew.launches = 1
    until(lambda: told.ended(0) == (2, True), seconds=20)
    found = json.loads(bench.store().get("report-0-2"))
    assert found["failure"]["rank"] == 2 and "output_dir must be the same folder on all nodes" in found["failure"]["reason"]


def test_one_that_is_told_to_stop_stops_all(bench: Bench) -> None:
    told = threading.Timer(1.0, Board(bench.store(), 2).interrupt)
    told.start()
    with pytest.raises(KeyboardInterrupt):
        bench.launch(2, **{"0": "wait"})
    told.join()


def test_one_that_vanishes_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(board, "BEAT_SECONDS", 0.1)
    bench = Bench(tmp_path / "run")
    for rank in (1, 2):
        Board(bench.store(), rank).sit(Seat("elsewhere", LOCAL[rank]))
    bench.crew.gather()
    with pytest.raises(ConnectionError, match=r"no sign of life from rank 1 on elsewhere, 2 on elsewhere"):
        bench.launch(3)
    assert bench.crew.lost == 2 and not bench.alive


def test_cells_are_of_what_the_launcher_gave(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.crew.seats = [Seat("a", 0), Seat("a", 1), Seat("b", 0)]
    words = ["strategy=ddp,hsdp", "device=cpu", "global_batch=8"]
    (ddp, hsdp) = cells_of(words, Plan(scaling=Scaling.weak), tmp_path, bench.crew)
    assert ddp.world == 3 and ddp.config is not None and ddp.config.global_batch == 24
    assert hsdp.state is State.refused and "2 does not divide 3 processes" in hsdp.reason, "copies are of a node"
    one, four = cells_of(["strategy=ddp", "device=cpu"], Plan(processes=(1, 4)), tmp_path, bench.crew)
    assert one.world == 1 and four.state is State.refused and "environment started 3" in four.reason


@pytest.mark.parametrize(
    ("seats", "nodes", "sizes"),
    [
        ([("a", 0), ("a", 1), ("b", 0), ("b", 1)], [0, 0, 1, 1], [2, 2, 2, 2]),
        ([("a", 0), ("b", 0), ("a", 1)], [0, 1, 0], [2, 1, 2]),  # srun --distribution=cyclic
        ([("a", 0), ("a", 1), ("a", 0)], [0, 0, 1], [2, 2, 1]),  # containers that share their host's name
    ],
)
def test_seats_by_node(seats: list[tuple[str, int]], nodes: list[int], sizes: list[int]) -> None:
    given = [Seat(*each) for each in seats]
    assert nodes_of(given) == nodes and sizes_of(given) == sizes
