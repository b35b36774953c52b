"""Processes on this machine: one agent, which starts one process a device."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, ClassVar

from trainer.choices import ConfigError, choice, placement
from trainer.process import STOPPING

from . import Handle, Launcher
from .devices import GPUs, capabilities, find_gpus

if TYPE_CHECKING:
    from trainer.config import Config

CPU_PROCESSES = 2


@choice
class Local(Launcher):
    """This machine: every visible GPU, or two processes on the CPU."""

    # What a rank runs; trials of a run have their own.
    module: ClassVar[str] = "trainer.rank"
    name: str = "local"
    processes: int | None = placement(None, help="processes on this machine; default: all GPUs, 2 on the CPU, 1 with strategy=single")

    def check(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise ConfigError(f"launcher.processes: {self.processes}; must be at least 1")

    def ready(self, config: Config) -> int:
        return self.resources(config)[0]

    def resources(self, config: Config) -> tuple[int, str]:
        """(processes, device kind) on this machine. Raises ConfigError where more is asked than there is (B09, B10)."""
        wanted, only = self.processes, config.strategy.processes
        if wanted is not None and only is not None and wanted != only:
            raise ConfigError(
                f"launcher.processes: {wanted}, but strategy={config.strategy.name} is {only} process; "
                f"leave launcher.processes out, or choose another strategy, e.g. strategy=ddp"
            )
        wanted = wanted or only
        kind = config.device.kind
        if kind == "cpu":
            return wanted or CPU_PROCESSES, "cpu"
        gpus = find_gpus()
        if not gpus.count:
            if kind == "cuda":
                raise ConfigError(
                    f"device=cuda: {wanted or 'a number of'} GPUs asked for, but {gpus.why()}; use device=cpu, or show the GPUs"
                )
            return wanted or CPU_PROCESSES, "cpu"
        if wanted is not None and wanted > gpus.count:
            raise ConfigError(
                f"launcher.processes: {wanted} asked for, but {gpus.why()}; "
                f"use launcher.processes={gpus.count}, show more of them, or use device=cpu"
            )
        require_precision(config, gpus)
        return wanted or gpus.count, "cuda"

    def submit(self, run_dir: Path, config: Config, lock: int | None = None) -> LocalHandle:
        processes, kind = self.resources(config)
        survival = config.survival
        command = [sys.executable, "-P", "-m", "trainer.agent", str(run_dir), f"--processes={processes}", f"--device={kind}"]
        command += [f"--restarts={survival.restarts}", f"--front-door={os.getpid()}", f"--module={self.module}"]  # type: ignore[attr-defined]
        if config.device.threads is not None:  # type: ignore[attr-defined]
            command.append(f"--threads={config.device.threads}")  # type: ignore[attr-defined]
        return LocalHandle(start_agent(command, lock))


def require_precision(config: Config, gpus: GPUs) -> None:
    """Raise ConfigError where a GPU that is visible does not compute in the precision that is asked for (B10)."""
    needed = config.precision.capability
    lacking = [(name, has) for name, has in capabilities() if has < needed] if needed > (0, 0) else []
    # The driver may number GPUs in another order than nvidia-smi lists them: counted, and refused only where too few are left.
    if gpus.present - len(lacking) < gpus.visible:
        (name, has), asked = lacking[0], config.precision.name
        raise ConfigError(
            f"precision={asked}: {name} on {socket.gethostname()} has compute capability {has[0]}.{has[1]}; GPUs compute in {asked} from "
            f"{needed[0]}.{needed[1]} on, and emulate it below; use precision=fp16 or fp32, or show other GPUs"
        )


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """What is started inside gets Ctrl-C and SIGTERM once it asks for them: an interpreter that has only begun would fall over them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@_signals_held()
def start_agent(command: list[str], lock: int | None = None) -> subprocess.Popen[bytes]:
    """Start an agent in a session of its own: a terminal's Ctrl-C reaches the front door alone, which passes it on."""
    sys.stdout.flush()
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": search_path()},
        start_new_session=True,
        pass_fds=() if lock is None else (lock,),
    )


def search_path() -> str:
    """PYTHONPATH for processes started with -P: they search the working directory exactly where this process does."""
    inherited = os.environ.get("PYTHONPATH", "")
    here = os.getcwd()
    searched = any(entry in ("", here) for entry in sys.path)
    return os.pathsep.join(filter(None, [here if searched else "", inherited]))


class LocalHandle(Handle):
    """A run whose agent is a child of this process."""

    def __init__(self, agent: subprocess.Popen[bytes]):
        self.agent = agent

    def wait(self) -> int:
        with _forwarding(self.agent):
            code = self.agent.wait()
        return code if code >= 0 else 128 - code

    def cancel(self) -> None:
        if self.agent.poll() is None:
            self.agent.send_signal(signal.SIGINT)


@contextlib.contextmanager
def _forwarding(agent: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass Ctrl-C, SIGTERM and a closed terminal on to the agent. Only the main thread may set handlers; elsewhere nothing is forwarded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _frame: FrameType | None) -> None:
        if agent.poll() is None:
            agent.send_signal(number)

    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
