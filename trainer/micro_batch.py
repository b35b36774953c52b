"""`micro_batch=auto`: the rows that a device takes at once, found by trying in a process that is thrown away.

python -m trainer.micro_batch RUN_DIR ROWS      prints one JSON line
"""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.choices import ConfigError
from trainer.config import Config, load
from trainer.run import RunDir

if TYPE_CHECKING:
    import torch

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
    if trial.returncode not in (0, -signal.SIGKILL) or not lines:
        raise ConfigError(
            f"micro_batch=auto: the trial failed; set micro_batch=1 or more yourself. It said:\n{trial.stderr.strip()[-2000:]}"
        )
    return int(json.loads(lines[-1])["micro_batch"])


def sizes(rows: int) -> list[int]:
    """What is tried: powers of two up to a rank's share of the global batch, and that share itself."""
    return [*(2**power for power in range(rows.bit_length()) if 2**power < rows), rows]


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
    """Double the micro-batch while it pays and fits: forward and backward of the table's first rows, on one device.

    found: told of each better one; a process without memory may be killed before it can answer. A strategy that shards has more room than
    this trial sees, so what fits here fits there.
    """
    import torch

    from trainer.compiling import compiles
    from trainer.data.batches import Batches
    from trainer.data.corpus import open_corpus
    from trainer.data.loading import Loader
    from trainer.data.order import Order
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
    fuse_activations(begun.module, config.compile)
    if compiles(config, device.type):
        compile_blocks(begun.module, config.compile)
    recompute_blocks(begun.module, config.recompute)
    chunk_head(begun.module, config.head)
    config.precision.prepare(begun.module)
    placement = Single().place(begun.module, begun.weights, config.adapter.watched(config.optim.build), config, world)
    split = corpus.split("train")
    best, best_rate = 0, 0.0
    for size in sizes(rows):
        order = Order(0, len(split.rows), shuffle=False)
        loader = Loader(config.task, split, order, Batches(size, size), size, teacher=config.teacher)
        try:
            step = loader.step(0)
            batch = step.micro_batches[0].to(device)

            def once() -> None:
                placement.accumulate(objective(placement.module(batch), config.weights, step.targets), last=True)  # noqa: B023
                placement.finish(0.0, config.optim.max_norm)

            once()
            seconds = min(_timed(once, device) for _ in range(3))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        rate = size / seconds
        if best and (rate < _GAIN * best_rate or not _fits(device)):
            break
        best, best_rate = size, rate
        found(best)
    if not best and config.strategy.name not in ("fsdp", "hsdp"):
        raise ConfigError("micro_batch=auto: not even one row fits on the device; use a smaller model or sequence_length, or strategy=fsdp")
    return {"micro_batch": max(1, best)}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no more memory: PyTorch's on a GPU, its allocator's on a CPU, cuBLAS's for its workspace."""
    import torch

    told = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in told)


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
