"""A trace of a few steps by torch's profiler: where the time goes, operation by operation, and what memory is held.

trainer train … profile.steps=10:15

profile/trace-rank-0.json.gz      for chrome://tracing or https://ui.perfetto.dev
profile/memory-rank-0.pickle      CUDA only: the allocator's own account, for https://pytorch.org/memory_viz; never read back by us
profile/operations-rank-0.json    what the report shows: the most expensive operations, memory over time
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.atomic import write_text

if TYPE_CHECKING:
    from torch.profiler import profile

    from trainer.distributed import World
    from trainer.settings import DefaultProfile

Paused = Callable[[], contextlib.AbstractContextManager[Any]]

FOLDER = "profile"
_OPERATIONS = 10
# Of the curve of memory: more points than the picture is wide show nothing more.
_POINTS = 600


class Profiler:
    """Does nothing: what a run without `profile.steps` has, and a rank that is not traced."""

    def at(self, step: int) -> None:
        """A step is about to begin; a trace starts or ends here where it is due."""


class Tracer(Profiler):
    """Traces steps on this rank. paused: around what is no time of a step. say: told where the trace is, or why there is none."""

    def __init__(self, settings: DefaultProfile, folder: Path, world: World, paused: Paused, say: Callable[[str], None]):
        self.settings, self.folder, self.world, self.paused, self.say = settings, folder, world, paused, say
        first, last = settings.window or (1, 0)
        self.steps = range(first, last + 1)
        self.traced: list[int] = []
        self.trace: profile | None = None
        self._step = contextlib.ExitStack()

    def at(self, step: int) -> None:
        if step not in self.steps and self.trace is None:
            return
        if self.trace is None:
            self._start()
        self._step.close()
        if step not in self.steps:
            self.end()
            return
        import torch

        self.traced.append(step)
        self._step.enter_context(torch.profiler.record_function(f"step {step}"))

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        settings, on_cuda = self.settings, self.world.device.type == "cuda"
        if on_cuda and settings.memory:
            import torch

            torch.cuda.memory._record_memory_history(max_entries=100_000)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        self.trace = profile(activities=activities, record_shapes=True, profile_memory=settings.memory, with_stack=settings.stacks)
        self.trace.start()

    def end(self) -> None:
        """Write what was traced; a disk that is full costs the trace, not the run."""
        trace, self.trace, self.steps = self.trace, None, range(0)
        if trace is None:
            return
        self._step.close()
        try:
            with self.paused():
                trace.stop()
                self._write(trace)
        except (OSError, RuntimeError) as error:
            self.say(f"no profile: {type(error).__name__}: {error}")
            return
        if self.world.leads:
            self.say(f"profile of steps {self.traced[0]} to {self.traced[-1]}: {self.folder}")

    def _write(self, trace: profile) -> None:
        self.folder.mkdir(exist_ok=True)
        rank = self.world.rank
        path = self.folder / f"trace-rank-{rank}.json.gz"
        aside = path.with_name(f".{os.getpid()}.{path.name}")
        trace.export_chrome_trace(str(aside))
        aside.replace(path)
        if self.world.device.type == "cuda" and self.settings.memory:
            import torch

            torch.cuda.memory._dump_snapshot(str(self.folder / f"memory-rank-{rank}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        facts = {"steps": self.traced, "device": self.world.device.type, "operations": operations(trace, len(self.traced))}
        write_text(self.folder / f"operations-rank-{rank}.json", json.dumps(facts | {"memory": memory(trace)}))


def operations(trace: profile, steps: int) -> list[dict[str, Any]]:
    """The most expensive operations by their own time: on the device where one was traced, else on the CPU.

    Each is {name, calls (a step), milliseconds (a step), share (of all operations' own time), bytes (allocated and not freed, a step)}.
    """
    from torch.autograd import DeviceType

    averages = [each for each in trace.key_averages() if each.device_type == DeviceType.CPU and not each.is_user_annotation]
    on_device = any(each.self_device_time_total for each in averages)
    own = "self_device_time_total" if on_device else "self_cpu_time_total"
    held = "self_device_memory_usage" if on_device else "self_cpu_memory_usage"
    total = sum(getattr(each, own) for each in averages) or 1.0
    return [
        {
            "name": each.key,
            "calls": each.count / steps,
            "milliseconds": getattr(each, own) / 1000 / steps,
            "share": getattr(each, own) / total,
            "bytes": getattr(each, held) / steps,
        }
        for each in sorted(averages, key=lambda each: -getattr(each, own))[:_OPERATIONS]
    ]


def memory(trace: profile) -> list[tuple[float, int]]:
    """Memory of tensors over time on the device that allocated most: (milliseconds, bytes above what was held at the beginning)."""
    changes: dict[Any, list[tuple[int, int]]] = {}
    recorded: Any = trace.profiler.kineto_results if trace.profiler is not None else None
    for event in recorded.events() if recorded is not None else ():
        if event.name() == "[memory]":
            changes.setdefault(event.device_type(), []).append((event.start_ns(), event.nbytes()))
    if not changes:
        return []
    found = sorted(max(changes.values(), key=lambda each: sum(abs(size) for _, size in each)))
    held, curve = 0, []
    for time, size in found:
        held += size
        curve.append(((time - found[0][0]) / 1e6, held))
    # Of every stretch its highest point: a peak is what one looks for.
    stretch = -(-len(curve) // _POINTS)
    return [max(curve[start : start + stretch], key=lambda point: point[1]) for start in range(0, len(curve), stretch)]


@contextlib.contextmanager
def profiling(settings: DefaultProfile, run_dir: Path, world: World, paused: Paused, say: Callable[[str], None]) -> Iterator[Profiler]:
    """The profiler of this rank, for as long as the loop runs."""
    if settings.window is None or not (world.leads or settings.all_ranks):
        yield Profiler()
        return
    tracer = Tracer(settings, run_dir / FOLDER, world, paused, say)
    try:
        yield tracer
    finally:
        tracer.end()
