"""Whether this process is a rank, and which: read from the environment alone, without torch.

Our own agent and torchrun, `accelerate launch`, `deepspeed` set RANK, WORLD_SIZE and MASTER_ADDR; Slurm's srun sets SLURM_*.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.choices import ConfigError

# Step ids from here on are Slurm's own: the batch script, an interactive shell.
_SLURM_SPECIAL_STEPS = 0xFFFF0000
_DEFAULT_PORT = 29500


@dataclass(frozen=True)
class RankEnv:
    """A rank's place, and where the host-side store of its world listens.

    launcher: who started it: agent, torchrun, slurm, environment (the variables alone). joins: the launcher serves the store, no rank does.
    store_fd: a listening socket that rank 0 inherited for the store. threads: CPU threads of a rank, where the launcher decided.
    own_view: each rank of a node may see its own GPU alone, which every one of them then calls number 0.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    launcher: str
    attempt: int = 0
    joins: bool = False
    store_fd: int | None = None
    device: str | None = None
    threads: int | None = None
    own_view: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.local_size):
            raise ConfigError(
                f"{self.launcher} says rank {self.rank} of {self.size}, local rank {self.local_rank} of {self.local_size}: "
                "these cannot be; look at RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE (srun: SLURM_PROCID, SLURM_LOCALID)"
            )

    def variables(self) -> dict[str, str]:
        """The variables by which libraries know their rank."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def agent_rank(env: Mapping[str, str]) -> RankEnv | None:
    """This process's place if our own agent started it."""
    if "TRAINER_ATTEMPT" not in env:
        return None
    descriptor, threads = env.get("TRAINER_STORE_FD"), env.get("OMP_NUM_THREADS", "")
    return RankEnv(
        rank=int(env["RANK"]),
        size=int(env["WORLD_SIZE"]),
        local_rank=int(env["LOCAL_RANK"]),
        local_size=int(env["LOCAL_WORLD_SIZE"]),
        address=env["MASTER_ADDR"],
        port=int(env["MASTER_PORT"]),
        launcher="agent",
        attempt=int(env["TRAINER_ATTEMPT"]),
        store_fd=int(descriptor) if descriptor else None,
        device=env.get("TRAINER_DEVICE"),
        threads=int(threads) if threads.isdecimal() else None,
        own_view="TRAINER_OWN_VIEW" in env,
    )


def agent_variables(place: RankEnv) -> dict[str, str]:
    """What `agent_rank` reads of a rank that this process starts."""
    found = place.variables() | {"TRAINER_ATTEMPT": str(place.attempt), "TRAINER_AGENT_PID": str(os.getpid())}
    given = {"TRAINER_STORE_FD": place.store_fd, "TRAINER_DEVICE": place.device, "OMP_NUM_THREADS": place.threads}
    given["TRAINER_OWN_VIEW"] = place.own_view or None
    return found | {name: str(value) for name, value in given.items() if value is not None}


def foreign_rank(env: Mapping[str, str]) -> RankEnv | None:
    """This process's place if another launcher started it as one rank of several, or of one; None for an ordinary process.

    Raises ConfigError where the launcher's variables contradict each other, or are no numbers.
    """
    if "TRAINER_ATTEMPT" in env:
        return None
    try:
        return _from_torch(env) if all(env.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")) else _from_slurm(env)
    except ConfigError:
        raise
    except ValueError as error:
        named = re.compile(r"RANK|WORLD_SIZE|^MASTER_|^SLURM_(STEP|PROC|NODE|LOCAL)")
        given = {name: value for name, value in sorted(env.items()) if named.search(name)}
        raise ConfigError(f"the launcher's variables: {error}; given: {given}") from error


def _from_torch(env: Mapping[str, str]) -> RankEnv:
    rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
    return RankEnv(
        rank=rank,
        size=size,
        local_rank=int(env.get("LOCAL_RANK", 0)),
        # DeepSpeed's launcher says LOCAL_SIZE. With neither, one process a machine is what hand-written variables mean.
        local_size=int(env.get("LOCAL_WORLD_SIZE") or env.get("LOCAL_SIZE") or int(env.get("LOCAL_RANK", 0)) + 1),
        address=env["MASTER_ADDR"],
        port=int(env.get("MASTER_PORT") or _DEFAULT_PORT),
        launcher="torchrun" if "TORCHELASTIC_RUN_ID" in env else "environment",
        attempt=int(env.get("TORCHELASTIC_RESTART_COUNT") or 0),
        joins=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _from_slurm(env: Mapping[str, str]) -> RankEnv | None:
    step, tasks = env.get("SLURM_STEP_ID", ""), env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or "1"
    # A shell of `srun --pty` is a step too, of one task; a batch script and an interactive step have ids of Slurm's own.
    if not step.isdecimal() or int(step) >= _SLURM_SPECIAL_STEPS or int(tasks) < 2 or "SLURM_PROCID" not in env:
        return None
    nodes = expand_nodes(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "localhost")
    counts = expand_counts(env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or tasks)
    node = int(env.get("SLURM_NODEID", 0))
    job = int(env.get("SLURM_JOB_ID", 0))
    return RankEnv(
        rank=int(env["SLURM_PROCID"]),
        size=int(tasks),
        local_rank=int(env.get("SLURM_LOCALID", 0)),
        local_size=counts[node] if node < len(counts) else counts[-1],
        address=env.get("MASTER_ADDR") or nodes[0],
        # Every task derives the same port without talking; another job on the node derives another.
        port=int(env.get("MASTER_PORT") or 20000 + (job * 101 + int(step)) % 12000),
        launcher="slurm",
        attempt=int(env.get("SLURM_RESTART_COUNT") or 0),
        own_view=True,
    )


def expand_nodes(text: str) -> list[str]:
    """Host names of Slurm's short form: `n[1-3,07],login` → n1 n2 n3 n07 login."""
    names: list[str] = []
    for part in re.findall(r"[^,\[\]]*(?:\[[^\]]*\][^,\[\]]*)*", text):
        if part:
            names.extend(_expand_brackets(part))
    return names


def _expand_brackets(part: str) -> list[str]:
    match = re.search(r"\[([^\]]*)\]", part)
    if match is None:
        return [part]
    names = []
    for item in match.group(1).split(","):
        first, _, last = item.partition("-")
        for number in range(int(first), int(last or first) + 1):
            names.extend(_expand_brackets(f"{part[: match.start()]}{number:0{len(first)}d}{part[match.end() :]}"))
    return names


def expand_counts(text: str) -> list[int]:
    """Tasks of each node from Slurm's short form: `4(x2),3` → 4 4 3."""
    counts: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item.strip())
        if match is None:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE: {text!r}; expected a form such as 4(x2),3")
        counts.extend([int(match.group(1))] * int(match.group(2) or 1))
    return counts


def cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loopback() -> str:
    """Name of the loopback interface."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if re.fullmatch(r"lo\d*", name)), "lo")


def is_public(address: str) -> bool:
    """Whether a host name or address is reachable from outside the site. A name that does not resolve is not."""
    try:
        found = socket.getaddrinfo(address, None)
    except OSError:
        return False
    return any(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_global for entry in found)
