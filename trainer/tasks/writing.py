"""What tasks share whose answer is a text: a model reads a prompt and writes what follows, and held-out examples are written out.

An encoder–decoder model reads `input_ids` and writes `decoder_ids`. A decoder alone has both in `input_ids`: it goes on from the first
`prompt` of them, and the tokens at `places` are its targets, each predicted from all before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError, identity, nearest, placement, require_positive
from trainer.tasks import Batch
from trainer.tasks.labelled import Ints, Labelled
from trainer.tasks.regularizing import Regularizing

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from trainer.config import Config
    from trainer.data.corpus import Corpus
    from trainer.models import Model

# Figures of an evaluation that come of written texts show so many of them.
SHOWN = 20
# Options of transformers' GenerationConfig that say which text is the best; none is drawn, so the figures of a model are its own.
_OPTIONS = ("num_beams", "length_penalty", "early_stopping", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
            "repetition_penalty", "encoder_repetition_penalty")  # fmt: skip


@dataclass
class Writing(Regularizing, Labelled):
    """An objective on examples whose answer is a text."""

    max_target_length: int = identity(128, help="tokens of an answer, at most")
    generate: bool = placement(True, help="write the answers of held-out examples, for figures of texts; false: losses alone")
    generation: dict[str, Any] = placement(
        default_factory=dict,
        help="how answers are written, as transformers' GenerationConfig has it: {num_beams: 4, …}; default: greedily",
    )

    sections: ClassVar[tuple[str, ...]] = ("input_ids", "decoder_ids", "places", "prompt")
    tokens: ClassVar[tuple[str, ...]] = ("input_ids", "decoder_ids")

    def check(self) -> None:
        super().check()
        require_positive(self, "max_target_length")
        for name in self.generation:
            if name not in _OPTIONS:
                raise ConfigError(f"task.generation.{name}: allowed: {', '.join(_OPTIONS)}{nearest(name, _OPTIONS)}")

    def labels_of(self, corpus: Corpus) -> dict[str, Any]:
        return {}

    def answering(self) -> Writing:
        return replace(self, generate=True)

    def asked(self, prompt: str) -> dict[str, Any]:
        """The example that a prompt alone is."""
        raise NotImplementedError

    def writing(self, model: Model) -> tuple[str, bool]:
        return "bpe", False

    def module(self, config: Config, corpus: Corpus) -> nn.Module:
        from trainer.models import skeleton_of

        return self._around(skeleton_of(config, corpus), corpus.vocabulary.size)

    def around(self, model: PreTrainedModel, learned: Mapping[str, Any]) -> nn.Module:
        return self._around(model, model.config.get_text_config().vocab_size)

    def _around(self, model: PreTrainedModel, vocabulary_size: int) -> nn.Module:
        from trainer.models.writing import Decoding, PairWriting, PromptWriting

        decoding = Decoding(self.max_target_length, self.generation) if self.generate else None
        kind = PairWriting if model.config.is_encoder_decoder else PromptWriting
        return kind(model, vocabulary_size, self.regularized, self.vocabulary_term, decoding)

    def batch(self, rows: Sequence[Mapping[str, Ints]], counted: NDArray[np.bool_], learned: Mapping[str, Any]) -> Batch:
        import torch

        arrays, lengths, more = (_pairs if learned["objective"] == "denoising" else _prompted)(rows, counted)
        term = self.vocabulary_term
        named = {name.replace("TERM", term): torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
        count = len(arrays["TERM_targets"])
        tokens = sum(len(row[name]) for row, scored in zip(rows, counted, strict=True) if scored for name in self.tokens)
        return Batch(named, lengths, {term: count}, tokens, **more)

    def metrics(self, sums: dict[str, float], targets: dict[str, int], corpus: Corpus) -> dict[str, Any]:
        term = self.vocabulary_term
        return {"perplexity": math.exp(min(700.0, sums[term] / max(1, targets[term])))}

    def predictions(self, outputs: Mapping[str, NDArray[Any]], tokenizer: PreTrainedTokenizerFast) -> Sequence[Any]:
        if not self.generate:
            return [None] * len(outputs["rows"])
        texts = tokenizer.batch_decode(outputs["written"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]


def _pairs(rows: Sequence[Mapping[str, Ints]], counted: NDArray[np.bool_]) -> tuple[dict[str, Ints], tuple[int, ...], dict[str, Any]]:
    written = [row["decoder_ids"] for row in rows]
    targets = np.concatenate(written)
    scored = np.repeat(counted, [len(each) for each in written])
    arrays = {
        "input_ids": np.concatenate([row["input_ids"] for row in rows])[None],
        "decoder_ids": targets[None],
        "TERM_targets": targets[scored],
        "TERM_index": np.flatnonzero(scored),
    }
    return arrays, tuple(len(row["input_ids"]) for row in rows), {"decoded": tuple(map(len, written))}


def _prompted(rows: Sequence[Mapping[str, Ints]], counted: NDArray[np.bool_]) -> tuple[dict[str, Ints], tuple[int, ...], dict[str, Any]]:
    # The last token of an answer is read by nobody.
    read = [row["input_ids"][:-1] for row in rows]
    lengths = [len(each) for each in read]
    starts = np.cumsum([0, *lengths])
    none = [np.zeros(0, np.int64)]
    kept = [(row, start) for row, start, scored in zip(rows, starts, counted, strict=False) if scored]
    arrays = {
        "input_ids": np.concatenate(read)[None],
        "position_ids": np.concatenate([np.arange(length) for length in lengths])[None],
        "TERM_targets": np.concatenate([row["input_ids"][row["places"]] for row, _ in kept] or none),
        "TERM_index": np.concatenate([row["places"] - 1 + start for row, start in kept] or none),
    }
    return arrays, tuple(lengths), {"prompts": tuple(int(row["prompt"][0]) for row in rows)}


def require_end(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ConfigError where a tokenizer has no token that ends a text."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "tokenizer: it has no token that ends a text, so a model could not learn where an answer ends; give one with eos_token in its "
            "tokenizer_config.json"
        )
