"""Embeddings of texts, from pairs that belong together: each is to be found among all others (InfoNCE)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.choices import choice, identity, require_positive
from trainer.tasks import BrokenExample, Field, retrieval
from trainer.tasks.labelled import Ints, Labelled, Row, Score, Scored

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from trainer.config import Config
    from trainer.data.corpus import Corpus

_ROLES = ("anchor", "positive", "negative")


class Pooling(str, Enum):
    """What of a text's tokens its embedding is."""

    mean = "mean"
    first = "first"
    last = "last"


@choice
class Contrastive(Labelled):
    """An anchor and the text that belongs to it, perhaps one that does not; all other texts of the global batch belong to others."""

    name: str = "contrastive"
    pooling: Pooling = identity(Pooling.mean, help="mean | first | last: what of a text's tokens its embedding is")
    temperature: float = identity(0.05, help="cosines are divided by it")

    fields: ClassVar[Mapping[str, Field]] = {
        # Of two pairs of one anchor none is held out while the other is trained on.
        "anchor": Field(("anchor", "text", "query", "sentence1", "question", "sentence"), together=True),
        "positive": Field(("positive", "pair", "sentence2", "answer")),
        "negative": Field(("negative",), optional=True),
        "score": Field(("score",), optional=True),
    }
    predicted: ClassVar[tuple[str, ...]] = ("positive", "negative", "score")
    terms: ClassVar[dict[str, float]] = {"pairs": 1.0}
    objective: ClassVar[str] = "embedding"
    figures: ClassVar[tuple[str, ...]] = ("accuracy_at_1", "mrr_at_10", "accuracy_at_5", "accuracy_at_10", "spearman")
    # sizes: tokens of each text; keys: equal for equal texts.
    sections: ClassVar[tuple[str, ...]] = ("input_ids", "sizes", "keys")
    joint: ClassVar[bool] = True
    rehearsed: ClassVar[int] = 4

    def check(self) -> None:
        require_positive(self, "temperature")

    def labels_of(self, corpus: Corpus) -> dict[str, Any]:
        return {}

    def learn(self, examples: Iterator[dict[str, Any]]) -> dict[str, Any]:
        for number, example in enumerate(examples):
            if "score" in example:
                raise BrokenExample(
                    number,
                    f"data.columns.score: example {number + 1:,} to train on has one; all pairs that are trained on belong together: leave "
                    "out those that do not, and the column. Graded pairs are for held-out sets: evals.NAME.source=…",
                )
        return {}

    def encode(
        self,
        examples: Sequence[dict[str, Any]],
        first: int,
        tokenizer: PreTrainedTokenizerFast,
        learned: Mapping[str, Any],
        sequence_length: int,
    ) -> Iterator[Row]:
        texts = [
            [text_of(example[role], role, first + number) for role in _ROLES if role in example] for number, example in enumerate(examples)
        ]
        flat = [text for several in texts for text in several]
        found = iter(tokenizer(flat, truncation=True, max_length=sequence_length)["input_ids"])
        for number, several in enumerate(texts):
            ids = [next(found) for _ in several]
            if all(ids):
                joined = [token for each in ids for token in each]
                yield Row(first + number, (joined, [len(each) for each in ids], [key_of(text) for text in several]), {"pairs": 1})

    def lengths(self, row: Mapping[str, Ints]) -> list[int]:
        sizes: list[int] = row["sizes"].tolist()
        return sizes

    def inputs(
        self, rows: Sequence[Mapping[str, Ints]], counted: NDArray[np.bool_], learned: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        sizes = np.array([len(row["sizes"]) for row in rows], np.int64)
        kept, none = [row for row, scored in zip(rows, counted, strict=True) if scored], [np.zeros(0, np.int64)]
        found = {
            "pair_index": np.flatnonzero(np.repeat(counted, sizes)),
            "pair_sizes": sizes[counted],
            "pair_places": np.concatenate([number * len(_ROLES) + np.arange(len(row["sizes"])) for number, row in enumerate(kept)] or none),
            "pair_keys": np.concatenate([row["keys"] for row in kept] or none),
        }
        return found, {"pairs": len(kept)}

    def around(self, model: PreTrainedModel, learned: Mapping[str, Any]) -> nn.Module:
        from trainer.models.embedding import EmbeddingModule

        return EmbeddingModule(model, self.pooling.value, self.temperature)

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        import torch.distributed as dist

        from trainer.models import skeleton_of
        from trainer.models.embedding import EmbeddingModule

        ranks = dist.get_world_size() if dist.is_initialized() else 1
        pairs = max(-(-config.global_batch // ranks), self.rehearsed)
        return EmbeddingModule(skeleton_of(config, corpus), self.pooling.value, self.temperature, pairs)

    def predictions(self, outputs: Mapping[str, NDArray[Any]], tokenizer: PreTrainedTokenizerFast) -> Sequence[Any]:
        """Of each row its texts' embeddings, as text: numbers in JSON would be four times as long."""
        parts = np.split(outputs["embeddings"], np.cumsum(outputs["sizes"])[:-1])
        return [[base64.b64encode(each.astype("<f4").tobytes()).decode() for each in part] for part in parts]

    def unanswered(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def answer(self, example: Mapping[str, Any], predictions: Sequence[Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        """The embedding of the anchor, and how near it is to its text where there is one."""
        anchor, *others = map(vector, predictions[0])
        near = {"cosine": float(anchor @ others[0])} if others else {}
        return {"embedding": [float(value) for value in anchor], **near}

    def score(self, scored: Sequence[Scored], learned: Mapping[str, Any]) -> Score:
        pairs = [
            retrieval.Pair([str(one.example[role]) for role in _ROLES if role in one.example], list(map(vector, one.predictions[0])))
            for one in scored
            if "score" not in one.example
        ]
        graded = [(vector(one.predictions[0][0]), vector(one.predictions[0][1]), one.example) for one in scored if "score" in one.example]
        figures = retrieval.figures(pairs, self.temperature) if pairs else {}
        if graded:
            cosines = np.array([left @ right for left, right, _ in graded])
            figures["spearman"] = retrieval.spearman(cosines, np.array([float(example["score"]) for *_, example in graded]))
        # Of graded pairs alone there is no other loss.
        return Score({"eval_loss": 1 - figures["spearman"], **figures} if not pairs else figures)

    def finish_folder(self, folder: Path) -> None:
        """What sentence-transformers reads."""
        from transformers import AutoConfig

        width = AutoConfig.from_pretrained(folder).get_text_config().hidden_size
        names = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
            for number, (path, name) in enumerate(names.items())
        ]
        modes = {"mean_tokens": Pooling.mean, "cls_token": Pooling.first, "lasttoken": Pooling.last}
        pooling = {f"pooling_mode_{name}": self.pooling is mode for name, mode in modes.items()}
        for path, values in (
            ("modules.json", modules),
            ("1_Pooling/config.json", {"word_embedding_dimension": width, **pooling}),
            ("2_Normalize/config.json", {}),
        ):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(json.dumps(values, indent=1))


def text_of(value: Any, role: str, number: int) -> str:
    """A text of an example. Raises ConfigError where it is none."""
    if not isinstance(value, str):
        raise BrokenExample(number, f"data.columns.{role}: {value!r:.80} of example {number + 1:,}; allowed: one text")
    return value


def key_of(text: str) -> int:
    """31 bits of a text's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little") >> 1


def vector(written: str) -> NDArray[np.float32]:
    """An embedding as `predictions` writes it."""
    return np.frombuffer(base64.b64decode(written), "<f4")
