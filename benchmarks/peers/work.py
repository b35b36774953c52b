"""What all loops do: a configuration, its rows in their order as peers take them, and the model that they start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from benchmarks.peers import labelled
from benchmarks.peers.rows import Collate, Data, Items, Samples, build_model, pad
from trainer import mfu
from trainer.config import Config


@dataclass(frozen=True)
class Work:
    """What all loops do. items, collate: the samples of a run in their order as peers take them, read beforehand."""

    config: Config
    data: Data
    items: Items
    collate: Collate
    build: Callable[[], Any]
    lengths: Sequence[int]

    def with_(self, **changes: Any) -> Work:
        """Under another configuration, of no more steps."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    def batches(self, warm: int) -> list[Sequence[int]]:
        """Lengths of the samples of each step that is timed."""
        size, stop = self.config.global_batch, (self.config.steps or 0) * self.config.global_batch
        return [self.lengths[start : start + size] for start in range(warm * size, stop, size)]

    def tokens(self, warm: int) -> float:
        """Real tokens of a step that is timed."""
        return sum(map(sum, self.batches(warm))) / len(self.batches(warm))

    def padded(self, warm: int) -> float:
        """The share of padding in a peer's batches."""
        return 1 - sum(map(sum, self.batches(warm))) / sum(len(batch) * max(batch) for batch in self.batches(warm))

    @cached_property
    def flops(self) -> float:
        """Of a token, by what the model needs; the same for whoever computes it. 0 where that is not known."""
        work = mfu.work_of(self.build(), list(self.config.task.terms))
        rows = self.data.open().split("train").rows
        if work is None:
            return 0.0
        targets = {term: round(int(rows.targets[term][:].sum()) * sum(self.lengths) / rows.tokens_total) for term in self.config.task.terms}
        return work.flops(sum(self.lengths), targets, list(self.lengths)) / sum(self.lengths)


def pretraining(config: Config, data: Data) -> Work:
    """Rows of one document, or pair, each."""
    samples = Samples(config, data)
    lengths = samples.split.rows.lengths[[pick.row for pick in samples.picks]].tolist()
    items = [samples[number] for number in range(len(samples))]
    return Work(config, data, items, pad, partial(build_model, config, data), lengths)


def fine_tuning(config: Config, data: Data) -> Work:
    """Examples with labels, padded by transformers' own collators."""
    found = labelled.InOurOrder(config, data)
    return Work(config, data, found, labelled.collator(config, data), partial(labelled.first_model, config, data), found.lengths)
