"""Reading on one side, tokenizing processes on the other, a bounded number of units in between; results in order."""

from __future__ import annotations

import dataclasses
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from trainer.choices import ConfigError
from trainer.data.duplicates import Repeated, find_repeated
from trainer.data.reading import UNIT_BYTES, Unit, splits, units
from trainer.data.segments import Flaw
from trainer.data.shards import CorpusWriter
from trainer.data.sources import TRAIN, OnError
from trainer.data.splitting import Plan
from trainer.data.tokenizing import Encoded, Encoder, Job, cut
from trainer.data.workers import Worker

_COMMIT_SECONDS = 1.0


def read_units(planned: Plan) -> Iterator[Unit]:
    """The units of a source."""
    found = units(planned.files, planned.layout, planned.parting, planned.prefixes, UNIT_BYTES)
    return found if planned.repeated is None else map(planned.repeated.mark, found)


def without_repeated(planned: Plan, cache: Path, advance: Callable[[int], Any]) -> Plan:
    """The plan with its repeated documents found, or known from an earlier call."""
    known = cache / f"{planned.fingerprint[:24]}-{UNIT_BYTES}.npy"
    if known.exists():
        repeated = Repeated(np.load(known, allow_pickle=False))
    else:
        repeated = find_repeated(read_units(planned), planned.layout, advance)
        cache.mkdir(parents=True, exist_ok=True)
        aside = known.with_name(f".{known.name}.{os.getpid()}.npy")
        np.save(aside, repeated.places)
        aside.replace(known)
    dropped = planned.dropped | {"documents that repeat another": repeated.count}
    return dataclasses.replace(planned, dropped=dropped, repeated=repeated)


def sample_text(planned: Plan, limit: int, on_error: OnError) -> Iterator[str]:
    """Text of the training split, about `limit` bytes of it, taken as whole units at even distances."""
    share = Fraction(limit, max(limit, planned.size))
    for unit in read_units(planned):
        if ceil(share * (unit.index + 1)) > ceil(share * unit.index):
            for segment in unit.segments:
                found = planned.layout.documents(segment)
                complain(found.flaws, planned, on_error)
                for split, text in splits(found, segment, planned.parting.threshold):
                    if split == TRAIN:
                        yield from cut(text)


def encoded_units(planned: Plan, job: Job, writer: CorpusWriter, processes: int, on_error: OnError, advance: Callable[[int], Any]) -> None:
    """Tokenize all units that the writer does not have and append them in order, so the result does not depend on `processes`."""
    processes = min(processes, 1 + planned.size // UNIT_BYTES)
    pending: deque[tuple[int, Future[Encoded]]] = deque()
    committed = time.monotonic()

    def take() -> None:
        nonlocal committed
        size, future = pending.popleft()
        encoded = future.result()
        complain(encoded.flaws, planned, on_error)
        writer.append(encoded, size)
        advance(size)
        if time.monotonic() - committed > _COMMIT_SECONDS:
            writer.commit()
            committed = time.monotonic()

    with ExitStack() as stack:
        encode = _in_processes(job, processes, stack) if processes > 1 or planned.size > UNIT_BYTES else Encoder(job).encode
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        for unit in read_units(planned):
            if unit.index < writer.units:
                advance(unit.size)
                continue
            pending.append((unit.size, pool.submit(encode, unit)))
            # One unit in work and one waiting for each process: memory is bounded, and no process waits for the reader.
            if len(pending) >= 2 * processes:
                take()
        while pending:
            take()
        writer.commit()


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
        place = ":".join(str(part) for part in (planned.files[first.file].shown, first.line, first.byte) if part is not None)
        more = f" ({len(flaws)} such in the {UNIT_BYTES >> 20} MB around it)" if len(flaws) > 1 else ""
        raise ConfigError(f"data: {place}: {first.what}{more}; {first.mend}, or leave such out with data.on_error=skip")
