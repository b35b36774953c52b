"""Dialogues: a model learns the assistant's turns, each from all that was said before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainer.choices import choice, identity, placement
from trainer.tasks import BrokenExample, Field, scores
from trainer.tasks.labelled import Row, Score, Scored
from trainer.tasks.writing import SHOWN, Writing, require_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.data.corpus import Corpus

ASSISTANT = "assistant"
# Of tokenizers that bring none: a turn ends as a text does, so that a model that writes one stops there.
TEMPLATE = (
    "{{ bos_token or eos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# As ShareGPT names them.
_KEYS = {"from": "role", "value": "content"}
_ROLES = {"human": "user", "gpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT}


@choice
class Instruct(Writing):
    """The assistant's turns of dialogues, by the tokenizer's own chat template; all other tokens are read, and not learned."""

    name: str = "instruct"
    max_target_length: int = identity(256, help="tokens of a reply that is written, at most")
    generate: bool = placement(False, help="write the last reply of held-out dialogues, for figures of texts")
    template: str | None = identity(None, help="a chat template in Jinja; default: the tokenizer's, or a plain one where it has none")

    fields: ClassVar[Mapping[str, Field]] = {"messages": Field(("messages", "conversations", "conversation", "dialog"))}
    terms: ClassVar[dict[str, float]] = {"instruct": 1.0}
    vocabulary_term: ClassVar[str] = "instruct"
    objective: ClassVar[str] = "causal"
    figures: ClassVar[tuple[str, ...]] = ("perplexity", "rouge1", "rougeL", "bleu", "exact_match")

    def template_of(self, tokenizer: PreTrainedTokenizerFast) -> str:
        """How a dialogue becomes a text."""
        return self.template or tokenizer.chat_template or TEMPLATE  # type: ignore[return-value]

    def finish_folder(self, folder: Path) -> None:
        from trainer.data.tokenizer_files import load_tokenizer

        tokenizer = load_tokenizer(folder)
        tokenizer.chat_template = self.template_of(tokenizer)
        tokenizer.save_pretrained(folder)

    def labels_of(self, corpus: Corpus) -> dict[str, Any]:
        """What ends a reply, where the template has another token for it than the one that ends a text."""
        from trainer.data.tokenizer_files import load_tokenizer

        tokenizer = load_tokenizer(corpus.tokenizer_path)
        said = [{"role": "user", "content": "1"}, {"role": ASSISTANT, "content": "2"}]
        text, ((_, end),) = self._rendered(said, tokenizer, 0)
        last = tokenizer(text[:end], add_special_tokens=False)["input_ids"][-1]
        if last == tokenizer.eos_token_id or last not in tokenizer.added_tokens_decoder:
            return {}
        return {"eos_token_id": [last] if tokenizer.eos_token_id is None else [last, tokenizer.eos_token_id]}

    def encode(
        self,
        examples: Sequence[dict[str, Any]],
        first: int,
        tokenizer: PreTrainedTokenizerFast,
        learned: Mapping[str, Any],
        sequence_length: int,
    ) -> Iterator[Row]:
        if self.template_of(tokenizer) == TEMPLATE:
            require_end(tokenizer)
        rendered = [self._rendered(turns(example, first + number), tokenizer, first + number) for number, example in enumerate(examples)]
        found = tokenizer([text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True)
        for number, (_, replies) in enumerate(rendered):
            # What is too long is cut at its end; where a reply is wanted there, at its beginning.
            part = slice(-sequence_length, None) if examples[number]["messages"][-1].get("content") == "" else slice(sequence_length)
            ids = np.array(found["input_ids"][number][part])
            begins = np.array([begin for begin, end in found["offset_mapping"][number][part]])
            inside = np.zeros(len(ids), np.bool_)
            for begin, end in replies:
                inside |= (begins >= begin) & (begins < end)
            places = np.flatnonzero(inside)
            if len(places) and places[-1]:
                # A reply that is learned follows something; the last one begins where none is just before.
                last = places[np.flatnonzero(np.diff(places, prepend=-2) > 1)[-1]]
                yield Row(first + number, (ids, (), places[places > 0], (last,)), {self.vocabulary_term: int((places > 0).sum())})

    def _rendered(
        self, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast, example: int
    ) -> tuple[str, list[tuple[int, int]]]:
        """A dialogue as a text, and where in it the assistant's replies are. What is said behind the last of them is left out."""

        def text(count: int, ask: bool) -> str:
            template = self.template_of(tokenizer)
            try:
                return str(
                    tokenizer.apply_chat_template(messages[:count], chat_template=template, tokenize=False, add_generation_prompt=ask)
                )
            except Exception as error:  # a template raises what it likes
                raise BrokenExample(
                    example, f"task.template: it cannot render the first {count} turns of example {example + 1:,}: {error}"
                ) from error

        assistants = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
        if not assistants:
            raise BrokenExample(
                example, f"data.columns.messages: example {example + 1:,} has no turn of the {ASSISTANT}, so nothing to learn; leave it out"
            )
        whole, replies = text(assistants[-1] + 1, ask=False), []
        for number in assistants:
            before, after = text(number, ask=True) if number else "", text(number + 1, ask=False)
            if not after.startswith(before) or not whole.startswith(after):
                raise BrokenExample(
                    example,
                    f"task.template: of example {example + 1:,} what it makes of the first {number + 1} turns is not how the whole "
                    "dialogue begins, so where its replies are cannot be told; give a template that renders one turn after the other",
                )
            # Blanks behind the token that ends a turn are written by nobody.
            replies.append((len(before), len(after.rstrip())))
        return whole, replies

    def asked(self, prompt: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": prompt}]}

    def unanswered(self, example: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        said = turns(example, 0)
        # What it ends with is to be written anew.
        before = said[:-1] if said[-1]["role"] == ASSISTANT else said
        return {"messages": [*before, {"role": ASSISTANT, "content": ""}]}

    def answer(self, example: Mapping[str, Any], predictions: Sequence[Any], learned: Mapping[str, Any]) -> dict[str, Any]:
        return {"reply": predictions[0]}

    def score(self, scored: Sequence[Scored], learned: Mapping[str, Any]) -> Score:
        if not self.generate:
            return Score({})
        said = [turns(one.example, 0) for one in scored]
        replies = [next(turn["content"] for turn in reversed(dialogue) if turn["role"] == ASSISTANT) for dialogue in said]
        written = [one.predictions[0] for one in scored]
        shown = [{"reply": reply, "written": text} for reply, text in zip(replies[:SHOWN], written, strict=False)]
        return Score(scores.texts([[reply] for reply in replies], written), {"examples": shown})


def turns(example: Mapping[str, Any], number: int) -> list[dict[str, str]]:
    """The turns of a dialogue by role and content. Raises ConfigError for what is none."""
    given = example["messages"]
    if not isinstance(given, list) or not given or not all(isinstance(turn, dict) for turn in given):
        raise BrokenExample(
            number, f'data.columns.messages: of example {number + 1:,}; allowed: a list of turns, {{"role": …, "content": …}} each'
        )
    found = [{_KEYS.get(key, key): value for key, value in turn.items()} for turn in given]
    for place, turn in enumerate(found):
        if not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
            raise BrokenExample(
                number,
                f"data.columns.messages: turn {place + 1} of example {number + 1:,} has {', '.join(map(repr, given[place]))}; "
                "allowed: texts under 'role' and 'content' (or 'from' and 'value')",
            )
    return [{"role": _ROLES.get(turn["role"], turn["role"]), "content": turn["content"]} for turn in found]
