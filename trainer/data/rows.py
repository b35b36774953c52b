"""The static row table: what each packed row is made of, as memory-mapped columns on disk.

pointers.bin   int64 [rows + 1]   where the pieces of each row start
pieces.bin     int64 [pieces, K]  what a piece means is the task's affair
values.bin     int32 [values]     what the pieces of examples with labels point into: token ids, tags
lengths.bin    int32 [rows]       real tokens
targets-T.bin  int32 [rows]       targets of term T
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.atomic import write_json

META = "meta.json"


def map_column(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A column of a file, mapped and read-only. An empty file cannot be mapped."""
    if 0 in shape:
        return np.zeros(shape, dtype)
    # As a plain array: each slice of a memmap object costs microseconds more.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape))


class Column(Protocol):
    """A value of every row."""

    def __getitem__(self, rows: Any) -> Any:
        """The values of rows [n], or of one."""


class Table(Protocol):
    """The rows of a split: of one table (Rows), or of several behind one face (mixed.py).

    lengths: real tokens. targets: by term. tokens_total: of all rows. offsets: the columns of a piece that are offsets into the tokens,
    where its writer has said so.
    """

    @property
    def lengths(self) -> Column: ...
    @property
    def targets(self) -> Mapping[str, Column]: ...
    @property
    def tokens_total(self) -> int: ...
    @property
    def offsets(self) -> Sequence[int] | None: ...

    def __len__(self) -> int: ...

    def pieces(self, row: int) -> NDArray[np.int64]:
        """The pieces of a row: [n, K]."""

    def named(self, rows: Iterable[int]) -> list[int] | list[str]:
        """Rows as a ledger or an event shows them."""


class Rows:
    """A row table on disk. Opening it costs the same at any size; what is read of it is paged in by the system."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        meta = json.loads((self.path / META).read_text())
        self.tokens_total: int = meta["tokens"]
        self.targets_total: dict[str, int] = meta["targets"]
        self.offsets: list[int] | None = meta["offsets"]
        rows = meta["rows"]
        self.lengths = map_column(self.path / "lengths.bin", np.int32, (rows,))
        self.targets = {term: map_column(self.path / f"targets-{term}.bin", np.int32, (rows,)) for term in meta["targets"]}
        self._pointers = map_column(self.path / "pointers.bin", np.int64, (rows + 1,))
        self._pieces = map_column(self.path / "pieces.bin", np.int64, (meta["pieces"], meta["columns"]))

    def __len__(self) -> int:
        return len(self.lengths)

    def pieces(self, row: int) -> NDArray[np.int64]:
        """The pieces of a row: [n, K]."""
        return np.asarray(self._pieces[self._pointers[row] : self._pointers[row + 1]])

    def named(self, rows: Iterable[int]) -> list[int]:
        """Rows as a ledger or an event shows them: their numbers."""
        return list(map(int, rows))


class Values:
    """The values of a split's rows, one after the other."""

    def __init__(self, path: Path | str):
        path = Path(path)
        self._values = map_column(path / "values.bin", np.int32, (json.loads((path / META).read_text())["values"],))

    def __len__(self) -> int:
        return len(self._values)

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """A copy of `length` values from `start` on."""
        return self._values[start : start + length].astype(np.int64)


class RowWriter:
    """Appends rows to a new table; `close` makes it readable.

    offsets: the columns of a piece that are offsets into the tokens; only with them can the table be part of a mixture.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.offsets: Sequence[int] | None = None
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / META).unlink(missing_ok=True)
        self._files: dict[str, BinaryIO] = {}
        self._rows = self._pieces = self._columns = self._tokens = self._longest = self.values = self.left_out = 0
        self._targets: dict[str, int] = {}
        self._write("pointers", np.zeros(1, np.int64))

    def append(
        self, pieces: NDArray[np.int64], counts: NDArray[np.integer], lengths: NDArray[np.integer], targets: dict[str, NDArray[np.integer]]
    ) -> None:
        """A block of rows. pieces: [n, K], row after row; counts: pieces of each row; lengths: real tokens; targets: by term."""
        assert int(counts.sum()) == len(pieces) and len(counts) == len(lengths), "rows and pieces disagree"
        self._columns = pieces.shape[1]
        self._write("pointers", self._pieces + np.cumsum(counts, dtype=np.int64))
        self._write("pieces", np.ascontiguousarray(pieces, dtype=np.int64))
        self._write("lengths", lengths.astype(np.int32))
        for term, values in targets.items():
            self._write(f"targets-{term}", values.astype(np.int32))
            self._targets[term] = self._targets.get(term, 0) + int(values.sum(dtype=np.int64))
        self._rows += len(counts)
        self._pieces += len(pieces)
        self._tokens += int(lengths.sum(dtype=np.int64))
        self._longest = max(self._longest, int(lengths.max(initial=0)))

    def append_values(self, values: NDArray[np.integer]) -> None:
        """Add to what pieces point into; `values` counts how many there are."""
        self._write("values", values.astype(np.int32))
        self.values += len(values)

    def __len__(self) -> int:
        return self._rows

    def _write(self, name: str, values: NDArray[Any]) -> None:
        if name not in self._files:
            self._files[name] = open(self.path / f"{name}.bin", "wb")  # noqa: SIM115 (closed in close)
        self._files[name].write(values.tobytes())

    def close(self) -> None:
        """Flush all columns to the disk, then say that they are complete."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        sizes = {"rows": self._rows, "pieces": self._pieces, "columns": self._columns, "tokens": self._tokens}
        sizes |= {"longest": self._longest, "values": self.values, "left_out": self.left_out}
        offsets = None if self.offsets is None else list(self.offsets)
        write_json(self.path / META, {**sizes, "targets": self._targets, "offsets": offsets})
