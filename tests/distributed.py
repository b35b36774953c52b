"""Real processes for tests: `run_distributed(fn, world, *args)` runs fn(World, *args) on every rank of a gloo group over loopback.

A fork server imports torch, transformers, accelerate and DeepSpeed once; each rank is then a fork of it, which starts in well under a
second. fn must be a function of an importable module; what it returns is JSON-like data, with tensors allowed in it.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

ROOT = Path(__file__).resolve().parents[1]

# The fork server inherits these; set before it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])


def run_distributed(fn: Callable[..., Any], world: int, *args: Any, timeout_seconds: float = 120.0, group: bool = True) -> list[Any]:
    """The results of fn(World, *args) by rank.

    group: with a gloo process group; without one (world 1) as `strategy=single` runs. Raises AssertionError with the traceback of
    every rank that failed, the first one first, or naming the ranks that did not answer in time; the processes are ended either way.
    """
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes: list[Connection] = []
    processes = []
    for rank in range(world):
        mine, theirs = _context.Pipe(duplex=False)
        process = _context.Process(target=_rank, args=(fn, rank, world, server.port if group else None, timeout_seconds, theirs, args))
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        return _collect(pipes, timeout_seconds)
    finally:
        for process in processes:
            process.kill()  # every rank has answered, or is given up
            process.join()


def fork(fn: Callable[..., Any], *args: Any) -> tuple[Any, Connection]:
    """A process that runs fn(*args, pipe) and may be killed, and the end of the pipe to read from."""
    mine, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=fn, args=(*args, theirs))
    process.start()
    theirs.close()
    return process, mine


def _collect(pipes: list[Connection], timeout_seconds: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: list[str] = []
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    while waiting:
        # After a first failure the others may wait for the lost rank forever; what they report at once is still of use.
        ready = wait(list(waiting), timeout=2.0 if failures else timeout_seconds)
        if not ready:
            failures.append(f"ranks {sorted(waiting.values())} did not answer within {timeout_seconds} s")
            break
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                good, payload = pipe.recv()
            except EOFError:
                good, payload = False, "died without a word"
            if good:
                results[rank] = torch.load(io.BytesIO(payload), weights_only=True)
            else:
                failures.append(f"rank {rank}: {payload}")
    if failures:
        raise AssertionError("\n".join(failures))
    return [results[rank] for rank in range(len(pipes))]


def _rank(
    fn: Callable[..., Any], rank: int, size: int, port: int | None, timeout_seconds: float, pipe: Connection, args: tuple[Any, ...]
) -> None:
    try:
        result = fn(_start(rank, size, port, timeout_seconds), *args)
        buffer = io.BytesIO()
        torch.save(result, buffer)
        pipe.send((True, buffer.getvalue()))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    finally:
        pipe.close()
        sys.stdout.flush()
        sys.stderr.flush()
        # Engines leave threads and groups behind; a test has its answer, so nothing of theirs may hold it up.
        os._exit(0)


def _start(rank: int, size: int, port: int | None, timeout_seconds: float) -> Any:
    from trainer.distributed import World

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port or 0))
    if port is None:
        return World(rank, size, rank, size, torch.device("cpu"))
    timeout = timedelta(seconds=timeout_seconds)
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout
    )
    return World(rank, size, rank, size, torch.device("cpu"), torch.distributed.PrefixStore("host", store))
