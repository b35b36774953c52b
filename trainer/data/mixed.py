"""Several corpora behind the face of one: their rows and their tokens follow each other, under numbers that go on from one to the next.

So the deal, the loader and a task's `collate` read a mixture as they read a single source.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.corpus import Corpus, Split, Tokens, open_corpus
from trainer.data.order import MixedOrder, Ordering
from trainer.data.rows import Column, Table
from trainer.streams import mix


class MixedTokens:
    """Token streams that follow each other. starts: where each begins."""

    def __init__(self, streams: Sequence[Tokens]):
        self._streams = streams
        *self.starts, self._length = accumulate(map(len, streams), initial=0)

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """A copy of `length` tokens from `start` on, all of one stream: nothing goes on from one to the next."""
        owner = bisect_right(self.starts, start) - 1
        return self._streams[owner].read(start - self.starts[owner], length)


class MixedColumn:
    """Columns that follow each other. starts: the number of the first row of each."""

    def __init__(self, columns: Sequence[Column], starts: Sequence[int]):
        self._columns, self._starts = columns, np.asarray(starts, np.int64)

    def __getitem__(self, rows: Any) -> Any:
        """A copy of the values of rows [n], or of one."""
        flat = np.ravel(rows)
        owners = np.searchsorted(self._starts, flat, side="right") - 1
        values = np.empty(len(flat), np.int64)
        for owner in np.unique(owners):
            own = owners == owner
            values[own] = self._columns[owner][flat[own] - self._starts[owner]]
        return values.reshape(np.shape(rows))[()]


class MixedRows:
    """Row tables that follow each other. starts: the number of the first row of each. token_starts: by how much its tokens have moved."""

    def __init__(self, tables: Mapping[str, Table], token_starts: Sequence[int]):
        self._names, self._tables, self._token_starts = list(tables), list(tables.values()), token_starts
        *self.starts, self._length = accumulate(map(len, self._tables), initial=0)
        self.lengths = MixedColumn([table.lengths for table in self._tables], self.starts)
        terms = self._tables[0].targets
        self.targets = {term: MixedColumn([table.targets[term] for table in self._tables], self.starts) for term in terms}
        self.tokens_total = sum(table.tokens_total for table in self._tables)
        self.offsets = self._tables[0].offsets

    def __len__(self) -> int:
        return self._length

    def pieces(self, row: int) -> NDArray[np.int64]:
        """The pieces of a row, [n, K], with offsets into the tokens of the mixture."""
        owner = bisect_right(self.starts, row) - 1
        pieces = self._tables[owner].pieces(row - self.starts[owner]).copy()
        pieces[:, self.offsets] += self._token_starts[owner]
        return pieces

    def named(self, rows: Iterable[int]) -> list[str]:
        """Rows with their source: `books:17`, `web.en:3`."""
        found = []
        for row in rows:
            owner = bisect_right(self.starts, row) - 1
            (inner,) = self._tables[owner].named([row - self.starts[owner]])
            found.append(f"{self._names[owner]}{'.' if isinstance(inner, str) else ':'}{inner}")
        return found


class MixedSplit(Split):
    """A split of several sources. It has no list of all documents and sentences; they are their sources' own."""

    def __init__(self, shares: Mapping[str, int], members: Mapping[str, Split]):
        self.shares, self.members = shares, members
        first = next(iter(members.values()))
        self.special, self.seed, self.sequence_length, self.learned = first.special, first.seed, first.sequence_length, first.learned
        tokens = MixedTokens([member.tokens for member in members.values()])
        rows = MixedRows({name: member.rows for name, member in members.items()}, tokens.starts)
        self.tokens, self.rows, self._starts, self._token_starts = tokens, rows, rows.starts, tokens.starts

    @property
    def epoch_tokens(self) -> Fraction:
        whole, tokens = sum(self.shares.values()), Fraction()
        for name, share in self.shares.items():
            tokens += Fraction(share, whole) * self.members[name].epoch_tokens / len(self.members[name].rows)
        return tokens * len(self.rows)

    def sentence_starts(self, start: int, length: int) -> NDArray[np.int64]:
        owner = bisect_right(self._token_starts, start) - 1
        return list(self.members.values())[owner].sentence_starts(start - self._token_starts[owner], length)

    def order(self, seed: int) -> Ordering:
        # Salted by name: tables of one size are not gone through in step, and a source keeps its order when another comes or goes.
        orders = {name: member.order(mix(seed, "source", name)) for name, member in self.members.items()}
        return MixedOrder(self.shares, orders, self._starts)


class MixedCorpus(Corpus):
    """Several corpora with one tokenizer, any of them perhaps a mixture itself. shares: of each by name, in whole parts."""

    def __init__(self, path: Path | str):
        super().__init__(path, path)
        self.learned = self.meta["learned"]
        sources = self.meta["sources"]
        self.shares: dict[str, int] = {source["name"]: source["share"] for source in sources}
        for source in sources:
            self.members[source["name"]] = open_corpus(*((self.path / source[kind]).resolve() for kind in ("corpus", "rows")))

    def named(self) -> dict[str, Corpus]:
        inner = {
            f"{name}.{key}".removesuffix("."): corpus for name, member in self.members.items() for key, corpus in member.named().items()
        }
        return {"": self} | inner

    def tokens(self, split: str) -> Tokens:
        return MixedTokens([member.tokens(split) for member in self.members.values()])

    def split(self, name: str) -> Split:
        return MixedSplit(self.shares, {source: member.split(name) for source, member in self.members.items()})
