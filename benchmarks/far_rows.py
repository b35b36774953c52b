"""A row table of 10¹² rows, of which only those that are read exist: sparse files, read by the real table, order, deal and loader."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import held
from trainer.atomic import write_json
from trainer.config import Config
from trainer.data.batches import Batches
from trainer.data.corpus import Split
from trainer.data.loading import Loader
from trainer.data.order import Order
from trainer.data.rows import META, Rows

COLUMNS = {"pointers": 8, "pieces": 16, "lengths": 4, "targets-clm": 4}  # bytes a row


class SparseTable:
    """Files as long as a whole table's, written where they are read. The rows lie in `split`, over and over."""

    def __init__(self, folder: Path, split: Split, rows: int):
        self.folder, self.length = folder, split.sequence_length
        self.stream = len(split.tokens) - self.length - 1
        folder.mkdir(parents=True)
        for name, size in COLUMNS.items():
            with open(folder / f"{name}.bin", "wb") as column:
                column.truncate(size * (rows + (name == "pointers")))
        about = {"rows": rows, "pieces": rows, "columns": 2, "tokens": rows * self.length, "targets": {"clm": rows * self.length}}
        write_json(folder / META, about | {"offsets": [0]})

    def fill(self, rows: np.ndarray) -> None:
        """Write these rows: one piece each, as long as a row."""
        values = {"pointers": lambda row: np.array([row, row + 1], "<i8"),
                  "pieces": lambda row: np.array([row * self.length % self.stream, self.length], "<i8"),
                  "lengths": lambda row: np.array([self.length], "<i4"),
                  "targets-clm": lambda row: np.array([self.length], "<i4")}  # fmt: skip
        for name, size in COLUMNS.items():
            with open(self.folder / f"{name}.bin", "r+b") as column:
                for row in rows.tolist():
                    column.seek(size * row)
                    column.write(values[name](row).tobytes())


def read_all_over(config: Config, split: Split, folder: Path, rows: int, steps: int, global_batch: int = 64) -> dict[str, Any]:
    """Steps at even distances over ten passes of a table of so many rows, each seeked for; memory before, opened, and after."""
    order, batches = Order(config.seed, rows), Batches(10 * rows, global_batch)
    starts = [number * (10 * rows // steps) // global_batch * global_batch for number in range(steps)]
    table = SparseTable(folder, split, rows)
    for start in starts:
        table.fill(order.at(start, start + global_batch)[0])
    before, began = held(), time.perf_counter()
    endless = replace(split, rows=Rows(folder))
    opened, seconds_open = held(), time.perf_counter() - began
    loader = Loader(config.task, endless, order, batches, micro_batch=16, data_rank=1, data_size=3)
    began, seen, tokens = time.perf_counter(), set(), 0
    for start in starts:
        step = loader.step(start)
        seen.update(step.rows.tolist())
        tokens += step.tokens
        assert len(step.mine) == sum(len(batch.lengths) for batch in step.micro_batches) and step.targets["clm"] == step.tokens
    after, seconds = held(), time.perf_counter() - began
    files = list(folder.glob("*.bin"))
    return {
        "rows": len(endless.rows),
        "bytes_apparent": sum(path.stat().st_size for path in files),
        "bytes_on_disk": sum(512 * path.stat().st_blocks for path in files),
        "steps": steps,
        "rows_read": len(seen),
        "tokens": tokens,
        "seconds_open": seconds_open,
        "seconds_a_step": seconds / steps,
        "memory": {"before": before, "opened": opened, "after": after},
    }
