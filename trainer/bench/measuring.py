"""In a rank of a bench: the real loop, watched from where it asks whether to stop; when its measured steps begin and end, what they held.

`Training.loop` runs as it is. It asks `Stop.should_stop` before each step, and hands each batch to its meter: both are stood in for here
by ones that do the same and take notes. Warm-up, measured steps, then a few in which host synchronisations are counted and operations
traced, which costs time and so is never within what is measured. The loop is left by an exception: no evaluation, no checkpoint.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from trainer.bench.communication import Traffic
from trainer.bench.energy import Energy
from trainer.bench.syncs import CudaSyncs, HostSyncs
from trainer.bench.window import COUNTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainer.bench.window import Window
    from trainer.distributed import World
    from trainer.survival.stop import Stop
    from trainer.tasks import Batch
    from trainer.trainer import Training


class Left(Exception):
    """The loop is left: stopped by a request, or done with what is wanted of it."""

    def __init__(self, stopped: bool):
        super().__init__("stopped" if stopped else "done")
        self.stopped = stopped


@dataclass
class Figures:
    """What one rank saw in the measured steps.

    seconds: by device events on CUDA, else by the host's clock; step_seconds: of each step, likewise. host_seconds, cpu_seconds: wall time
    of the host, and CPU time of all threads of this process. waited: for data. tokens, samples: of the global batches; flops: of this
    rank. memory_bytes: most on the device, on a CPU the most this process ever held. energy_missing: why no energy is known.
    compile_seconds: until the end; of them within what was measured. start_seconds: from the start of the process to the first step.
    syncs: host synchronisations in `looked` steps, their log lines left out.
    """

    device: str = ""
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    host_seconds: float = 0.0
    cpu_seconds: float = 0.0
    waited: float = 0.0
    tokens: int = 0
    samples: int = 0
    flops: float | None = None
    peak: float | None = None
    memory_bytes: int = 0
    energy_joules: float | None = None
    energy_missing: str = ""
    compile_seconds: float = 0.0
    compile_seconds_within: float = 0.0
    start_seconds: float = 0.0
    syncs: dict[str, int] | None = None
    syncs_steps: int = 0
    communication: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Counted:
    """The loop's meter, which goes on as it is; notes what it is told while `on`. syncs: a counter of synchronisations."""

    def __init__(self, meter: Any, syncs: CudaSyncs | HostSyncs):
        self._meter, self._syncs = meter, syncs
        self.on = False
        self.waited, self.tokens, self.samples = 0.0, 0, 0
        self.batches: list[tuple[int, dict[str, int], tuple[int, ...], tuple[int, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._meter, name)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        with self._meter.waiting():
            yield
        if self.on:
            self.waited += time.perf_counter() - began

    def add(self, losses: Any, targets: Any, batch: Batch | None = None) -> None:
        if self.on and batch is not None and batch.tokens:
            # What work they are is counted afterwards: numbers alone, no tensor is kept alive.
            self.batches.append((batch.tokens, dict(batch.targets), batch.lengths, batch.decoded))
        self._meter.add(losses, targets, batch)

    def close(self, step: int, norm: Any, applied: Any, tokens: int, samples: int) -> None:
        if self.on:
            self.tokens += tokens
            self.samples += samples
        self._meter.close(step, norm, applied, tokens, samples)

    def flush(self) -> Any:
        # A log line reads the device, as it must, once in many steps: it is none of what a step waits for.
        with self._syncs.apart():
            return self._meter.flush()


class Watch:
    """The run's stop agreement, which goes on as it is, and the moments at which steps begin."""

    def __init__(self, stop: Stop, world: World, window: Window):
        self._stop, self.world = stop, world
        self.window, self.figures = window, Figures()
        self._timer = Timer(world.device)
        self._energy = Energy(world.device)
        self._syncs: CudaSyncs | HostSyncs = CudaSyncs() if world.device.type == "cuda" else HostSyncs()
        self._looking = contextlib.ExitStack()
        self._traffic = Traffic(world)
        self._meter: Counted | None = None
        self._compiled = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stop, name)

    def attach(self, training: Training) -> None:
        """Stand between the loop and its meter."""
        self._meter = Counted(training.meter, self._syncs)
        training.meter = self._meter  # type: ignore[assignment]
        self.figures.peak = training.meter.peak
        self._work = training.work

    def should_stop(self, next_step: int) -> bool:
        """As `Stop` has it, the same on every rank. Raises Left where the loop is to be left."""
        if self._stop.should_stop(next_step):
            raise Left(stopped=True)
        window = self.window
        if next_step == 1:
            self.figures.start_seconds = _age()
        if next_step == window.first:
            self._begin()
        if window.first <= next_step <= window.after:
            self._timer.mark()
        if next_step == window.after:
            self._end()
        if window.looked:
            self._look(next_step - window.after)
        if next_step == window.after + window.looked:
            raise Left(stopped=False)
        return False

    def _begin(self) -> None:
        assert self._meter is not None, "attached before the loop"
        self._timer.synchronize()
        if self.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.world.device)
        self._compiled = compile_seconds()
        self._energy.begin()
        self._meter.on = True
        self._host = (time.perf_counter(), time.process_time())

    def _end(self) -> None:
        assert self._meter is not None
        self._timer.synchronize()
        host = (time.perf_counter(), time.process_time())
        figures, meter = self.figures, self._meter
        meter.on = False
        figures.device = str(self.world.device.type)
        figures.energy_joules, figures.energy_missing = self._energy.end(), self._energy.missing
        figures.host_seconds, figures.cpu_seconds = (end - begin for begin, end in zip(self._host, host, strict=True))
        figures.step_seconds = self._timer.laps()
        figures.seconds = sum(figures.step_seconds)
        figures.waited, figures.tokens, figures.samples = meter.waited, meter.tokens, meter.samples
        if self._work is not None:
            figures.flops = sum(self._work.flops(*batch) for batch in meter.batches)
        figures.memory_bytes = peak_bytes(self.world.device)
        figures.compile_seconds = compile_seconds()
        figures.compile_seconds_within = figures.compile_seconds - self._compiled

    def _look(self, since: int) -> None:
        """since: steps since the last measured one. First synchronisations are counted, then operations traced."""
        if since == 0:
            self._looking.enter_context(self._syncs)
        elif since == COUNTED:
            self._looking.close()
            self.figures.syncs, self.figures.syncs_steps = dict(self._syncs.counts), COUNTED
            self._traffic.begin()
        elif since == self.window.looked:
            self.figures.communication = self._traffic.end()


class Timer:
    """Moments, and the time between them: device events on CUDA, so that the host need not wait for the device at any of them."""

    def __init__(self, device: torch.device):
        self.device = device
        self._moments: list[Any] = []

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def mark(self) -> None:
        if self.device.type != "cuda":
            self._moments.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._moments.append(event)

    def laps(self) -> list[float]:
        """Seconds between the moments; the device must have passed the last."""
        pairs = zip(self._moments, self._moments[1:], strict=False)
        if self.device.type != "cuda":
            return [end - begin for begin, end in pairs]
        return [begin.elapsed_time(end) / 1000 for begin, end in pairs]


def peak_bytes(device: torch.device) -> int:
    """The most memory held: tensors on a GPU since the counter was set back; of a CPU all that this process ever held."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def compile_seconds() -> float:
    """What torch.compile has taken in this process so far, by its own account; 0 where nothing was compiled."""
    compiler: Any = sys.modules.get("torch._dynamo.utils")
    if compiler is None:
        return 0.0
    return float(compiler.calculate_time_spent().get("total_wall_time", 0.0))


def _age() -> float:
    """Seconds since this process was started."""
    import psutil

    return time.time() - psutil.Process().create_time()
