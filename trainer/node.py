"""The rank processes of one node: their environment, logs, exit codes, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from trainer.environment import RankEnv, agent_variables, cores, loopback
from trainer.survival.causes import Failure, ended, error_path


def within_machine() -> dict[str, str]:
    """Where all ranks are on one machine: nothing of theirs listens on another interface, whatever the shell has set for cluster runs."""
    return {name: loopback() for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}


def log_of(run_dir: Path, rank: int) -> Path:
    """What a rank writes beside its figures."""
    return run_dir / "logs" / f"rank-{rank:05d}.log"


@dataclass
class Rank:
    """A process that was started as a rank of a run. offset: where this attempt begins in its log."""

    run_dir: Path
    rank: int
    process: subprocess.Popen[bytes]
    offset: int

    @classmethod
    def start(cls, run_dir: Path, place: RankEnv, module: str, more: dict[str, str]) -> Rank:
        """This process is its agent. module: what it runs, given the run directory. more: variables beside those of its place."""
        path = log_of(run_dir, place.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        error_path(run_dir, place.rank).unlink(missing_ok=True)
        leads = place.rank == 0
        with path.open("ab") as log:
            log.write(f"--- attempt {place.attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            log.flush()
            offset = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=None if leads else log,  # rank 0 speaks to the user
                stderr=log,
                env=os.environ | agent_variables(place) | {"PYTHONUNBUFFERED": "1"} | more,
                start_new_session=True,  # out of reach of the terminal, and a group that can be killed with all its children
                pass_fds=() if place.store_fd is None else (place.store_fd,),
            )
        return cls(run_dir, place.rank, process, offset)

    def failure(self) -> Failure:
        """The account of a rank that ended."""
        code = self.process.poll()
        assert code is not None, "asked of a rank that still runs"
        with log_of(self.run_dir, self.rank).open("rb") as log:
            log.seek(self.offset)
            text = log.read().decode(errors="replace")
        return ended(self.run_dir, self.rank, code, text)

    def kill(self) -> None:
        """End it with its children, if it still runs. Not waited for."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Node:
    """All ranks of a run on this machine. device: cpu or cuda. threads: CPU threads of each. module: what a rank runs."""

    run_dir: Path
    processes: int
    device: str = "cpu"
    threads: int | None = None
    module: str = "trainer.rank"
    _ranks: list[Rank] = field(default_factory=list, init=False)

    def start(self, attempt: int) -> None:
        """Start all ranks of an attempt. The socket of their store is bound here, so nobody can take its port, and to loopback alone."""
        self._ranks = []
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1024)
            for rank in range(self.processes):
                place = self._place(rank, attempt, listener)
                self._ranks.append(Rank.start(self.run_dir, place, self.module, within_machine()))

    def _place(self, rank: int, attempt: int, listener: socket.socket) -> RankEnv:
        host, port = listener.getsockname()
        shared = None if os.environ.get("OMP_NUM_THREADS") else max(1, cores() // self.processes)
        return RankEnv(
            rank=rank,
            size=self.processes,
            local_rank=rank,
            local_size=self.processes,
            address=host,
            port=port,
            launcher="agent",
            attempt=attempt,
            store_fd=listener.fileno() if rank == 0 else None,
            device=self.device,
            threads=self.threads or shared,
        )

    def poll(self) -> list[int | None]:
        """Exit codes by rank: None while it runs, negative for a signal."""
        return [rank.process.poll() for rank in self._ranks]

    def log(self, rank: int) -> Path:
        return log_of(self.run_dir, rank)

    def failure(self, rank: int) -> Failure:
        """The account of a rank that ended."""
        return self._ranks[rank].failure()

    def kill(self) -> None:
        """End every rank that still runs, with its children, and wait until they are gone."""
        for rank in self._ranks:
            rank.kill()
        for rank in self._ranks:
            rank.process.wait()
