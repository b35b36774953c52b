"""Examples with labels, made of the standard library's own modules by exact rules: every task has data without a download.

What is asked and what is true is read off the syntax tree and the tokens, so no label is a guess. Modules are held out as a whole: what a
model is scored on is code of files that it has never seen.
"""

from __future__ import annotations

import json
import os
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from trainer.choices import ConfigError
from trainer.data import stdlib
from trainer.data.modules import Function, Module, Place, Token
from trainer.data.records import Records, as_line
from trainer.data.segments import Cut, Segment
from trainer.data.sources import EVAL, TRAIN, SourceFile

if TYPE_CHECKING:
    from trainer.tasks import Field

Example = dict[str, Any]
T = TypeVar("T")

# Raise it when a rule makes other examples of the same module.
EDITION = 1
NOT_PARSED = "modules that do not parse"
# Lines of a passage; bytes that a package holds at least, in training and held out, to be a label.
_PASSAGE = 8
_LABELLED = {TRAIN: 30_000, EVAL: 2_000}
# Tokens of an example of tagging: statements are added until it has so many; a longer one, or one with a longer token, is passed over.
_LEAST, _MOST, _LONGEST_TOKEN = 16, 64, 40
# Examples of one module, where one has very many; questions on one function that have an answer.
_OF_A_MODULE, _OF_A_FUNCTION = 40, 3
# Words of a docstring, lines of a function, that are worth a summary.
_WORDS, _LINES = 3, 3


def passages(module: Module, labels: Sequence[str]) -> Iterator[Example]:
    """Which package some lines come from. Blank lines, imports and lines that name the package are taken out first."""
    if module.package not in labels:
        return
    telling = re.compile(rf"^\s*(import|from)\s|(?<![A-Za-z])(?i:{re.escape(module.package)})(?![A-Za-z])")
    lines = [line.rstrip() for line in module.lines if line.strip() and not telling.search(line)]
    for start in range(0, len(lines) - _PASSAGE + 1, _PASSAGE):
        yield {"text": "\n".join(lines[start : start + _PASSAGE]), "label": module.package}


def kinds(module: Module, labels: Sequence[str]) -> Iterator[Example]:
    """What each token of some consecutive statements is: keyword, function, parameter, attribute, call …"""
    for tokens in evenly(list(_stretches(module.statements)), _OF_A_MODULE):
        yield {"tokens": [token.text for token in tokens], "tags": [token.kind for token in tokens]}


def _stretches(statements: Iterable[list[Token]]) -> Iterator[list[Token]]:
    held: list[Token] = []
    for statement in statements:
        if any(len(token.text) > _LONGEST_TOKEN for token in statement) or len(held) + len(statement) > _MOST:
            held = []
            continue
        held = [*held, *statement]
        if len(held) >= _LEAST:
            yield held
            held = []


def relations(module: Module, labels: Sequence[str]) -> Iterator[Example]:
    """How two marked tokens of a statement are related: base, attribute, argument, default, or in none of these ways."""
    found: list[Example] = []
    for statement in module.statements:
        if len(statement) > _MOST or any(len(token.text) > _LONGEST_TOKEN for token in statement):
            continue
        known = dict(related(statement))
        tails = [tail for _, tail in known]
        apart = [(head, tail) for head, _ in known for tail in tails if head != tail and (head, tail) not in known]
        for head, tail in [*known, *apart[:1]]:
            places = {"head_start": head, "head_end": head, "tail_start": tail, "tail_end": tail}
            label = known.get((head, tail), "none")
            found.append({"tokens": [token.text for token in statement], **places, "label": label})
    yield from evenly(found, _OF_A_MODULE)


def related(statement: Sequence[Token]) -> Iterator[tuple[tuple[int, int], str]]:
    """Pairs of tokens of a statement, by their numbers, and how the second belongs to the first."""
    for number, (first, sign, second) in enumerate(zip(statement, statement[1:], statement[2:], strict=False)):
        follows = statement[number + 3].text if number + 3 < len(statement) else ""
        ends = follows in (",", ")")
        if first.kind == "class" and sign.text == "(" and second.kind == "name" and ends:
            yield (number, number + 2), "base"
        elif first.kind == "name" and sign.text == "." and second.kind in ("attribute", "call"):
            yield (number + 2, number), "attribute"
        elif first.kind == "call" and sign.text == "(" and second.kind == "name" and ends:
            yield (number, number + 2), "argument"
        elif first.kind == "parameter" and sign.text == "=" and ends:
            yield (number, number + 2), "default"


def evenly(items: Sequence[T], count: int) -> Iterator[T]:
    """At most so many of them, at even distances."""
    return (items[number * len(items) // count] for number in range(count)) if len(items) > count else iter(items)


def defaults(module: Module, labels: Sequence[str]) -> Iterator[Example]:
    """What the default of a function's parameter is, and of one that has none: the span in the function's source."""
    for function in module.functions():
        for name, place in answers(function).items():
            start, text = place or (None, None)
            yield {
                "id": f"{module.name}:{function.line}:{name}",
                "question": f"What is the default of {name} in {function.name}?",
                "context": function.source,
                "answers": {"text": [text], "answer_start": [start]} if place else {"text": [], "answer_start": []},
            }


def answers(function: Function) -> dict[str, Place]:
    """Some parameters with their defaults and one that has none, of a function that has defaults. Long ones are passed over."""
    given = {name: place for name, place in function.defaults.items() if place and 0 < len(place[1]) <= _LONGEST_TOKEN}
    without = [name for name, place in function.defaults.items() if place is None]
    return dict(list(given.items())[:_OF_A_FUNCTION]) | dict.fromkeys(without[:1]) if given else {}


def summaries(module: Module, labels: Sequence[str]) -> Iterator[Example]:
    """The first sentence of a function's docstring, of its source without it."""
    for function in documented(module):
        yield {"source": function.source, "target": function.docstring}


def pairs(module: Module, labels: Sequence[str]) -> Iterator[Example]:
    """The first sentence of a function's docstring, and the source that it belongs to."""
    for function in documented(module):
        yield {"anchor": function.docstring, "positive": function.source}


def documented(module: Module) -> Iterator[Function]:
    """Functions with a sentence that says what they do, and code that does it; each sentence of a module once."""
    seen = set()
    for function in module.functions():
        words, lines = function.docstring.split(), function.source.count("\n") + 1
        if len(words) >= _WORDS and lines >= _LINES and function.docstring not in seen:
            seen.add(function.docstring)
            yield function


def conversations(module: Module, labels: Sequence[str]) -> Iterator[Example]:
    """The same facts, asked for and told: what a function does, then what its defaults are; which package lines come from."""
    for function in module.functions():
        known = answers(function)
        turns = [f"What is the default of {name}?" for name in known]
        told = [f"`{place[1]}`" if place else f"{name} has no default." for name, place in known.items()]
        if len(function.docstring.split()) >= _WORDS and function.source.count("\n") + 1 >= _LINES:
            turns, told = ["What does this function do?", *turns], [function.docstring, *told]
        if turns:
            turns[0] += f"\n\n{function.source}"
            yield {"messages": list(_said(turns, told))}
    for passage in evenly(list(passages(module, labels)), _OF_A_MODULE // 4):
        asked = f"Which package of Python's standard library is this from?\n\n{passage['text']}"
        yield {"messages": list(_said([asked], [passage["label"]]))}


def _said(turns: Sequence[str], told: Sequence[str]) -> Iterator[dict[str, str]]:
    for question, answer in zip(turns, told, strict=True):
        yield {"role": "user", "content": question}
        yield {"role": "assistant", "content": answer}


Rule = Callable[[Module, Sequence[str]], Iterator[Example]]
# By the fields that a task cannot do without.
RULES: dict[frozenset[str], Rule] = {
    frozenset({"text", "label"}): passages,
    frozenset({"tokens", "tags"}): kinds,
    frozenset({"question", "context", "answers"}): defaults,
    frozenset({"source", "target"}): summaries,
    frozenset({"anchor", "positive"}): pairs,
    frozenset({"label"}): relations,
    frozenset({"messages"}): conversations,
}


@dataclass(frozen=True)
class ModuleExamples(Records):
    """Examples of modules: a segment is one module, and what is made of it is made by whoever works on it.

    rule: of RULES, by its name. labels: the packages that are told apart. edition: of the rules.
    """

    kind: ClassVar[str] = "modules"
    rule: str = ""
    labels: tuple[str, ...] = ()
    edition: int = EDITION

    def segments(self, number: int, file: SourceFile, unit_bytes: int) -> Iterator[Segment]:
        with tokenize.open(file.path) as stream:
            line = as_line([module_name(file), stream.read()])
        yield Segment(number, 0, 1, line, size=os.path.getsize(file.path))

    def documents(self, segment: Segment) -> Cut:
        cut = Cut()
        try:
            module = Module(*json.loads(segment.text))
        except SyntaxError:
            cut.dropped[NOT_PARSED] = 1
            return cut
        rule = next(rule for rule in RULES.values() if rule.__name__ == self.rule)
        for example in rule(module, self.labels):
            cut.texts.append(self._example([example.get(field) for field in self.fields]).encode())
        return cut


def module_name(file: SourceFile) -> str:
    """`json.decoder`, also of a package itself."""
    return ".".join(Path(file.path).relative_to(stdlib.root()).with_suffix("").parts).removesuffix(".__init__")


def examples(files: Sequence[SourceFile], fields: Mapping[str, Field]) -> ModuleExamples:
    """The examples of a task. files: the modules. Raises ConfigError where no rule makes the fields that it reads."""
    required = [name for name, field in fields.items() if not field.optional]
    rule = RULES.get(frozenset(required))
    if rule is None:
        known = "; ".join(sorted(", ".join(sorted(names)) for names in RULES))
        raise ConfigError(
            f"data=stdlib: no rule makes examples with {', '.join(required)} of the standard library; it makes those with {known}. "
            "Give examples of your own: data=jsonl data.path=…"
        )
    return ModuleExamples(tuple(fields), tuple(fields), tuple(required), rule=rule.__name__, labels=labels_of(files))


def labels_of(files: Sequence[SourceFile]) -> tuple[str, ...]:
    """The packages that hold code enough on both sides."""
    sizes: dict[str, Counter[str]] = {TRAIN: Counter(), EVAL: Counter()}
    for file in files:
        sizes[file.split or TRAIN][module_name(file).split(".")[0]] += os.path.getsize(file.path)
    return tuple(sorted(name for name in sizes[TRAIN] if all(sizes[split][name] >= least for split, least in _LABELLED.items())))
