"""The share of a step in which ranks talk, from a trace of torch's profiler: in flight, and exposed, when nothing is computed meanwhile."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.distributed import World

Interval = tuple[int, int]

# Collectives as the back ends name them: NCCL's kernels on the device, gloo's work in its own threads.
_TALK = re.compile(r"^(nccl(Dev)?Kernel|nccl:|gloo:)", re.IGNORECASE)
# On a CPU only torch's operations compute; what stands around them (an optimizer's step, a backward node) may be waiting.
_COMPUTE = re.compile(r"^(aten::|mkldnn|fused)")
HOW = (
    "communication: by torch's profiler in steps after the measured ones; in flight: share of the time in which a collective runs; "
    "exposed: in which one runs and nothing is computed meanwhile, on the device (CUDA) or by this process (CPU)"
)


class Traffic:
    """A trace of this rank's steps, read for collectives. A world of one has none.

    A collective that waits for a slower rank runs meanwhile: what ranks lose to each other is in its time.
    """

    def __init__(self, world: World):
        self.world = world
        self._trace: Any = None
        self._began = 0.0

    def begin(self) -> None:
        if self.world.size == 1:
            return
        from torch.profiler import ProfilerActivity, profile

        on_cuda = self.world.device.type == "cuda"
        self._trace = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])])
        self._trace.start()
        self._began = time.perf_counter()

    def end(self) -> dict[str, float] | None:
        """{in_flight, exposed}: shares of the traced time. None where nothing was traced."""
        if self._trace is None:
            return None
        if self.world.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.world.device)
        seconds = time.perf_counter() - self._began
        self._trace.stop()
        talk, compute = self._intervals()
        flying = union(talk)
        return {"in_flight": length(flying) / 1e9 / seconds, "exposed": length(without(flying, union(compute))) / 1e9 / seconds}

    def _intervals(self) -> tuple[list[Interval], list[Interval]]:
        """When collectives ran, and when something was computed, in nanoseconds."""
        from torch.autograd import DeviceType

        on_cuda = self.world.device.type == "cuda"
        talk, compute = [], []
        for event in self._trace.profiler.kineto_results.events():
            on_device = event.device_type() == DeviceType.CUDA
            if on_cuda != on_device:
                continue
            name, start = event.name(), event.start_ns()
            interval = (start, start + event.duration_ns())
            if _TALK.match(name):
                # What stands on the device's line beside the kernels marks the same time once more.
                talk.append(interval)
            elif _COMPUTE.match(name) or (on_device and not event.is_user_annotation()):
                compute.append(interval)
        return talk, compute


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time, in ascending intervals that do not touch."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif end > begin:
            found.append((begin, end))
    return found


def without(intervals: list[Interval], others: list[Interval]) -> list[Interval]:
    """The parts of intervals in which none of the others is; both as `union` gives them."""
    found = []
    for begin, end in intervals:
        for first, last in others:
            if last <= begin:
                continue
            if first >= end:
                break
            if first > begin:
                found.append((begin, first))
            begin = last
        if begin < end:
            found.append((begin, end))
    return found


def length(intervals: Iterable[Interval]) -> int:
    """Of all together."""
    return sum(end - begin for begin, end in intervals)
