"""Examples with labels as transformers' Trainer takes them: in our order, padded by transformers' own collators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from benchmarks.peers.rows import IGNORED, Data
from trainer.config import Config
from trainer.data.corpus import Split
from trainer.data.tokenizer_files import load_tokenizer
from trainer.models import skeleton_of
from trainer.models.deferred import real_copy
from trainer.tasks.labelled import Ints, Labelled

Item = dict[str, Any]


class InOurOrder(Dataset[Item]):
    """Item p is the example at position p of a run: `input_ids` and `labels`, unpadded."""

    def __init__(self, config: Config, data: Data):
        split = data.open().split("train")
        rows, _ = split.order(config.seed).at(0, (config.steps or 0) * config.global_batch)
        self.items = items(config, split, rows)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Item:
        return self.items[position]

    @property
    def lengths(self) -> list[int]:
        return [len(item["input_ids"]) for item in self.items]


def items(config: Config, split: Split, rows: Ints) -> list[Item]:
    """Rows of a split."""
    task = config.task
    assert isinstance(task, Labelled)
    labelled = _LABELLED[task.name]
    found = {row: task.row(split, row) for row in set(rows.tolist())}
    return [{"input_ids": found[row]["input_ids"].tolist()} | labelled(found[row]) for row in rows.tolist()]


def _class(row: dict[str, Ints]) -> Item:
    types = {"token_type_ids": row["token_type_ids"].tolist()} if len(row["token_type_ids"]) else {}
    return {"labels": int(row["target"][0])} | types


def _tags(row: dict[str, Ints]) -> Item:
    labels = np.full(len(row["input_ids"]), IGNORED)
    labels[row["places"]] = row["target"]
    return {"labels": labels.tolist()}


def _continued(row: dict[str, Ints]) -> Item:
    """Of a decoder alone; transformers shifts the labels itself."""
    labels = np.full(len(row["input_ids"]), IGNORED)
    labels[row["places"]] = row["input_ids"][row["places"]]
    return {"labels": labels.tolist()}


_LABELLED: dict[str, Callable[[dict[str, Ints]], Item]] = {
    "classification": _class,
    "token_classification": _tags,
    "seq2seq": _continued,
}


def collator(config: Config, data: Data) -> Callable[[list[Item]], Item]:
    """What transformers documents for the task: it pads a batch to its longest example."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorForTokenClassification, DataCollatorWithPadding

    collators = {"token_classification": DataCollatorForTokenClassification, "seq2seq": DataCollatorForSeq2Seq}
    tokenizer = load_tokenizer(data.open().tokenizer_path)
    found: Callable[[list[Item]], Item] = collators.get(config.task.name, DataCollatorWithPadding)(tokenizer)
    return found


def first_model(config: Config, data: Data) -> Any:
    """The transformers model that a run of this configuration starts from, with the same values.

    Raises ValueError where its losses would not be ours.
    """
    vocabulary = data.open().vocabulary
    if config.task.name == "seq2seq" and vocabulary.size != vocabulary.padded:
        raise ValueError(f"a vocabulary of {vocabulary.size}: peers would spread probability over the padding; take a multiple of 64")
    return real_copy(skeleton_of(config, data.open()), config.seed)


def score(config: Config, data: Data, model: Any) -> float:
    """Accuracy of a transformers model on the held-out examples, by transformers and scikit-learn alone: padded, 32 at a time."""
    import torch
    from sklearn.metrics import accuracy_score

    split, collate = data.open().split("eval"), collator(config, data)
    given = items(config, split, np.arange(len(split.rows)))
    truth, predicted = [], []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(given), 32):
            batch = collate(given[start : start + 32])
            labels = batch.pop("labels").flatten()
            logits = model(**batch).logits
            found = logits.argmax(-1).flatten()
            truth += labels[labels != IGNORED].tolist()
            predicted += found[labels != IGNORED].tolist()
    return float(accuracy_score(truth, predicted))
