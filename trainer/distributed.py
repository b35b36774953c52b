"""The processes of a run: who this rank is, the host-side store, the process group."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from trainer.choices import ConfigError
from trainer.environment import RankEnv, cores, is_public
from trainer.strategies import tell_engines

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

    from trainer.config import Config

# How long a rank waits for the store of its world to answer: the others may still be importing, or waiting for their node.
CONNECT_SECONDS = 300.0
_LEAVE_SECONDS = 60.0


@dataclass(frozen=True)
class World:
    """This rank's place. store: host-side, None where the world is one process without a group."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    store: Store | None = None
    attempt: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0


def alone(device: str = "cpu") -> World:
    """This process by itself: how a run is looked at from outside. device: cpu or cuda."""
    import torch

    return World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device(device))


def device_of(asked: str | None) -> torch.device:
    """The device that an option `device` names; by default a GPU where there is one. Raises ConfigError where there is none."""
    import torch

    from trainer.choices import ConfigError

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise ConfigError("device=cuda: no GPU is visible here; use device=cpu, or show a GPU")
    return torch.device(asked or ("cuda" if there else "cpu"))


def connect(place: RankEnv) -> Store:
    """The host-side store of this world, under a prefix of its own for each attempt.

    Raises ConnectionError naming host and port where it cannot be served or reached (F06).
    """
    from torch.distributed import DistError, PrefixStore, TCPStore

    if place.launcher != "agent" and place.rank == 0 and is_public(place.address):
        warnings.warn(
            f"MASTER_ADDR={place.address} is a public address, and the rendezvous store has no authentication: "
            "anyone who reaches the port can disturb the run; use an address of the private network",
            stacklevel=2,
        )
    serves = place.rank == 0 and not place.joins
    address = _served(place) if serves else place.address
    descriptor = None
    if serves:
        descriptor = place.store_fd if place.store_fd is not None else listen(place).detach()
    try:
        store = TCPStore(
            address,
            place.port,
            None,
            serves,
            timeout=timedelta(seconds=CONNECT_SECONDS),
            wait_for_workers=False,
            master_listen_fd=descriptor,
        )
    except (DistError, RuntimeError) as error:
        raise ConnectionError(f"no store at {place.address}:{place.port} for rank {place.rank} of {place.size}: {error}") from error
    return PrefixStore(f"attempt-{place.attempt}", store)


def _served(place: RankEnv) -> str:
    """The address on which rank 0 serves the store: other nodes must reach it, where there are any."""
    return _reachable(place.address) if place.size > place.local_size else place.address


def _reachable(name: str) -> str:
    """Where rank 0 serves other nodes: the name, or this host's outward address where its own name is an alias of loopback.

    Debian's installers put the host name at 127.0.1.1: rank 0 would hear nobody, while the others resolve the name to its true address.
    """
    try:
        found = {ipaddress.ip_address(str(info[4][0])) for info in socket.getaddrinfo(name, None)}
    except (OSError, ValueError):
        return name  # listening says what is wrong with it
    own = name.split(".")[0] == socket.gethostname().split(".")[0]
    if not own or not all(address.is_loopback for address in found):
        return name
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing: the kernel only chooses the interface towards other networks
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConnectionError(
            f"rank 0 would listen on {name}, which is {min(map(str, found))} here and out of the other nodes' reach; "
            "set MASTER_ADDR to this host's address on their network"
        ) from error


def listen(place: RankEnv) -> socket.socket:
    """Where rank 0 serves the store of its world, on this one address: torch's own would take every interface of the host (S07).

    Raises ConnectionError. Port 0: one that is free.
    """
    address, port = _served(place), place.port
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(1024)
    except OSError as error:
        raise ConnectionError(
            f"rank 0 cannot listen on {address}:{port}: {error.strerror or error}; "
            "MASTER_ADDR must be an address of rank 0's host, and MASTER_PORT a free port there"
        ) from error
    return listener


def start(config: Config, place: RankEnv, store: Store | None = None) -> World:
    """Take this rank's place: its device, its CPU threads, its store and process group.

    store: the world's, where the caller has connected already. Raises ConfigError where the device is not there.
    """
    import torch

    single = place.size == 1 and config.strategy.processes == 1
    os.environ.update(place.variables())  # srun sets none of them, and the engines read them
    threads = config.device.threads or place.threads or max(1, cores() // place.local_size)  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    device = _device(config.device.kind, place)
    tell_engines(device.type)
    if config.deterministic:
        # cuBLAS reads it when its handle is made, which is later.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if single:
        return World(place.rank, place.size, place.local_rank, place.local_size, device, None, place.attempt)

    from torch import distributed as dist

    store = store if store is not None else connect(place)
    timeout = timedelta(seconds=config.survival.timeout_seconds)  # type: ignore[attr-defined]
    store.set_timeout(timeout)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=place.rank,
        world_size=place.size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return World(place.rank, place.size, place.local_rank, place.local_size, device, store, place.attempt)


def _device(kind: str, place: RankEnv) -> torch.device:
    import torch

    # What the launcher counted on decides: falling back to the CPU silently would train for a year.
    wanted = place.device or kind
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = 0 if place.own_view and visible == 1 else place.local_rank
    if index >= visible:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise ConfigError(
            f"device={kind}: local rank {place.local_rank} of {place.local_size} needs its own GPU, but torch sees {visible} "
            f"on {socket.gethostname()} (CUDA_VISIBLE_DEVICES={'not set' if hidden is None else repr(hidden)}); "
            "start fewer processes, show more GPUs, or use device=cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def stop(world: World) -> None:
    """Leave the world in order. Not for a rank that failed: its peers would be waited for."""
    from torch import distributed as dist

    if world.store is None:
        return
    leave(world.store, world.rank, world.size)
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(store: Store, rank: int, size: int) -> None:
    """Rank 0 serves the store, so it goes last: it waits until all the others need it no more."""
    arrived = store.add("leaving", 1)
    deadline = time.monotonic() + _LEAVE_SECONDS
    while rank == 0 and arrived < size and time.monotonic() < deadline:
        time.sleep(0.01)
        arrived = store.add("leaving", 0)
