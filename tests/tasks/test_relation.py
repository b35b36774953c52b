"""Relations of two entities: where they are told, the marks around them, figures without the label of none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from tests import loops
from tests.tasks.test_classification import NOUNS, ready
from trainer import predicting
from trainer.choices import ConfigError
from trainer.data.corpus import open_corpus
from trainer.data.tokenizer_files import load_tokenizer
from trainer.run import RunDir
from trainer.tasks.entities import fitted, inline, located, marked
from trainer.tasks.relation import Relation

MARKS = ("@", "#", "*", "^")
GIVEN = ("task=relation", "model=gpt2_tiny", "global_batch=16", "optim.lr=5e-3", "tokenizer.vocab_size=400")


def sentences(count: int) -> list[dict[str, Any]]:
    """A fruit is eaten by an animal, or cut by a tool, or beside another."""
    draw, found = np.random.default_rng(0), []
    for number in range(count):
        words = draw.choice(["the", "old", "red"], draw.integers(4, 12)).tolist()
        pair = [str(draw.choice(NOUNS[kind])) for kind in (("animal", "fruit"), ("tool", "fruit"), ("fruit", "fruit"))[number % 3]]
        first, second = sorted(draw.choice(len(words) + 1, 2, replace=False).tolist())
        head, tail = (first, second + 1) if draw.integers(2) else (second + 1, first)
        words.insert(min(head, tail), pair[0] if head < tail else pair[1])
        words.insert(max(head, tail), pair[1] if head < tail else pair[0])
        label = ("eats", "cuts", "no_relation")[number % 3]
        found.append({"token": words, "subj_start": head, "subj_end": head, "obj_start": tail, "obj_end": tail, "relation": label})
    return found


def test_figures_leave_out_the_label_of_none_and_predict_needs_no_label(tmp_path, monkeypatch, capsys):
    from trainer.cli import main

    examples = sentences(360)
    path = ready(tmp_path, examples[:300], examples[300:], *GIVEN, "steps=30", "data.columns.label=relation")
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    summary = RunDir(path).summary
    losses = loops.losses(path)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    asked = [{key: value for key, value in example.items() if key != "relation"} for example in examples[300:]]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(example) + "\n" for example in asked))
    assert main(["predict", f"run={path}", f"input={tmp_path / 'new.jsonl'}", f"output={tmp_path / 'out.jsonl'}"]) == 0
    said = [json.loads(line)["predicted_label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(example) + "\n" for example in [*asked[:7], asked[7] | {"obj_end": 99}]))
    monkeypatch.setattr(predicting, "_AT_ONCE", 3)
    assert main(["predict", f"run={path}", f"input={tmp_path / 'new.jsonl'}", f"output={tmp_path / 'out.jsonl'}"]) == 1
    assert f"99 of example 8 ({tmp_path}/new.jsonl:8) is not within" in " ".join(capsys.readouterr().err.split())
    truth = [example["relation"] for example in examples[300:]]
    counted = ["eats", "cuts"]
    assert summary["f1_micro"] == pytest.approx(metrics.f1_score(truth, said, labels=counted, average="micro"))
    assert 'tokenizer("@ Ann @ was born in # Rome #."' in (path / "model" / "README.md").read_text()
    assert summary["precision_micro"] == pytest.approx(metrics.precision_score(truth, said, labels=counted, average="micro"))


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (
            {"tokens": ["Bill", "G.", "was", "born", "in", "Seattle"], "head_start": 0, "head_end": 1, "head_type": "PERSON",
             "tail_start": 5, "tail_end": 5, "tail_type": "STATE_OR_CITY"},
            "@ * person * Bill G. @ was born in # ^ state or city ^ Seattle #",
        ),
        ({"text": "the <e1>child</e1> in a <e2>cradle</e2>."}, "the @ child @ in a # cradle # ."),
        ({"text": "a <e2>b</e2> <e1>c</e1>"}, "a # b # @ c @"),
        ({"text": "in (Rome), Ann", "head": {"pos": [11, 14]}, "tail": {"start": 4, "end": 8}}, "in ( # Rome # ), @ Ann @"),
        ({"text": "Bank of Rome", "head": [0, 12], "tail": [8, 12]}, "@ Bank of # Rome # @"),
        ({"text": "Rome Bank", "head": [0, 4], "tail": [0, 9]}, "# @ Rome @ Bank #"),
        ({"text": "北京大學在北京", "head": [0, 4], "tail": ["5", "7"]}, "@ 北京大學 @ 在 # 北京 #"),
    ],
)  # fmt: skip
def test_marks_stand_around_entities_however_they_are_told(example, expected):
    found = marked(example, 0, MARKS, last_included=True)
    assert found.text == expected
    assert found.text[found.begin] in "@#" and found.text[found.end - 1] in "@#"
    text, places = located(example, 0, last_included=True)
    assert located({"text": inline(text, places)}, 0, last_included=True) == (text, places)


def test_b05_entities_that_are_not_there_name_the_example(tmp_path):
    good = sentences(12)
    for wrong, said in (
        ({"tokens": ["a"], "head": [0, 2], "tail": [0, 1]}, r"data\.columns\.head: 0 to 2 of example 3 is not within its 1 tokens"),
        ({"tokens": ["a"], "head": [0, 1], "tail_start": 0, "tail_end": 1}, r"tail: 0 to 1 .*task\.last_included=true"),
        ({"text": "a b", "head": "a", "tail": [0, 1]}, r"head: 'a' of example 3; allowed: \[begin, end\]"),
        ({"text": "a b", "head": [1, 1], "tail": [0, 1]}, r"head: 1 to 1 of example 3"),
        ({"text": "<e1>a</e1> b"}, r"text: .*example 3; allowed: one <e1>"),
        ({"head": [0, 1]}, r"text: nothing in example 3"),
    ):
        with pytest.raises(ConfigError, match=said):
            marked(wrong, 2, MARKS, last_included=True)
    with pytest.raises(ConfigError, match=r"task\.no_relation: 'x' is none of the labels: cuts, eats, no_relation"):
        ready(tmp_path, good, good, *GIVEN, "task.no_relation=x")
    with pytest.raises(ConfigError, match=r"task\.marks: the tokenizer has no token for '@'.*tokenizer\.kind=bpe"):
        ready(tmp_path, good, good, "task=relation")
    with pytest.raises(ConfigError, match=r"task\.problem: multi_label; allowed: single_label"):
        ready(tmp_path, good, good, "task=relation", "task.problem=multi_label")
    with pytest.raises(ConfigError, match=r"task\.marks: .*four different"):
        ready(tmp_path, good, good, "task=relation", "task.marks=[a,b]")


@pytest.mark.parametrize("column", ["token", "text"])
def test_relations_in_one_sentence_are_on_one_side(tmp_path, column):
    """Of a file that is parted by us."""
    draw, file = np.random.default_rng(0), tmp_path / "all.jsonl"
    lines = []
    for number in range(240):
        # Of each sentence six, some of them told twice.
        sentence = f"w{number // 6} of red apples"
        words = sentence.split() if column == "token" else sentence
        spans = draw.permutation(3)[:2].tolist()
        lines.append({column: words, "head": [spans[0], spans[0] + 1], "tail": [spans[1], spans[1] + 1], "relation": "ab"[number % 2]})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = loops.ready(tmp_path, tmp_path, "data=jsonl", f"data.path={file}", *GIVEN, *loops.GPT, "steps=1", sizes=())
    corpus = open_corpus(*(RunDir(path).placement[key] for key in ("corpus", "rows")))
    train, held_out = ({str(one.get("tokens") or one["text"]) for one in corpus.records(split)} for split in ("train", "eval"))
    assert train and held_out and not train & held_out


def test_both_entities_are_kept_of_sentences_longer_than_a_row(tmp_path):
    good = sentences(12)
    path = ready(tmp_path, good, good, *GIVEN, "steps=1")
    tokenizer = load_tokenizer(open_corpus(*(RunDir(path).placement[key] for key in ("corpus", "rows"))).tokenizer_path)
    for gap in (0, 3, 40):
        words = [f"cat{number}" for number in range(30)] + ["HEAD"] + ["the"] * gap + ["TAIL"] + [f"dog{number}" for number in range(30)]
        example = {"tokens": words, "head": [30, 31], "tail": [31 + gap, 32 + gap]}
        (text,) = fitted([marked(example, 0, MARKS, last_included=True)], tokenizer, 24)
        assert len(tokenizer(text)["input_ids"]) <= 24
        assert "@ HEAD @" in text and "# TAIL #" in text and text in " ".join(text.split())
    assert Relation().marks == list(MARKS)
