"""A text from a text: summaries, translations, sentences from data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainer.choices import ConfigError, choice, identity
from trainer.tasks import BrokenExample, Field, scores
from trainer.tasks.labelled import Row, Score, Scored
from trainer.tasks.writing import SHOWN, Writing, require_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.models import Model

SOURCE = "{source}"
# Fewer tokens than these are no source.
_LEAST = 8


@choice
class Seq2Seq(Writing):
    """A target text from a source text. Encoder–decoder models read the source and write the target; a decoder goes on from the source."""

    name: str = "seq2seq"
    prompt: str | None = identity(
        None,
        help="what the model reads, with {source} in it, e.g. 'summarize: {source}'; default: the source, and for a decoder a new line",
    )

    fields: ClassVar[Mapping[str, Field]] = {
        "source": Field(("source", "text", "document", "article", "input", "mr", "src", "1"), together=True),
        "target": Field(("target", "summary", "highlights", "output", "ref", "tgt", "title", "2")),
    }
    predicted: ClassVar[tuple[str, ...]] = ("target",)
    terms: ClassVar[dict[str, float]] = {"seq2seq": 1.0}
    vocabulary_term: ClassVar[str] = "seq2seq"
    figures: ClassVar[tuple[str, ...]] = ("bleu", "rouge1", "rouge2", "rougeL", "chrf", "exact_match")

    def check(self) -> None:
        super().check()
        if self.prompt is not None and self.prompt.count(SOURCE) != 1:
            raise ConfigError(f"task.prompt: {self.prompt!r}; allowed: a text with {SOURCE} in it once, e.g. 'summarize: {SOURCE}'")

    def objective_on(self, model: Model) -> str:
        return "denoising" if model.pairs else "causal"

    def encode(
        self,
        examples: Sequence[dict[str, Any]],
        first: int,
        tokenizer: PreTrainedTokenizerFast,
        learned: Mapping[str, Any],
        sequence_length: int,
    ) -> Iterator[Row]:
        alone = learned["objective"] == "causal"
        room = sequence_length - (self.max_target_length if alone else 0)
        if room < _LEAST:
            raise ConfigError(
                f"sequence_length: {sequence_length} leaves no room for a source beside task.max_target_length: {self.max_target_length} "
                f"tokens of its target; set sequence_length={_LEAST * 4 + self.max_target_length} or a shorter target"
            )
        before, after = self.written(alone).split(SOURCE)
        beside = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (before, after))
        if room - beside < _LEAST:
            raise ConfigError(
                f"task.prompt: {self.prompt!r} has {beside} tokens beside the source, for which {room - beside} are left; "
                "set a shorter one, or a longer sequence_length"
            )
        require_end(tokenizer)
        targets = [references(example, first + number)[0] for number, example in enumerate(examples)]
        for number, example in enumerate(examples):
            source, target = str(example["source"]), targets[number]
            if alone:
                yield self._continued(first + number, tokenizer, (before, source, after), target, room)
                continue
            read, limit = self._read(tokenizer, (before, source, after), room), self.max_target_length
            written = _ended(tokenizer(text_target=target, truncation=True, max_length=limit)["input_ids"], tokenizer, limit)
            yield Row(first + number, (read, written, (), ()), {self.vocabulary_term: len(written)})

    def written(self, alone: bool) -> str:
        """What a model reads, with SOURCE in it. alone: a decoder, which goes on from it."""
        return self.prompt or (f"{SOURCE}\n" if alone else SOURCE)

    def _read(self, tokenizer: PreTrainedTokenizerFast, prompt: tuple[str, str, str], room: int) -> list[int]:
        """What an encoder reads: of a prompt that is too long, the source is cut."""
        before, source, after = prompt
        over = len(_ended(tokenizer("".join(prompt))["input_ids"], tokenizer, room + 1)) - room
        if over > 0:
            over = len(tokenizer("".join(prompt))["input_ids"]) + 1 - room
            ends = [end for _, end in tokenizer(source, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
            source = source[: ends[-over - 1]] if over < len(ends) else ""
        return _ended(tokenizer(before + source + after, truncation=True, max_length=room)["input_ids"], tokenizer, room)

    def _continued(self, example: int, tokenizer: PreTrainedTokenizerFast, prompt: tuple[str, str, str], target: str, room: int) -> Row:
        """Of a decoder alone: the prompt, of which the source may be cut, and what follows."""
        before, source, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompt)
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        read = [begin, *before, *source[: max(0, room - 1 - len(before) - len(after))], *after]
        written = [*tokenizer(target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][: self.max_target_length]
        places = np.arange(len(read), len(read) + len(written))
        return Row(example, ([*read, *written], (), places, (len(read),)), {self.vocabulary_term: len(written)})

    def asked(self, prompt: str) -> dict[str, Any]:
        return {"source": prompt}

    def unanswered(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        return {"target": ""}

    def answer(self, example: Mapping[str, Any], predictions: Sequence[Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        return {"target": predictions[0]}

    def guess(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> list[Any] | None:
        """The source itself."""
        return [str(example["source"])]

    def score(self, scored: Sequence[Scored], learned: Mapping[str, Any]) -> Score:
        """Examples of one source are one text to write, with several references."""
        if not self.generate:
            return Score({})
        truth: dict[str, list[str]] = {}
        written: dict[str, str] = {}
        for one in scored:
            source = str(one.example["source"])
            truth.setdefault(source, []).extend(references(one.example, 0))
            written.setdefault(source, one.predictions[0])
        found = scores.texts(list(truth.values()), list(written.values()))
        shown = [{"source": source, "target": truth[source], "written": written[source]} for source in list(truth)[:SHOWN]]
        return Score(found, {"sources": len(truth), "examples": shown})


def references(example: Mapping[str, Any], number: int) -> list[str]:
    """What may be written of an example: the first is what is learned. Raises ConfigError for what is no text."""
    given = example["target"]
    found = given if isinstance(given, list) else [given]
    if not found or not all(isinstance(text, (str, int, float)) for text in found):
        raise BrokenExample(number, f"data.columns.target: {given!r} of example {number + 1:,}; allowed: a text, or a list of references")
    return list(map(str, found))


def _ended(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast, most: int) -> list[int]:
    """Ids with the token that ends a text, where the tokenizer has put none and there is room."""
    found = list(ids)
    return [*found, tokenizer.eos_token_id] if len(found) < most and found[-1:] != [tokenizer.eos_token_id] else found
