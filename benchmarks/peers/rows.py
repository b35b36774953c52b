"""The rows that all loops train on: one document (or pair) a row, in our order, with our masks; padded for those that need it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from trainer.atomic import write_json
from trainer.config import Config
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.order import Order
from trainer.data.prepare import prepare
from trainer.data.rows import META, Rows, RowWriter
from trainer.data.sources import SPLITS
from trainer.tasks import Batch, Pick

Ints = NDArray[np.int64]
Items = Dataset[Any] | Sequence[Any]
Collate = Callable[[list[Any]], Any]

IGNORED = -100  # transformers' label of a position that is no target


class Cut(Enum):
    """What rows are made of pieces of text. half: cut to lengths of which a little more than half of a padded batch is padding."""

    none = "as they are"
    full = "full"
    half = "cut"


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


def one_document_a_row(config: Config, folder: Path, cut: Cut = Cut.none) -> Data:
    """The same pieces of text, each a row of its own: what loops without packed attention can be given without a difference in the loss."""
    data = packed(config)
    corpus = data.open()
    for split in SPLITS:
        table = Rows(data.rows / split)
        pieces = np.concatenate([table.pieces(row) for row in range(len(table))])
        pieces, lengths, targets = _alone(pieces, config, cut if split == "train" else Cut.none)
        writer = RowWriter(folder / split)
        writer.append(pieces, np.ones_like(lengths), lengths, targets)
        writer.close()
    write_json(folder / META, corpus.rows_meta)
    return Data(data.corpus, folder)


def _alone(pieces: Ints, config: Config, cut: Cut) -> tuple[Ints, Ints, dict[str, NDArray[np.integer[Any]]]]:
    """Pieces that are rows, their lengths in tokens, and their targets by term."""
    # A causal piece is (start, length), a masked one too with two special tokens more; a pair is (a_start, a_length, b_start, b_length,
    # is_next) with three.
    pairs, causal = pieces.shape[1] == 5, config.task.name == "clm"
    special = 3 if pairs else 0 if causal else 2
    if cut is Cut.half:
        # The mean of these shares is 0.44, and the largest of a batch of sixteen 0.93.
        share = np.random.default_rng(config.seed).uniform(size=len(pieces)) ** 1.25
        for column in (1, 3) if pairs else (1,):
            pieces[:, column] = np.maximum(1, np.rint(share * pieces[:, column]))
    lengths = pieces[:, 1] + special + (pieces[:, 3] if pairs else 0)
    kept = lengths == config.sequence_length if cut is Cut.full else lengths > 8
    pieces, lengths = pieces[kept], lengths[kept]
    if causal:
        return pieces, lengths, {"clm": lengths}
    masked = np.maximum(1, np.rint(config.task.probability * (lengths - special))).astype(np.int64)  # type: ignore[attr-defined]
    return pieces, lengths, {"mlm": masked} | ({"nsp": np.ones_like(lengths)} if pairs else {})


def with_vocabulary(data: Data, folder: Path, size: int) -> Data:
    """The same text under a vocabulary of `size`, so that embedding and head have that size; the ids it adds occur nowhere."""
    folder.mkdir()
    for path in data.corpus.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "special.json").unlink()
    special = json.loads((data.corpus / "special.json").read_text())
    (folder / "special.json").write_text(json.dumps(special | {"size": size}))
    return Data(folder, data.rows)


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
    """A batch as transformers' models take it: `[samples, longest]`; rows of one length need no mask."""
    inputs = [sample.inputs for sample in samples]
    ids, mask = _stack([each["input_ids"][0] for each in inputs])
    batch = {"input_ids": ids} if bool(mask.all()) else {"input_ids": ids, "attention_mask": mask}
    if "clm_targets" in inputs[0]:
        # Shifted already; without `shift_labels` a row would have to be a token longer for its last target.
        labels = torch.nn.utils.rnn.pad_sequence([each["clm_targets"] for each in inputs], batch_first=True, padding_value=IGNORED)
        return batch | {"labels": labels, "shift_labels": labels}
    labels = torch.full_like(ids, IGNORED)
    for row, each in enumerate(inputs):
        labels[row, each["mlm_index"]] = each["mlm_targets"]
    batch["labels"] = labels
    if "nsp_targets" in inputs[0]:
        batch["token_type_ids"], _ = _stack([each["token_type_ids"][0] for each in inputs])
        batch["next_sentence_label"] = torch.cat([each["nsp_targets"] for each in inputs])
    return batch


def _stack(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded to the longest, and their mask."""
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
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
