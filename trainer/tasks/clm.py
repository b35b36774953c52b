"""Causal language modelling: every token from those before it in its document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainer.choices import choice
from trainer.tasks import Batch, Pick
from trainer.tasks.regularizing import Regularizing

if TYPE_CHECKING:
    from torch import nn

    from trainer.config import Config
    from trainer.data.corpus import Corpus, Split
    from trainer.data.rows import RowWriter


@choice
class CausalLM(Regularizing):
    """Next-token prediction over packed documents (GPT)."""

    name: str = "clm"

    terms: ClassVar[dict[str, float]] = {"clm": 1.0}
    vocabulary_term: ClassVar[str] = "clm"
    objective: ClassVar[str] = "causal"
    figures: ClassVar[tuple[str, ...]] = ("perplexity", "bits_per_byte")

    def rows(self, corpus: Corpus, split: str, sequence_length: int, seed: int, writer: RowWriter) -> None:
        from trainer.data.packing import pack_causal

        pack_causal(corpus.documents(split), sequence_length, writer)

    def collate(self, split: Split, picks: Sequence[Pick]) -> Batch:
        import torch

        inputs, targets, positions, lengths, counted = [], [], [], [], []
        for pick in picks:
            pieces = split.rows.pieces(pick.row)
            # The pieces of a row follow each other in the stream, so one read serves them all, and the last one's last target.
            total = int(pieces[:, 1].sum())
            tokens = split.tokens.read(int(pieces[0, 0]), total + 1)
            inputs.append(tokens[:-1])
            targets.append(tokens[1:])
            for length in pieces[:, 1].tolist():
                lengths.append(length)
                positions.append(np.arange(length, dtype=np.int64))
            counted.append(np.full(total, pick.counted))
        mask = np.concatenate(counted)
        chosen = np.concatenate(targets)[mask]
        tensors = {
            "input_ids": torch.from_numpy(np.concatenate(inputs)[None]),
            "position_ids": torch.from_numpy(np.concatenate(positions)[None]),
            "clm_targets": torch.from_numpy(chosen),
        }
        if len(chosen) < len(mask):
            tensors["clm_index"] = torch.from_numpy(np.flatnonzero(mask))
        return Batch(tensors, tuple(lengths), {"clm": len(chosen)}, tokens=len(chosen))

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        from trainer.models import skeleton_of
        from trainer.models.heads import CausalModule

        return CausalModule(skeleton_of(config, corpus), corpus.vocabulary.size, self.regularized)

    def metrics(self, sums: dict[str, float], targets: dict[str, int], corpus: Corpus) -> dict[str, Any]:
        held_out = corpus.meta["splits"]["eval"]
        return {
            "perplexity": math.exp(min(700.0, sums["clm"] / targets["clm"])),
            # Every token of every held-out document is scored, its first one and its end included.
            "bits_per_byte": sums["clm"] / math.log(2) / held_out["bytes"],
        }

    def baselines(self, corpus: Corpus) -> dict[str, float]:
        held_out = corpus.meta["splits"]["eval"]
        return {f"{kind}_bits_per_byte": 8 * held_out[f"{kind}_bytes"] / held_out["bytes"] for kind in ("gzip", "xz")}
