"""Reading on one side, tokenizing processes on the other, a bounded number of units in between; results in order."""

from __future__ import annotations

import dataclasses
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

from trainer.choices import ConfigError
from trainer.data.claims import made_once
from trainer.data.duplicates import Repeated, compare_parts, digest_part
from trainer.data.opening import lines_before
from trainer.data.parts import Stretch, key_of
from trainer.data.reading import UNIT_BYTES, Unit, splits, units
from trainer.data.reporting import Reporter
from trainer.data.segments import Flaw, cut_out
from trainer.data.shards import CorpusWriter
from trainer.data.sharing import Taken, in_parts, remove_parts
from trainer.data.sources import TRAIN, OnError
from trainer.data.splitting import Plan
from trainer.data.tokenizing import Encoded, Encoder, Job, cut
from trainer.data.workers import Worker

_COMMIT_SECONDS = 1.0


def read_units(planned: Plan, stretches: list[Stretch]) -> Iterator[Unit]:
    """The units of some stretches of a source."""
    return units(stretches, planned.layout, planned.parting, planned.prefixes, UNIT_BYTES, planned.repeated)


def without_repeated(planned: Plan, cache: Path, report: Reporter) -> Plan:
    """The plan with its repeated documents found, or known from an earlier call."""
    known = cache / f"{planned.fingerprint[:24]}-{key_of(planned.stretches)}-{UNIT_BYTES}"

    def make(parts: Iterator[Taken], advance: Callable[[int], Any]) -> None:
        for part in parts:
            digest_part(part.stretches, planned.layout, planned.parting, planned.prefixes, UNIT_BYTES, part.claim.emptied(), advance)
            part.claim.finish()

    folders = in_parts(planned.stretches, known, "looking for repeated documents", report, make)
    with made_once(known, report.line) as claim:
        if claim:
            compare_parts(folders, claim.emptied())
    remove_parts(known)
    repeated = Repeated(known)
    dropped = planned.dropped | {"documents that repeat another": repeated.count}
    return dataclasses.replace(planned, dropped=dropped, repeated=repeated)


def sample_text(planned: Plan, limit: int, on_error: OnError) -> Iterator[str]:
    """Text of the training split, about `limit` bytes of it, taken as whole units at even distances."""
    share = Fraction(limit, max(limit, planned.size))
    for unit in read_units(planned, planned.stretches):
        if ceil(share * (unit.index + 1)) > ceil(share * unit.index):
            for segment in unit.segments:
                found = cut_out(planned.layout, segment)
                complain(found.flaws, planned, on_error)
                for split, text in splits(found, segment, planned.parting):
                    if split == TRAIN:
                        yield from cut(planned.layout.learnable(text))


def encode_parts(planned: Plan, job: Job, target: Path, processes: int, on_error: OnError, report: Reporter) -> list[Path]:
    """Tokenize a source into a folder for each of its parts, what of that nobody else does; the result does not depend on `processes`.

    target: the corpus that they are for.
    """
    with ExitStack() as stack:
        encoding = _Encoding(planned, job, processes, on_error, report, stack)
        return in_parts(planned.stretches, target, "tokenizing", report, encoding.make)


@dataclass
class _Pending:
    """A unit that is in work; or, without a future, the end of its part."""

    part: Taken
    writer: CorpusWriter
    size: int = 0
    future: Future[Encoded] | None = None


class _Encoding:
    """Units of one part after the other, read ahead of those that are in work: also over the end of a part."""

    def __init__(self, planned: Plan, job: Job, processes: int, on_error: OnError, report: Reporter, stack: ExitStack):
        self.planned, self.job, self.on_error, self.report, self.stack = planned, job, on_error, report, stack
        self.processes = min(processes, 1 + planned.size // UNIT_BYTES)
        self.pending: deque[_Pending] = deque()
        self.committed = time.monotonic()
        self.pool: Executor | None = None

    def make(self, parts: Iterator[Taken], advance: Callable[[int], Any]) -> None:
        """All parts that are given, each finished."""
        for part in parts:
            if self.pool is None:
                # Not before there is work: all may be done elsewhere.
                parallel = self.processes > 1 or self.planned.size > UNIT_BYTES
                self.encode = _in_processes(self.job, self.processes, self.stack) if parallel else Encoder(self.job).encode
                self.pool = self.stack.enter_context(ThreadPoolExecutor(self.processes))
            writer = CorpusWriter(part.claim.adopted(), self.job.dtype)
            if writer.units:
                self.report.line(f"going on after {writer.units} units that an earlier process finished")
            for unit in read_units(self.planned, part.stretches):
                if unit.index < writer.units:
                    advance(unit.size)
                    continue
                self.pending.append(_Pending(part, writer, unit.size, self.pool.submit(self.encode, unit)))
                # One unit in work and one waiting for each process: memory is bounded, and no process waits for the reader.
                if len(self.pending) >= 2 * self.processes:
                    self._take(advance)
            self.pending.append(_Pending(part, writer))
        while self.pending:
            self._take(advance)

    def _take(self, advance: Callable[[int], Any]) -> None:
        """Keep the result of the first pending unit."""
        first = self.pending.popleft()
        if first.future is None:
            first.writer.commit()
            first.writer.close()
            first.part.claim.finish()
            return
        encoded = first.future.result()
        complain(encoded.flaws, self.planned, self.on_error)
        first.writer.append(encoded, first.size)
        advance(first.size)
        if time.monotonic() - self.committed > _COMMIT_SECONDS:
            first.writer.commit()
            self.committed = time.monotonic()


def _in_processes(job: Job, processes: int, stack: ExitStack) -> Callable[[Unit], Encoded]:
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for _ in range(processes):
        worker = Worker(job)
        stack.callback(worker.close)
        idle.put(worker)

    def encode(unit: Unit) -> Encoded:
        worker = idle.get()
        try:
            return worker.encode(unit)
        finally:
            idle.put(worker)

    return encode


def complain(flaws: list[Flaw], planned: Plan, on_error: OnError) -> None:
    """Raise ConfigError (B07) for what cannot be read, unless it is to be skipped."""
    if flaws and on_error is OnError.fail:
        first = flaws[0]
        file = planned.files[first.file]
        line = first.line + lines_before(file.path, first.after)
        place = ":".join(str(part) for part in (file.shown, line, first.byte) if part is not None)
        more = f" ({len(flaws)} such in the {UNIT_BYTES >> 20} MB around it)" if len(flaws) > 1 else ""
        raise ConfigError(f"data: {place}: {first.what}{more}; {first.mend}, or leave such out with data.on_error=skip")
