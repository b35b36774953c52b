"""A few examples of each class: which they are, that the held-out part stays whole, and means over several draws."""

from __future__ import annotations

import random
import re
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import loops
from tests.tasks.test_classification import ready, sentences
from trainer.choices import ConfigError
from trainer.cli import main
from trainer.data.corpus import open_corpus
from trainer.run import RunDir
from trainer.tasks.classification import Classification
from trainer.tasks.few_shot import drawn

LEARNED = {"problem": "single_label"}


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(1, 4), st.integers(0, 3), st.randoms())
def test_as_many_of_each_class_whatever_their_order(labels: list[str], shots: int, draw: int, shuffle: random.Random) -> None:
    examples = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    if min(Counter(labels).values()) < shots:
        with pytest.raises(ConfigError, match=rf"data\.shots: {shots}; there are \d+ training examples of '[abc]'; allowed: up to \d"):
            drawn(Classification(), examples, shots, draw, LEARNED)
        return
    found = [examples[number] for number in drawn(Classification(), examples, shots, draw, LEARNED)]
    assert Counter(example["label"] for example in found) == dict.fromkeys(labels, shots)
    mixed = shuffle.sample(examples, len(examples))
    again = [mixed[number] for number in drawn(Classification(), mixed, shots, draw, LEARNED)]
    assert sorted(map(str, again)) == sorted(map(str, found))


def test_other_draws_are_other_examples_and_figures_are_averaged_over_them(tmp_path, capsys) -> None:
    examples = sentences(90)
    figures, chosen = [], []
    for draw in range(3):
        words = ("data.shots=4", f"data.draw={draw}", "steps=3", "optim.lr=3e-3", "name=few")
        path = ready(tmp_path, examples[:60], examples[60:], *words, name=f"runs/{draw}")
        corpus = open_corpus(*(RunDir(path).placement[key] for key in ("corpus", "rows")))
        rows = {split: corpus.split(split).rows for split in ("train", "eval")}
        assert len(rows["train"]) == 12 and len(rows["eval"]) == 30, "the held-out part is whole"
        chosen.append({int(rows["train"].pieces(row)[0, 1]) for row in range(12)})
        assert Counter(corpus.records("train")[number]["label"] for number in chosen[-1]) == dict.fromkeys(("fruit", "tool", "animal"), 4)
        here = loops.training(loops.single(), path)
        here.loop()
        here.finish()
        figures.append(RunDir(path).summary)
    assert "12 of 60 training examples are drawn" in capsys.readouterr().out and len(set(map(frozenset, chosen))) == 3
    assert main(["runs", "spread", f"root={tmp_path / 'runs'}"]) == 0
    told = capsys.readouterr().out.splitlines()
    cells = dict(zip(told[1].split(), re.split(r"  +", told[2]), strict=True))
    losses = [each["eval_loss"] for each in figures]
    assert cells["runs"] == "3" and cells["eval_loss"] == f"{statistics.fmean(losses):.3f} ± {statistics.stdev(losses):.4f}"
    assert {"accuracy", "f1_macro"} <= set(cells)


def test_what_cannot_be_drawn_is_refused(tmp_path) -> None:
    examples = sentences(12)
    for words, said in (
        (["data.shots=5"], r"data\.shots: 5; there are 4 training examples of 'animal'; allowed: up to 4"),
        (["data.draw=1"], r"data\.draw: 1 without data\.shots"),
        (["data.shots=0"], r"data\.shots: 0; allowed: 1 or more"),
        (["data.shots=2", "task.class_weights=balanced"], r"task\.class_weights: balanced with data\.shots"),
    ):
        with pytest.raises(ConfigError, match=said):
            ready(tmp_path, examples, examples[:2], *words)
    with pytest.raises(ConfigError, match=r"data\.shots: 2 with task=clm, which learns from text"):
        loops.composed(tmp_path, tmp_path, "data.shots=2")
