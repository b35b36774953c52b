"""Stop agreement: all ranks stop after the same step, at any moment of the request, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist

from trainer.distributed import World
from trainer.survival import stop as stopping
from trainer.survival.stop import Stop

ROOT = Path(__file__).resolve().parents[2]
DELAYS = st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.02]), min_size=1, max_size=8)


def world(rank: int, size: int, store: dist.Store | None) -> World:
    return World(rank, size, rank, size, torch.device("cpu"), store)


class Rank(threading.Thread):
    """A rank as a thread: steps are coupled by a barrier in the place of a collective."""

    def __init__(self, stop: Stop, budget: int, first: int, barrier: threading.Barrier, delays: list[float], asks_at: int | None):
        super().__init__(daemon=True)
        self.stop, self.budget, self.first, self.barrier, self.delays, self.asks_at = stop, budget, first, barrier, delays, asks_at
        self.done: list[int] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for step in range(self.first, self.first + self.budget):
                time.sleep(self.delays[step % len(self.delays)])
                if step - self.first == self.asks_at:
                    self.stop.request(f"asked in step {step}")
                if self.stop.should_stop(step):
                    break
                self.barrier.wait(timeout=10)
                self.done.append(step)
            self.stop.close()
        except Exception as error:
            self.error = error
            self.barrier.abort()


@settings(max_examples=40, deadline=None)
@given(
    budget=st.integers(1, 25),
    first=st.sampled_from([1, 900]),
    delays=st.lists(DELAYS, min_size=3, max_size=3),
    asks=st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=3, max_size=3),
)
def test_all_ranks_stop_after_the_same_step(budget: int, first: int, delays: list[list[float]], asks: list[int | None]) -> None:
    stopping._POLL_SECONDS = 0.001
    store = dist.HashStore()
    barrier = threading.Barrier(3)
    stops = [Stop(world(rank, 3, store)) for rank in range(3)]
    ranks = [Rank(stops[rank], budget, first, barrier, delays[rank], asks[rank]) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=20)
        assert not rank.is_alive(), "a rank waits for ever"
        assert rank.error is None, rank.error
    assert ranks[0].done == ranks[1].done == ranks[2].done
    if all(ask is None for ask in asks):
        assert ranks[0].done == list(range(first, first + budget)), "nobody asked"
    assert len({stop.reason for stop in stops if stop.reason}) <= 1, "one reason for all"


def test_three_processes_coupled_by_collectives_agree_in_every_round() -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(3):
        variables = {
            "RANK": rank,
            "WORLD_SIZE": 3,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": 3,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = (
            os.environ | {name: str(value) for name, value in variables.items()} | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        )
        command = [sys.executable, "-m", "tests.survival.soak", "120", "7"]
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert int(said[0].split()[1]) >= 20, "stops in the middle of a round are what this is about"


def test_one_process_stops_before_the_next_step(tmp_path: Path) -> None:
    stop = Stop(world(0, 1, None), tmp_path / "stop")
    assert not stop.should_stop(1) and not stop.requested
    (tmp_path / "stop").write_text("SIGTERM")
    while not stop.requested:
        time.sleep(0.001)
    while not stop.should_stop(2):
        time.sleep(0.001)
    assert stop.reason == "SIGTERM"
    stop.close()


def test_a_signal_is_a_request() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    stop = Stop(world(0, 1, None))
    try:
        stop.request_on(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 10
        step = 1
        while not stop.should_stop(step):
            assert time.monotonic() < deadline
            step += 1
            time.sleep(0.001)
        assert stop.reason == "SIGUSR1"
    finally:
        signal.signal(signal.SIGUSR1, before)
        stop.close()
