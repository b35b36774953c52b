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

from trainer.environment import cores, loopback
from trainer.survival.causes import Failure, ended, error_path


@dataclass
class _Rank:
    process: subprocess.Popen[bytes]
    log: Path
    # Where this attempt begins in the log.
    offset: int


@dataclass
class Node:
    """Ranks on this machine. device: cpu or cuda. threads: CPU threads of each. module: what a rank runs, given the run directory."""

    run_dir: Path
    processes: int
    device: str = "cpu"
    threads: int | None = None
    module: str = "trainer.rank"
    _ranks: list[_Rank] = field(default_factory=list, init=False)

    def start(self, attempt: int) -> None:
        """Start all ranks of an attempt. The socket of their store is bound here, so nobody can take its port, and to loopback alone."""
        (self.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        self._ranks = []
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1024)
            for rank in range(self.processes):
                error_path(self.run_dir, rank).unlink(missing_ok=True)
                self._ranks.append(self._start(rank, attempt, listener))

    def _start(self, rank: int, attempt: int, listener: socket.socket) -> _Rank:
        path = self.log(rank)
        leads = rank == 0
        with path.open("ab") as log:
            log.write(f"--- attempt {attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            log.flush()
            offset = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module, str(self.run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=None if leads else log,  # rank 0 speaks to the user
                stderr=log,
                env=self._environment(rank, attempt, listener),
                start_new_session=True,  # out of reach of the terminal, and a group that can be killed with all its children
                pass_fds=(listener.fileno(),) if leads else (),
            )
        return _Rank(process, path, offset)

    def _environment(self, rank: int, attempt: int, listener: socket.socket) -> dict[str, str]:
        host, port = listener.getsockname()
        threads = self.threads or os.environ.get("OMP_NUM_THREADS") or max(1, cores() // self.processes)
        ours = {
            "RANK": rank,
            "WORLD_SIZE": self.processes,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": self.processes,
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            "TRAINER_ATTEMPT": attempt,
            "TRAINER_DEVICE": self.device,
            "TRAINER_AGENT_PID": os.getpid(),
            "OMP_NUM_THREADS": threads,
            # All ranks are here: nothing of theirs listens on another interface, whatever the shell has set for cluster runs.
            "GLOO_SOCKET_IFNAME": loopback(),
            "NCCL_SOCKET_IFNAME": loopback(),
            "PYTHONUNBUFFERED": 1,
        }
        if rank == 0:
            ours["TRAINER_STORE_FD"] = listener.fileno()
        return os.environ | {name: str(value) for name, value in ours.items()}

    def poll(self) -> list[int | None]:
        """Exit codes by rank: None while it runs, negative for a signal."""
        return [rank.process.poll() for rank in self._ranks]

    def log(self, rank: int) -> Path:
        return self.run_dir / "logs" / f"rank-{rank:05d}.log"

    def failure(self, rank: int) -> Failure:
        """The account of a rank that ended."""
        which = self._ranks[rank]
        code = which.process.poll()
        assert code is not None, "asked of a rank that still runs"
        with which.log.open("rb") as log:
            log.seek(which.offset)
            text = log.read().decode(errors="replace")
        return ended(self.run_dir, rank, code, text)

    def kill(self) -> None:
        """End every rank that still runs, with its children, and wait until they are gone."""
        for rank in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.process.pid, signal.SIGKILL)
        for rank in self._ranks:
            rank.process.wait()
