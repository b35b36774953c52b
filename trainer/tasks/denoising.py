"""Denoising: spans of a text are hidden behind sentinels, and the decoder writes them (Raffel et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError, choice, identity
from trainer.streams import mix
from trainer.tasks import Batch, Pick
from trainer.tasks.regularizing import Regularizing

if TYPE_CHECKING:
    from torch import nn

    from trainer.config import Config
    from trainer.data.corpus import Corpus, Split
    from trainer.data.rows import RowWriter
    from trainer.data.spans import Spans

Ints = NDArray[np.int64]


@choice
class Denoising(Regularizing):
    """Span corruption for encoder–decoder models (T5, BART)."""

    name: str = "denoising"
    probability: float = identity(0.15, help="share of tokens that are hidden")
    mean_span: float = identity(3.0, help="tokens of a hidden span, on average")

    terms: ClassVar[dict[str, float]] = {"denoising": 1.0}
    vocabulary_term: ClassVar[str] = "denoising"
    objective: ClassVar[str] = "denoising"
    figures: ClassVar[tuple[str, ...]] = ("denoising_accuracy",)
    sentinels: ClassVar[int] = 100  # as many as T5 has

    def check(self) -> None:
        super().check()
        if not 0 < self.probability < 1:
            raise ConfigError(f"task.probability: {self.probability}; a share between 0 and 1, e.g. 0.15")
        if not self.mean_span >= 1:
            raise ConfigError(f"task.mean_span: {self.mean_span}; at least 1, e.g. 3")

    @property
    def spans(self) -> Spans:
        """How much is hidden."""
        from trainer.data.spans import Spans

        return Spans(self.probability, self.mean_span)

    def rows(self, corpus: Corpus, split: str, sequence_length: int, seed: int, writer: RowWriter) -> None:
        from trainer.data.spans import pack_spans

        most = int(self.spans.counts(np.array([self.spans.longest(sequence_length)]))[1][0])
        if most > len(corpus.special.sentinels):
            raise ConfigError(
                f"sequence_length: {sequence_length} has up to {most} hidden spans, but the tokenizer has {len(corpus.special.sentinels)} "
                "sentinels to hide them behind; set a shorter sequence_length, a larger task.mean_span or a smaller task.probability"
            )
        pack_spans(corpus.documents(split), sequence_length, self.spans, writer)

    def collate(self, split: Split, picks: Sequence[Pick]) -> Batch:
        import torch

        read: list[Ints] = []
        written: list[Ints] = []
        counted: list[NDArray[np.bool_]] = []
        tokens = 0
        for pick in picks:
            for number, (start, length) in enumerate(split.rows.pieces(pick.row).tolist()):
                source, target = self.corrupted(split, mix(split.seed, "spans", pick.epoch, pick.row, number), start, length)
                read.append(source)
                written.append(target)
                counted.append(np.full(len(target), pick.counted))
                tokens += len(source) * pick.counted
        scored = np.concatenate(counted)
        targets = np.concatenate(written)
        tensors = {
            "input_ids": torch.from_numpy(np.concatenate(read)[None]),
            "decoder_ids": torch.from_numpy(targets[None]),
            "denoising_targets": torch.from_numpy(targets[scored]),
        }
        count = int(scored.sum())
        if count < len(scored):
            tensors["denoising_index"] = torch.from_numpy(np.flatnonzero(scored))
        return Batch(tensors, tuple(map(len, read)), {"denoising": count}, tokens, decoded=tuple(map(len, written)))

    def corrupted(self, split: Split, key: int, start: int, length: int) -> tuple[Ints, Ints]:
        """What the encoder reads of a piece, and what the decoder writes: sentinel by sentinel, both with the end of a text."""
        special = split.special
        assert special.eos is not None, "prepare refuses a tokenizer without it"
        tokens = split.tokens.read(start, length)
        kept, hidden = self.spans.draw(key, length)
        # What stays and what is hidden, in turns; nothing is hidden behind the last.
        turns = np.stack([kept, np.append(hidden, 0)], axis=1).ravel()
        is_hidden = np.repeat(np.tile([False, True], len(kept)), turns)
        sentinels, end = special.sentinels[: len(hidden)], [special.eos]
        source = np.insert(tokens[~is_hidden], np.cumsum(kept[:-1]), sentinels)
        target = np.insert(tokens[is_hidden], np.cumsum(hidden) - hidden, sentinels)
        return np.concatenate([source, end]), np.concatenate([target, end])

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        from trainer.models import skeleton_of
        from trainer.models.heads import DenoisingModule

        return DenoisingModule(skeleton_of(config, corpus), corpus.vocabulary.size, self.regularized)

    def metrics(self, sums: dict[str, float], targets: dict[str, int], corpus: Corpus) -> dict[str, Any]:
        return {"denoising_accuracy": sums["denoising_right"] / targets["denoising"]}
