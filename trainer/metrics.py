"""What a run measures: the losses of every step, throughput, MFU, goodput, the wait for data, memory.

Losses, norms and flags stay on the device until a log line is written; then one reduction and one read bring all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from trainer.distributed import World
    from trainer.mfu import Work
    from trainer.tasks import Batch

# The terms whose exponential is a perplexity.
LANGUAGE_TERMS = ("clm", "mlm")


class Meter:
    """Figures of the steps since the last log line, on every rank.

    weights: term → weight in the objective. interval_steps: most steps between two flushes.
    work, peak: what a token costs in FLOPs, and the FLOPs a second of one device; None where MFU is not known.
    tokens, samples: what the run has consumed before (a resume).
    started: time of the run's first start, in seconds since the epoch. useful_seconds: of earlier attempts, by the function of that name.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        interval_steps: int,
        world: World,
        *,
        work: Work | None = None,
        peak: float | None = None,
        tokens: int = 0,
        samples: int = 0,
        started: float | None = None,
        useful_seconds: float = 0.0,
    ):
        self.weights, self.world, self.work, self.peak = dict(weights), world, work, peak
        self.tokens, self.samples = tokens, samples
        self.started, self.useful_seconds = started if started is not None else time.time(), useful_seconds
        # fp64, so that dividing and adding up cost no digit of the fp32 sums. The last row takes the host's figures of the interval.
        self._losses = torch.zeros(interval_steps + 1, max(2, len(self.weights)), dtype=torch.float64, device=world.device)
        self._flags = torch.zeros(interval_steps + 1, 2, dtype=torch.float64, device=world.device)
        # A view of every place, made once: an index at every step costs more than what is written there.
        self._places = [row.unbind() for row in self._losses]
        self._ends = [row.unbind() for row in self._flags]
        self._steps: list[int] = []
        self._targets: dict[str, int] = {}
        self._present: list[set[str]] = []
        self._speed: dict[str, Any] = {}
        self._clock = Clock(world.device)
        self._reset()

    def _reset(self) -> None:
        self._flops, self._interval_tokens, self._interval_samples = 0.0, 0, 0
        self._steps.clear()
        self._present.clear()
        self._losses.zero_()

    def waiting(self) -> Any:
        """Context: the loop waits for the loader."""
        return self._clock.waiting()

    def paused(self) -> Any:
        """Context: evaluation, saving; not time of a step."""
        return self._clock.paused()

    def add(self, losses: Mapping[str, torch.Tensor], targets: Mapping[str, int], batch: Batch | None = None) -> None:
        """Take in a micro-batch, without waiting for the device.

        losses: term → sum over this rank's targets, scalar on the device. targets: term → targets of the *global* batch.
        batch: the micro-batch itself, for its FLOPs.
        """
        for place, term in zip(self._places[len(self._steps)], self.weights, strict=False):
            if term in losses and targets.get(term, 0):
                place.add_(losses[term].detach(), alpha=1.0 / targets[term])
        self._targets.update(targets)
        # A filler (no counted token) is computed, but is no work of the model.
        if self.work is not None and batch is not None and batch.tokens:
            self._flops += self.work.flops(batch.tokens, batch.targets, batch.lengths, batch.decoded)

    def close(self, step: int, norm: torch.Tensor, applied: torch.Tensor, tokens: int, samples: int) -> None:
        """End a step, without waiting for the device.

        step: number of the step, from 1. norm, applied: what `Placement.finish` returned. tokens, samples: of the global batch.
        """
        index = len(self._steps)
        assert index < len(self._losses) - 1, "flush() is due: more steps than interval_steps"
        for place, value in zip(self._ends[index], (norm, applied), strict=True):
            place.copy_(value.detach())
        self._steps.append(step)
        self._present.append({term for term in self.weights if self._targets.get(term, 0)})
        self._targets.clear()
        self._interval_tokens += tokens
        self._interval_samples += samples

    def flush(self) -> list[dict[str, Any]]:
        """The steps since the last flush, the same on every rank: one all-reduce, one read of the device. Collective.

        Each is {step, loss, <term>_loss, grad_norm, applied, perplexity}: loss is the weighted objective of that very step; a term
        that had no target in the global batch is left out. `speed()` has the figures of the interval afterwards.
        """
        count = len(self._steps)
        waited = self._clock.waited
        self._losses[-1, :2] = torch.tensor([self._flops, waited], dtype=torch.float64)
        if self.world.size > 1:
            dist.all_reduce(self._losses)
        table = torch.cat([self._losses, self._flags], dim=1).tolist()
        seconds = self._clock.lap()
        columns = {term: column for column, term in enumerate(self.weights)}
        steps = []
        for step, present, row in zip(self._steps, self._present, table[:count], strict=True):
            terms = {term: row[column] for term, column in columns.items() if term in present}
            figures: dict[str, Any] = {"step": step, "loss": sum(self.weights[term] * loss for term, loss in terms.items())}
            figures |= {f"{term}_loss": loss for term, loss in terms.items()}
            figures |= {"grad_norm": row[-2], "applied": bool(row[-1])}
            language = next((term for term in LANGUAGE_TERMS if term in terms), None)
            if language is not None:
                figures["perplexity"] = perplexity(terms[language])
            steps.append(figures)
        self._measure(seconds, sum(not step["applied"] for step in steps), *table[-1][:2])
        self._reset()
        return steps

    def _measure(self, seconds: float, dropped: int, flops: float, waited: float) -> None:
        count, size = len(self._steps), self.world.size
        self.tokens += self._interval_tokens
        self.samples += self._interval_samples
        if count:
            self.useful_seconds += seconds * (count - dropped) / count
        self._speed = {
            "tokens_per_second": self._interval_tokens / seconds if seconds else None,
            "samples_per_second": self._interval_samples / seconds if seconds else None,
            "mfu": flops / (seconds * size * self.peak) if self.peak and flops and seconds else None,
            "data_wait": min(1.0, waited / size / seconds) if seconds else None,
            "memory_bytes": memory_bytes(self.world.device),
            "goodput": min(1.0, self.useful_seconds / max(time.time() - self.started, 1e-9)),
            "tokens": self.tokens,
            "samples": self.samples,
            "interval_steps": count,
            "interval_seconds": seconds,
            "interval_dropped": dropped,
        }

    def speed(self) -> dict[str, Any]:
        """Figures of the interval that was flushed last.

        tokens_per_second, samples_per_second (real ones, all ranks), mfu, data_wait (share of the interval, mean over ranks), memory_bytes
        (this rank), goodput, tokens, samples (of the run so far), interval_steps, interval_seconds, interval_dropped. None: not known.
        """
        return dict(self._speed)


class Clock:
    """Time in steps, between laps, on the host; pauses left out."""

    def __init__(self, device: torch.device):
        self.device = device
        self.waited = 0.0
        self._paused = 0.0
        self._since = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent here is counted as waiting, and is time of the step too."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent here is left out."""
        if self.device.type == "cuda":
            # Steps still queued on the device would run inside the pause and look free.
            torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def lap(self) -> float:
        """Seconds since the last lap without pauses; starts the next one."""
        now = time.perf_counter()
        seconds = max(0.0, now - self._since - self._paused)
        self._since, self._paused, self.waited = now, 0.0, 0.0
        return seconds


def perplexity(loss: float) -> float:
    """e to the loss (in nats a token); infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def memory_bytes(device: torch.device) -> int:
    """Most memory this process has held on a GPU; on a CPU, what it holds now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)


def useful_seconds(lines: Iterable[Mapping[str, Any]], resumed_at: int | None = None) -> float:
    """Seconds of steps whose result is still in the weights, from the lines of metrics.jsonl in their order.

    A line covers the `interval_steps` steps that end at `step`. Steps that a later attempt computed again count once, in the later one;
    so do, with resumed_at, those after the checkpoint that a new attempt starts from. Dropped steps do not count.
    """
    useful, lowest = 0.0, math.inf if resumed_at is None else resumed_at
    for line in reversed([line for line in lines if line.get("interval_steps")]):
        first, last, count = line["step"] - line["interval_steps"], line["step"], line["interval_steps"]
        kept = max(0.0, min(last, lowest) - first)
        useful += line["interval_seconds"] * (kept / count) * (1 - line.get("interval_dropped", 0) / count)
        lowest = min(lowest, first)
    return useful
