"""Two entities of a sentence: where they are, and the sentence with marks around them (Zhou & Chen 2021, "punct" markers).

@ * person * Bill @ was born in # ^ city ^ Seattle #
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from trainer.tasks import BrokenExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HEAD, TAIL = "head", "tail"
# SemEval 2010 task 8 has the entities in the text itself.
_INLINE = re.compile(r"</?e[12]>")
_NEEDED = ("<e1>", "</e1>", "<e2>", "</e2>")

Place = tuple[int, int]


@dataclass(frozen=True)
class Marked:
    """A sentence with its marks. begin, end: characters from the first mark to the last."""

    text: str
    begin: int
    end: int


def marked(example: Mapping[str, Any], number: int, marks: Sequence[str], last_included: bool) -> Marked:
    """marks: around the head, the tail, the type of the head and that of the tail. last_included: whether `head_end` and `tail_end` are of
    the last token. Raises ConfigError naming the example where an entity is not in it."""
    text, places = located(example, number, last_included)
    insertions: list[tuple[tuple[int, int, int], str]] = []
    for (begin, end), entity, mark, around in zip(places, (HEAD, TAIL), marks[:2], marks[2:], strict=True):
        kind = example.get(f"{entity}_type")
        told = "" if kind is None else f"{around} {str(kind).replace('_', ' ').lower()} {around} "
        # At one place: what ends before what begins, the outer one outside.
        insertions.append(((begin, 1, -end), f"{mark} {told}"))
        insertions.append(((end, 0, -begin), f" {mark}"))
    found, done = "", 0
    begin = end = -1
    for (place, opens, _), inserted in sorted(insertions):
        found += text[done:place]
        done = place
        found += " " if opens and found and not found[-1].isspace() else ""
        begin = len(found) if begin < 0 else begin
        found += inserted
        end = len(found)
        found += " " if not opens and place < len(text) and not text[place].isspace() else ""
    return Marked(found + text[done:], begin, end)


def inline(text: str, places: Sequence[Place]) -> str:
    """A text with its head and its tail marked as SemEval has them."""
    marks = zip((place for span in places for place in span), _NEEDED, strict=True)
    # From the end; at one place what closes is put in front of what opens.
    for place, _, mark in sorted(((place, not mark.startswith("</"), mark) for place, mark in marks), reverse=True):
        text = text[:place] + mark + text[place:]
    return text


def located(example: Mapping[str, Any], number: int, last_included: bool) -> tuple[str, list[Place]]:
    """The text of an example, and the characters of its head and its tail. Raises ConfigError where they are not in it."""
    text, tokens = example.get("text"), example.get("tokens")
    if tokens is not None:
        if not isinstance(tokens, list):
            raise BrokenExample(number, f"data.columns.tokens: {tokens!r:.80} of example {number + 1:,}; allowed: a list of words")
        words = [str(token) for token in tokens]
        starts = list(accumulate((len(word) + 1 for word in words), initial=0))
        spans = [_span(example, entity, len(words), "tokens", number, last_included) for entity in (HEAD, TAIL)]
        return " ".join(words), [(starts[begin], starts[end] - 1) for begin, end in spans]
    if not isinstance(text, str):
        raise BrokenExample(
            number, f"data.columns.text: nothing in example {number + 1:,}; give its text, or its tokens (data.columns.tokens)"
        )
    if _INLINE.search(text) and "head" not in example and "head_start" not in example:
        return _inline(text, number)
    return text, [_span(example, entity, len(text), "characters", number, last_included) for entity in (HEAD, TAIL)]


def _inline(text: str, number: int) -> tuple[str, list[Place]]:
    places: dict[str, int] = {}
    plain, done = "", 0
    for match in _INLINE.finditer(text):
        plain += text[done : match.start()]
        done = match.end()
        places.setdefault(match.group(), len(plain))
    missing = next((mark for mark in _NEEDED if text.count(mark) != 1), None)
    if missing is not None or any(places[mark] >= places[mark.replace("<", "</")] for mark in ("<e1>", "<e2>")):
        raise BrokenExample(
            number,
            f"data.columns.text: {text!r:.80} of example {number + 1:,}; allowed: one <e1>head</e1> and one <e2>tail</e2>, or "
            "data.columns.head and data.columns.tail beside a text without such marks",
        )
    return plain + text[done:], [(places["<e1>"], places["</e1>"]), (places["<e2>"], places["</e2>"])]


def _span(example: Mapping[str, Any], entity: str, size: int, units: str, number: int, last_included: bool) -> Place:
    """Where an entity begins, and where it has ended, in tokens or characters."""
    given = example.get(entity)
    if isinstance(given, dict):
        given = given.get("pos", [given.get("start"), given.get("end")])
    if given is None:
        given = [example.get(f"{entity}_start"), example.get(f"{entity}_end")]
    else:
        last_included = False
    try:
        begin, end = map(int, given)
    except (TypeError, ValueError) as error:
        raise BrokenExample(
            number,
            f"data.columns.{entity}: {given!r:.80} of example {number + 1:,}; allowed: [begin, end], the end not included, in {units}, or "
            f"data.columns.{entity}_start and data.columns.{entity}_end",
        ) from error
    end += last_included
    if not 0 <= begin < end <= size:
        raise BrokenExample(
            number,
            f"data.columns.{entity}: {begin} to {end - last_included} of example {number + 1:,} is not within its {size} {units}; counted "
            f"from 0, and the end {'is the last one of the entity (task.last_included=true)' if last_included else 'is the one after it'}",
        )
    return begin, end


def fitted(sentences: Sequence[Marked], tokenizer: PreTrainedTokenizerFast, room: int) -> list[str]:
    """The texts, of those with more than `room` tokens what is around the marks; of entities too far apart what is beside each."""
    found = tokenizer([one.text for one in sentences], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [_cut(one, offsets, tokenizer, room) if len(offsets) > room else one.text for one, offsets in zip(sentences, found, strict=True)]


def _cut(one: Marked, offsets: Sequence[Place], tokenizer: PreTrainedTokenizerFast, room: int) -> str:
    first = next(number for number, (_, end) in enumerate(offsets) if end > one.begin)
    last = max(number for number, (begin, _) in enumerate(offsets) if begin < one.end)
    # What is left may be written in other tokens, hence in more of them.
    for size in range(room, 1, -1):
        if last - first < size:
            start = min(max(0, first - (size - 1 - last + first) // 2), len(offsets) - size)
            text = one.text[offsets[start][0] : offsets[start + size - 1][1]]
        else:
            half = size // 2
            left, right = one.text[: offsets[first + half - 1][1]], one.text[offsets[last - half + 1][0] :]
            text = f"{left[offsets[first][0] :].strip()} {right[: offsets[last][1] - offsets[last - half + 1][0]].strip()}"
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= room:
            return text.strip()
    return one.text
