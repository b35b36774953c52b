"""Examples made of the standard library: the facts are right, modules are held out whole, and what cannot be made is refused."""

from __future__ import annotations

import ast
import inspect
import json
from collections import Counter
from dataclasses import replace

import pytest

from tests.data.corpora import prepared
from trainer.choices import ConfigError
from trainer.data.modules import KINDS, Module
from trainer.data.sources import EVAL, TRAIN, Stdlib
from trainer.data.stdlib_examples import RULES, ModuleExamples, defaults, module_name, relations
from trainer.models.bert import BERT
from trainer.models.gpt2 import GPT2
from trainer.models.t5 import T5
from trainer.tasks import Field
from trainer.tasks.classification import Classification
from trainer.tasks.contrastive import Contrastive
from trainer.tasks.instruct import Instruct
from trainer.tasks.mlm_nsp import MaskedLMWithNextSentence
from trainer.tasks.relation import Relation
from trainer.tasks.seq2seq import Seq2Seq
from trainer.tasks.token_classification import TokenClassification

SOURCE = '''
import os.path as path

class Leaf(Tree):
    def grow(self, height, *, rate=1.5, name="leaf"):
        """Grow up to a height. Slowly.

        At night too."""
        self.parts.add(height, unit="m")
        return path.join(name, str(rate))  # said
'''


def test_each_token_is_what_the_tree_says() -> None:
    statements = Module("trees.leaf", SOURCE).statements
    told = [" ".join(f"{token.text}/{token.kind}" for token in statement if token.kind != "operator") for statement in statements]
    assert told == [
        "import/keyword os/import path/import as/keyword path/import",
        "class/keyword Leaf/class Tree/name",
        'def/keyword grow/function self/parameter height/parameter rate/parameter 1.5/number name/parameter "leaf"/string',
        told[3],
        'self/name parts/attribute add/call height/name unit/argument "m"/string',
        "return/keyword path/name join/call name/name str/call rate/name",
    ]
    assert told[3].startswith('"""Grow') and {token.kind for line in statements for token in line} <= set(KINDS)


def test_tokens_are_related_as_the_statement_says() -> None:
    found = [*relations(Module("trees.leaf", SOURCE), ())]
    told = {(example["label"], example["tokens"][example["head_start"]], example["tokens"][example["tail_end"]]) for example in found}
    assert {each for each in told if each[0] != "none"} == {
        ("base", "Leaf", "Tree"), ("default", "rate", "1.5"), ("default", "name", '"leaf"'), ("attribute", "parts", "self"),
        ("argument", "add", "height"), ("attribute", "join", "path"), ("argument", "join", "name"), ("argument", "str", "rate"),
    }  # fmt: skip
    assert ("none", "rate", '"leaf"') in told


def test_a_function_is_told_without_its_docstring_and_defaults_are_where_they_stand() -> None:
    (function,) = Module("trees.leaf", SOURCE).functions()
    assert function.docstring == "Grow up to a height." and "Slowly" not in function.source
    assert function.source.splitlines()[1] == '    self.parts.add(height, unit="m")'
    assert [*defaults(Module("trees.leaf", SOURCE), ())][1]["answers"]["text"] == ['"leaf"']
    assert function.defaults["height"] is None and "self" not in function.defaults


@pytest.mark.parametrize("module", [json.decoder, inspect, ast], ids=lambda module: module.__name__)
def test_defaults_are_those_that_the_interpreter_has(module) -> None:
    """By `inspect` on the very functions, where their names are unique and the default is a plain value."""
    source = inspect.getsource(module)
    functions = {name: value for name, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__}
    found = Module(module.__name__, source)
    asked, checked = [*defaults(found, ())], 0
    for example in asked:
        for text, start in zip(*example["answers"].values(), strict=True):
            assert example["context"][start : start + len(text)] == text
        name, function = example["question"].split()[-3], functions.get(example["question"].split()[-1].rstrip("?"))
        line = int(example["id"].split(":")[1])
        if function is None or inspect.unwrap(function) is not function or function.__code__.co_firstlineno != line:
            continue
        truth = inspect.signature(function).parameters[name].default
        assert (truth is inspect.Parameter.empty) == (not example["answers"]["text"])
        if example["answers"]["text"] and isinstance(truth, int | str | None):
            assert repr(truth) in (text := example["answers"]["text"][0]) or eval(text, vars(module)) == truth
            checked += 1
    assert checked > 0 and len(asked) > 4


@pytest.fixture(scope="module")
def source() -> Stdlib:
    return Stdlib(packages=["json", "html", "email", "logging"], processes=1)


def test_modules_are_held_out_whole_and_every_label_is_on_both_sides(source) -> None:
    corpus = prepared(source, task=Classification(), model=BERT())
    files = source.listing_for(Classification()).files
    sides = {split: {module_name(file) for file in files if file.split == split} for split in (TRAIN, EVAL)}
    assert sides[TRAIN] and sides[EVAL] and not sides[TRAIN] & sides[EVAL]
    found = {split: list(corpus.records(split)) for split in (TRAIN, EVAL)}
    assert {example["label"] for example in found[TRAIN]} == {example["label"] for example in found[EVAL]} == set(source.packages)
    assert all(example["label"] not in example["text"].lower().split() for examples in found.values() for example in examples)
    assert not any(line.lstrip().startswith("import ") for example in found[TRAIN] for line in example["text"].splitlines())
    counts = [Counter(example["label"] for example in found[split]) for split in (TRAIN, EVAL)]
    ((commonest, _),) = counts[0].most_common(1)
    baselines = Classification().baselines(corpus)
    assert baselines["baseline_accuracy"] == pytest.approx(counts[1][commonest] / counts[1].total())


def test_tokens_are_tagged_and_the_commonest_tag_is_a_guess(source) -> None:
    task = TokenClassification()
    corpus = prepared(replace(source, packages=["json"]), task=task, model=BERT())
    held_out = [tag for example in corpus.records(EVAL) for tag in example["tags"]]
    assert task.baselines(corpus)["baseline_accuracy"] == pytest.approx(held_out.count("operator") / len(held_out))
    assert {"keyword", "parameter", "attribute", "call"} < set(corpus.learned["labels"]) <= set(KINDS)
    assert all(16 <= len(example["tokens"]) <= 64 for example in corpus.records(TRAIN))


@pytest.mark.parametrize("fields", RULES, ids=sorted)
def test_every_rule_makes_what_its_task_reads(source, fields) -> None:
    listed = [file for file in source.listing_for(Classification()).files if "email" in file.path]
    layout = source.examples(listed, {name: Field((name,)) for name in fields})
    assert isinstance(layout, ModuleExamples)
    found = [
        text
        for number, file in enumerate(listed)
        for segment in layout.segments(number, file, 1)
        for text in layout.documents(segment).texts
    ]
    assert len(found) > 20 and all(set(json.loads(text)) == fields for text in found)


def test_b14_fields_that_no_rule_makes_are_refused_with_those_that_are_made(source) -> None:
    with pytest.raises(ConfigError, match=r"data=stdlib: no rule makes examples with price .*; it makes those with .*label, text"):
        source.examples([], {"price": Field(("price",))})
    with pytest.raises(ConfigError, match=r"data\.packages: 'jsn' is no package .*did you mean 'json'\?"):
        Stdlib(packages=["jsn"]).listing()
    assert {file.split for file in source.listing_for(MaskedLMWithNextSentence()).files} == {TRAIN, EVAL}, "text: whole packages"


@pytest.mark.parametrize(
    ("task", "model"), [(Seq2Seq(generate=False), T5()), (Instruct(), GPT2()), (Relation(), GPT2()), (Contrastive(), BERT())]
)
def test_other_tasks_are_prepared_too(source, task, model) -> None:
    corpus = prepared(replace(source, packages=["json", "html"]), task=task, model=model, sequence_length=192)
    assert len(corpus.split("train").rows) > 10 and len(corpus.split("eval").rows) > 1
