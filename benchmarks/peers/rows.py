"""The rows that all loops train on: one document (or pair) a row, in our order, with our masks; padded for those that need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trainer.atomic import write_json
from trainer.config import Config
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.order import Order
from trainer.data.prepare import prepare
from trainer.data.rows import META, Rows, RowWriter
from trainer.data.sources import SPLITS
from trainer.tasks import Batch, Pick

IGNORED = -100  # transformers' label of a position that is no target


@dataclass(frozen=True)
class Data:
    """Where prepared data lies, as a run directory's placement.json names it."""

    corpus: Path
    rows: Path

    def open(self) -> Corpus:
        return open_corpus(self.corpus, self.rows)


def packed(config: Config) -> Data:
    """The rows as `trainer train` packs them: full, several documents in one."""
    prepared = prepare(config, progress=False)
    return Data(prepared.corpus, prepared.rows)


def one_document_a_row(config: Config, folder: Path) -> Data:
    """The same pieces of text, each a row of its own: what loops without packed attention can be given without a difference in the loss."""
    data = packed(config)
    corpus = data.open()
    for split in SPLITS:
        table = Rows(data.rows / split)
        pieces = np.concatenate([table.pieces(row) for row in range(len(table))])
        # A causal piece is (start, length), a pair (a_start, a_length, b_start, b_length, is_next) with three special tokens.
        pairs = pieces.shape[1] == 5
        lengths = pieces[:, 1] + pieces[:, 3] + 3 if pairs else pieces[:, 1]
        pieces, lengths = pieces[lengths > 8], lengths[lengths > 8]
        if pairs:
            masked = np.maximum(1, np.rint(config.task.probability * (lengths - 3)))  # type: ignore[attr-defined]
            targets = {"mlm": masked.astype(np.int64), "nsp": np.ones_like(lengths)}
        else:
            targets = {"clm": lengths}
        writer = RowWriter(folder / split)
        writer.append(pieces, np.ones_like(lengths), lengths, targets)
        writer.close()
    write_json(folder / META, corpus.rows_meta)
    return Data(data.corpus, folder)


class Samples(Dataset[Batch]):
    """The samples of a run in their order: item p is the sample at position p, alone in a batch, masked as the run masks it."""

    def __init__(self, config: Config, data: Data):
        self.task, self.split = config.task, data.open().split("train")
        count = (config.steps or 0) * config.global_batch
        rows, epochs = Order(config.seed, len(self.split.rows)).at(0, count)
        self.picks = [Pick(int(row), int(epoch)) for row, epoch in zip(rows, epochs, strict=True)]

    def __len__(self) -> int:
        return len(self.picks)

    def __getitem__(self, position: int) -> Batch:
        return self.task.collate(self.split, [self.picks[position]])


def pad(samples: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """A padded batch as transformers' models take it: `[samples, longest]`."""
    return _pad_causal(samples) if "clm_targets" in samples[0].inputs else _pad_pairs(samples)


def _pad_causal(samples: Sequence[Batch]) -> dict[str, torch.Tensor]:
    # transformers shifts the labels itself, so a row also holds its last target, and its first token is no target.
    rows = [torch.cat([sample.inputs["input_ids"][0], sample.inputs["clm_targets"][-1:]]) for sample in samples]
    ids, mask = _stack(rows, 0)
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, 0] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _pad_pairs(samples: Sequence[Batch]) -> dict[str, torch.Tensor]:
    ids, mask = _stack([sample.inputs["input_ids"][0] for sample in samples], 0)
    types, _ = _stack([sample.inputs["token_type_ids"][0] for sample in samples], 0)
    labels = torch.full_like(ids, IGNORED)
    for row, sample in enumerate(samples):
        labels[row, sample.inputs["mlm_index"]] = sample.inputs["mlm_targets"]
    next_sentence = torch.cat([sample.inputs["nsp_targets"] for sample in samples])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels, "next_sentence_label": next_sentence}


def _stack(rows: list[torch.Tensor], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded to the longest, and their mask."""
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()


def build_model(config: Config, data: Data) -> Any:
    """The transformers model that a run of this configuration starts from: the same weights."""
    from trainer.models.deferred import real_copy

    corpus = data.open()
    if corpus.vocabulary.size != corpus.vocabulary.padded:
        raise ValueError(
            f"a vocabulary of {corpus.vocabulary.size}: peers would spread probability over the padding; take a multiple of 64"
        )
    return real_copy(config.model.skeleton(config.task.objective, corpus.vocabulary, config.sequence_length), config.seed)
