"""`micro_batch=auto`: the rows that a device takes at once, found by trying in a process that is thrown away.

python -m trainer.micro_batch RUN_DIR ROWS      prints one JSON line
"""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError
from trainer.config import Config, load
from trainer.run import RunDir
from trainer.strategies.matrix import CUT

if TYPE_CHECKING:
    import torch

    from trainer.data.corpus import Split
    from trainer.data.loading import Step
    from trainer.data.rows import Table
    from trainer.strategies import Placement

# A larger micro-batch must be this much faster a row, or it is not worth its memory.
_GAIN = 1.05
_MEMORY_SHARE = 0.8
_REFUSED = 78  # exit code: the last line of stderr is for the user


def resolve(config: Config, run: RunDir, world_size: int) -> int:
    """The configured micro-batch, the one this run already has for this placement, or the best of a trial. Raises ConfigError."""
    rows = -(-config.global_batch // world_size)
    if config.task.joint:
        return _of_all(config, rows, world_size)
    if not isinstance(config.micro_batch, str):
        return config.micro_batch
    before = run.placement
    same = {"world_size": world_size, "strategy": config.strategy.name, "device": config.device.kind, "micro_batch_is_auto": True}
    if before.get("micro_batch") and all(before.get(key) == value for key, value in same.items()):
        return int(before["micro_batch"])
    # A process of its own: an allocation that fails leaves nothing behind, and the front door never touches a device.
    trial = subprocess.run(
        [sys.executable, "-m", "trainer.micro_batch", str(run.path), str(rows), str(world_size)], capture_output=True, text=True
    )
    if trial.returncode == _REFUSED:
        raise ConfigError(trial.stderr.strip().splitlines()[-1])
    lines = trial.stdout.strip().splitlines()
    # Killed for memory, it has told the best so far: what was too much is what killed it.
    if trial.returncode not in (0, -signal.SIGKILL):
        raise ConfigError(
            f"micro_batch=auto: the trial failed; set micro_batch=1 or more yourself. It said:\n{trial.stderr.strip()[-2000:]}"
        )
    best = int(json.loads(lines[-1])["micro_batch"]) if lines else 0
    return best or _of_none(config)


def sizes(rows: int) -> list[int]:
    """What is tried: powers of two up to a rank's share of the global batch, and that share itself."""
    return [*(2**power for power in range(rows.bit_length()) if 2**power < rows), rows]


def _of_none(config: Config) -> int:
    """What is taken where one device has no room for the whole state and a row. Raises ConfigError where the strategy cuts nothing."""
    if config.strategy.name not in CUT:
        raise ConfigError("micro_batch=auto: not even one row fits on the device; use a smaller model or sequence_length, or strategy=fsdp")
    print(
        "micro_batch=auto: 1 is taken, for the one device on which it is tried has no room for the whole state and a row. "
        f"strategy={config.strategy.name} cuts the state, so that a larger one may fit: try micro_batch=2, 4, …",
        flush=True,
    )
    return 1


def _of_all(config: Config, rows: int, world_size: int) -> int:
    """A loss that is of all rows together cannot be added up from parts. rows: a rank's share of the global batch."""
    if isinstance(config.micro_batch, str):
        return rows
    if config.micro_batch < rows:
        raise ConfigError(
            f"micro_batch: {config.micro_batch} with task={config.task.name}, whose loss compares all {config.global_batch} rows of a "
            f"global batch; allowed: auto, or from {rows}, the share of each of {world_size} ranks. Where that does not fit: more devices, "
            "a smaller global_batch, or recompute.every=1"
        )
    return config.micro_batch


def trial(path: Path, rows: int, world_size: int, found: Callable[[int], None] = lambda size: None) -> dict[str, int]:
    """Double the micro-batch while it pays and fits: forward and backward of the longest rows, on one device. 0: not even one row fits.

    found: told of each better one; a process without memory may be killed before it can answer. A strategy that shards has more room than
    this trial sees, so what fits here fits there.
    """
    import torch

    from trainer.compiling import compiles
    from trainer.data.corpus import open_corpus
    from trainer.distributed import World
    from trainer.initial import start
    from trainer.models.activations import fuse_activations
    from trainer.models.compiled import compile_blocks
    from trainer.models.heads import chunk_head
    from trainer.models.recompute import recompute_blocks
    from trainer.strategies.single import Single
    from trainer.trainer import objective

    config = load(path / "config.yaml")
    resolved = RunDir(path).placement
    corpus = open_corpus(resolved["corpus"], resolved["rows"], config)
    device = torch.device("cuda" if config.device.kind != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=device)
    begun = start(config, corpus, world)
    module = begun.module.train()
    fuse_activations(module, config.compile)
    if compiles(config, device.type):
        # The graph that is for any size: one for each would be compiled for longer than the trial takes.
        compile_blocks(module, config.compile)
    recompute_blocks(module, config.recompute)
    chunk_head(module, config.head)
    config.precision.prepare(module)
    best, best_rate = 0, 0.0
    with while_there_is_memory():
        placement = Single().place(module, begun.weights, config.adapter.watched(config.optim.build), config, world)
        for size in sizes(rows):
            step = longest_step(config, corpus.split("train"), size)
            batch = step.micro_batches[0].to(device)

            def backward() -> None:
                placement.accumulate(objective(placement.module(batch), config.weights, step.targets), last=True)  # noqa: B023

            # By tokens: the more rows, the shorter those that come to the longest.
            rate = step.tokens / seconds_of(placement, backward, config.optim.max_norm, device)
            if best and (rate < _GAIN * best_rate or not _fits(device)):
                break
            best, best_rate = size, rate
            found(best)
    return {"micro_batch": best}


@dataclass(frozen=True)
class Chosen:
    """An order of rows that are given one by one."""

    rows: NDArray[np.int64]

    def at(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.rows[start:stop], np.zeros(stop - start, np.int64)

    def passes(self, position: int) -> dict[str, float]:
        return {}


def longest_step(config: Config, split: Split, size: int) -> Step:
    """One micro-batch of the longest rows: what takes the most memory of all that training will meet."""
    from trainer.data.batches import Batches
    from trainer.data.loading import Loader

    order = Chosen(longest(split.rows, size))
    return Loader(config.task, split, order, Batches(size, size), size, teacher=config.teacher).step(0)


def longest(table: Table, count: int, at_once: int = 1 << 20) -> NDArray[np.int64]:
    """The `count` longest rows of a table, longest first; again from the first, where it has fewer. at_once: rows that are looked at."""
    found = np.zeros(0, np.int64)
    for start in range(0, len(table), at_once):
        found = np.concatenate([found, np.arange(start, min(start + at_once, len(table)), dtype=np.int64)])
        found = found[np.argsort(-np.asarray(table.lengths[found], np.int64), kind="stable")[:count]]
    return np.resize(found, count)


def seconds_of(placement: Placement, backward: Callable[[], None], max_norm: float | None, device: torch.device) -> float:
    """Of one micro-batch among several of a step: what is done once a step is the same for any size.

    It is done once here, for its memory; and gradients stay while time is taken, for theirs.
    """
    backward()
    placement.finish(0.0, max_norm)
    backward()
    return min(_timed(backward, device) for _ in range(3))


@contextlib.contextmanager
def while_there_is_memory() -> Iterator[None]:
    """Leave the block where memory ends. What else goes wrong is raised."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no more memory: PyTorch's on a GPU, its allocator's on a CPU, cuBLAS's for its workspace."""
    import torch

    told = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in told)


def _timed(once: Callable[[], None], device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    once()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _fits(device: torch.device) -> bool:
    """Whether the peak so far leaves room, for fragmentation and for the collectives' buffers."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_reserved() < _MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    import psutil

    return psutil.virtual_memory().available > (1 - _MEMORY_SHARE) * psutil.virtual_memory().total


if __name__ == "__main__":
    try:
        told = functools.partial(print, flush=True)
        best = trial(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), lambda size: told(json.dumps({"micro_batch": size})))
        told(json.dumps(best))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(_REFUSED)
