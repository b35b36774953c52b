"""Vocabulary head and loss, apart and together: time, and the most bytes of tensors, forward and backward.

    python benchmarks/head.py [--rows 2048] [--width 768] [--vocabulary 50257] [--chunks 64,256,1024] [--rounds 5] [--dtype bfloat16]

apart: all logits at once, their loss by autograd. together: `head.chunk_mib`. Rounds in turns; bytes counted by torch's dispatch on a
CPU, by its allocator on a GPU. Prints a table.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import records
from trainer.models.heads import loss_sum
from trainer.models.linear_cross_entropy import linear_cross_entropy


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage()._cdata for leaf in tree_iter((args, kwargs or {})) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor) and (key := leaf.untyped_storage()._cdata) not in self._known | before:
                self._known.add(key)
                self.now += leaf.untyped_storage().nbytes()
                weakref.finalize(leaf.untyped_storage(), self._freed, key, leaf.untyped_storage().nbytes())
        self.most = max(self.most, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak(step: Callable[[], None], device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with Peak() as counted:
        step()
    return counted.most


def timed(step: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """CPU time and wall time of a step, seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for word, default in (("rows", 2048), ("width", 768), ("vocabulary", 50257), ("rounds", 5)):
        parser.add_argument(f"--{word}", type=int, default=default)
    parser.add_argument("--chunks", default="64,256,1024", help="MiB of logits in fp32 at once")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    given = parser.parse_args()
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, given.dtype)
    padded = -(-given.vocabulary // 64) * 64
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(given.rows, given.width, generator=draw).to(device).requires_grad_()
    weight = (0.02 * torch.randn(padded, given.width, generator=draw)).to(device).requires_grad_()
    targets = torch.randint(0, given.vocabulary, (given.rows,), generator=draw).to(device)

    def step(mib: float | None) -> None:
        hidden.grad = weight.grad = None
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            if mib is None:
                loss = loss_sum(F.linear(hidden, weight), targets, given.vocabulary)
            else:
                loss = linear_cross_entropy(hidden, weight, None, targets, given.vocabulary, max(1, int(mib * 2**20 / 4 / padded)))
        (loss / given.rows).backward()

    ways: dict[str, float | None] = {"apart": None} | {f"together, {mib} MiB": float(mib) for mib in given.chunks.split(",")}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    peaks = {name: peak(lambda mib=mib: step(mib), device) for name, mib in ways.items()}  # type: ignore[misc]
    for _ in range(given.rounds):
        for name, mib in ways.items():
            times[name].append(timed(lambda mib=mib: step(mib), device))  # type: ignore[misc]
    rows = []
    for name in ways:
        ratios = [[one[kind] / first[kind] for one, first in zip(times[name], times["apart"], strict=True)] for kind in (0, 1)]
        shown = [f"{statistics.median(each):.2f} ({min(each):.2f} – {max(each):.2f})" for each in ratios]
        rows.append([name, f"{1e3 * statistics.median(cpu for cpu, _ in times[name]):.0f}", *shown, f"{peaks[name] / 2**20:.0f}"])
    print(f"{given.rows} rows of {given.width}, {given.vocabulary} entries, {given.dtype}, {device.type}, {given.rounds} rounds in turns\n")
    print(records.table(["head and loss", "CPU time, ms", "ratio (range)", "wall time, ratio (range)", "peak, MiB"], rows))


if __name__ == "__main__":
    main()
