"""From positions to micro-batches: this rank's share of each step, read ahead by threads.

A step is a pure function of its position, so any number of workers gives the same batches, and what was read ahead but not consumed
is lost to nobody: a checkpoint counts what the loop consumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer.data.batches import Batches
from trainer.data.corpus import Split
from trainer.data.deal import Deal, deal
from trainer.data.order import Ordering
from trainer.tasks import Batch, Pick, Task
from trainer.teachers import NoTeacher, Teacher

if TYPE_CHECKING:
    import torch

# A thread is handed work for at least so many rows: handing over costs as much as reading some of them.
_ROWS_A_TASK = 32


@dataclass
class Step:
    """One global batch as this rank sees it.

    start, stop: positions. rows, epochs: of the whole global batch. mine: row ids of this rank. targets: term → count over the whole
    global batch. tokens: real tokens of the whole global batch.
    """

    start: int
    stop: int
    rows: NDArray[np.int64]
    epochs: NDArray[np.int64]
    mine: list[int]
    micro_batches: list[Batch]
    targets: dict[str, int]
    tokens: int

    @property
    def samples(self) -> int:
        return self.stop - self.start


@dataclass
class Loader:
    """Steps over positions, a global batch at a time; this rank's part of each, `micro_batch` rows at most at once."""

    task: Task
    split: Split
    order: Ordering
    batches: Batches
    micro_batch: int
    data_rank: int = 0
    data_size: int = 1
    workers: int = 0
    pin: bool = False
    teacher: Teacher = field(default_factory=NoTeacher)

    def __len__(self) -> int:
        return self.batches.left()

    def passes(self, position: int) -> dict[str, float]:
        """How often the rows have been gone through before a position: `passes`, in a mixture `passes_<source>` of each."""
        shares = self.order.passes(position)
        return {f"passes_{name}".removesuffix("_"): round(share, 4) for name, share in shares.items()}

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Steps from position `start` on, in order."""
        starts = self.batches.starts(start)
        if self.workers == 0:
            yield from map(self.step, starts)
            return
        at_once = max(1, _ROWS_A_TASK // self.batches.size)
        pending: deque[Future[list[Step]]] = deque()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="loader") as pool:
            try:
                while several := list(islice(starts, at_once)):
                    pending.append(pool.submit(self._several, several))
                    if len(pending) > self.workers:
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _several(self, starts: list[int]) -> list[Step]:
        return [self.step(start) for start in starts]

    def step(self, start: int) -> Step:
        """The step whose first position is `start`."""
        stop = self.batches.stop(start)
        rows, epochs = self.order.at(start, stop)
        lengths = np.asarray(self.split.rows.lengths[rows])
        dealt: Deal = deal(lengths, self.data_size, self.micro_batch)
        hands = dealt.hands[self.data_rank]
        # Which row fills an empty hand is of no consequence for the result; the shortest costs least.
        shortest = int(lengths.argmin())
        micro_batches = []
        for hand in hands:
            picks = [Pick(int(rows[index]), int(epochs[index])) for index in hand]
            batch = self.task.collate(self.split, picks or [Pick(int(rows[shortest]), int(epochs[shortest]), counted=False)])
            batch.rows = tuple(pick.row for pick in picks)
            micro_batches.append(batch.pinned() if self.pin else batch)
        targets = {term: int(np.asarray(counts[rows], dtype=np.int64).sum()) for term, counts in self.split.rows.targets.items()}
        tokens = int(lengths.sum(dtype=np.int64))
        return Step(
            start=start,
            stop=stop,
            rows=rows,
            epochs=epochs,
            mine=[int(rows[index]) for hand in hands for index in hand],
            micro_batches=micro_batches,
            targets=self.teacher.counted(self.task.counted(targets), self.task, tokens),
            tokens=tokens,
        )


def on_device(steps: Iterator[Step], device: torch.device) -> Iterator[Step]:
    """Steps whose micro-batches lie on a device.

    To a GPU they are copied by a stream of their own while it computes what was queued before; what is queued after waits there for the
    copy, and the host for nothing.
    """
    if device.type != "cuda":
        yield from steps
        return
    import torch

    copying = torch.cuda.Stream(device)
    for step in steps:
        with torch.cuda.stream(copying):
            step.micro_batches = [batch.to(device) for batch in step.micro_batches]
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for batch in step.micro_batches:
            for tensor in batch.inputs.values():
                # Its memory is not given to a later copy before the step is done with it.
                tensor.record_stream(computing)
        yield step
