"""Classification through the real loop: labels and problems, figures, the same at any number of processes, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from tests import loops
from tests.distributed import run_distributed
from trainer.choices import ConfigError
from trainer.data.corpus import open_corpus
from trainer.distributed import World
from trainer.run import RunDir, load_frozen
from trainer.tasks import scores

TINY = ("task=classification", "model=bert_tiny", "model.layers=1", "model.hidden=32", "model.heads=2", "tokenizer.vocab_size=300")
NOUNS = {"fruit": ("apple", "pear", "plum"), "tool": ("hammer", "saw", "drill"), "animal": ("cat", "dog", "cow")}


def sentences(count: int) -> list[dict[str, Any]]:
    """Which kind of noun is in a sentence, of quite different lengths."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        label = list(NOUNS)[number % len(NOUNS)]
        words = [*draw.choice(["the", "a", "red", "old", "big"], draw.integers(1, 12)), draw.choice(NOUNS[label]), f"n{number}"]
        found.append({"text": " ".join(words), "label": label})
    return found


def write(path: Path, examples: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return path


Examples = list[dict[str, Any]]


def ready(
    folder: Path, train: list[dict[str, Any]], held_out: list[dict[str, Any]], *words: str, name: str = "run", world: int = 1
) -> Path:
    files = write(folder / "train.jsonl", train), write(folder / "eval.jsonl", held_out)
    data = ("data=jsonl", f"data.train={files[0]}", f"data.eval={files[1]}")
    return loops.ready(folder, folder, *TINY, *data, *words, name=name, world=world, sizes=())


def evaluated(world: World, path: str) -> dict[str, Any]:
    """Train to the end and evaluate. Returns the figures, and the losses before and after an evaluation of one batch."""
    here = loops.training(world, path)
    here.loop()
    (held_out,) = here.held_outs
    figures = held_out.figures(world.device)
    return {"figures": figures, "training": here.placement.module.training, "tables": held_out.tables}


@pytest.mark.parametrize("count", [1, 5])
def test_c04_c05_every_example_is_scored_once_on_any_number_of_ranks(tmp_path, count):
    """Also where there are fewer examples than ranks, and where counts are ragged."""
    examples = sentences(24 + count)
    alone = evaluated(loops.single(), str(ready(tmp_path, examples[:24], examples[24:], "steps=2", name="one")))
    path = ready(tmp_path, examples[:24], examples[24:], "steps=2", name="three", world=3)
    for rank in run_distributed(evaluated, 3, str(path)):
        assert rank["training"], "C19: the mode is restored"
        assert rank["figures"] == pytest.approx(alone["figures"], rel=1e-4, abs=1e-5)
    assert np.sum(alone["tables"][""]["confusion"]["counts"]) == count


def test_c12_the_same_curve_on_two_ranks_and_a_model_that_learns(tmp_path):
    examples = sentences(200)
    # A decoder: its head reads the last token of each text.
    words = ("model=gpt2_tiny", "steps=40", "global_batch=16", "optim.lr=3e-3", "task.label_smoothing=0.1", "task.class_weights=balanced")
    best = (
        "eval_every=4",
        "save_every=4",
        "checkpoint.keep=1",
        "checkpoint.best=eval_f1_macro",
        "checkpoint.mode=min",
        "checkpoint.end=best",
    )
    one = ready(tmp_path, examples[:150], examples[150:], *words, *best, name="one")
    here = loops.training(loops.single(), one)
    here.loop()
    here.finish()
    assert loops.lines(one, "eval_accuracy")[-1]["eval_accuracy"] > 0.6
    check_least(one, "f1_macro")
    two = ready(tmp_path, examples[:150], examples[150:], *words, "micro_batch=3", name="two", world=2)
    run_distributed(loops.train, 2, str(two))
    assert loops.losses(two) == pytest.approx(loops.losses(one), rel=1e-4)


def check_least(path: Path, figure: str) -> None:
    """The end is the checkpoint whose figure was least, of equal ones the newest, and every other figure is of it too. Of a model that
    learns the least one is surely not the last."""
    lines = {line["step"]: line for line in loops.lines(path, f"eval_{figure}")}
    best = min(lines, key=lambda step: (lines[step][f"eval_{figure}"], -step))
    summary = RunDir(path).summary
    assert summary["model_step"] == best < max(lines)
    assert {key: summary[key] for key in (figure, "accuracy")} == {key: lines[best][f"eval_{key}"] for key in (figure, "accuracy")}
    assert summary["eval_loss"] == pytest.approx(lines[best]["eval_loss"], rel=1e-6)
    assert {each.name for each in (path / "checkpoints").glob("step-*")} == {f"step-{step:07d}" for step in (best, max(lines))}


@pytest.mark.parametrize(
    ("label", "problem", "figures"),
    [
        (lambda number: number % 2, "single_label", {"accuracy", "f1", "f1_macro", "f1_weighted", "mcc"}),
        (lambda number: (number % 5) / 4, "regression", {"mse", "mae", "pearson", "spearman"}),
        (lambda number: ["b", "c"][: number % 3], "multi_label", {"accuracy", "f1_micro", "f1_macro", "f1_weighted"}),
    ],
)
def test_what_a_label_is_decides_the_problem(tmp_path, label, problem, figures):
    examples = [{**example, "label": label(number), "other": f"pair {number}"} for number, example in enumerate(sentences(30))]
    path = ready(tmp_path, examples[:24], examples[24:], "steps=2", "data.columns.pair=other")
    found = evaluated(loops.single(), str(path))["figures"]
    assert set(found) == figures | {"eval_loss"} and all(np.isfinite(list(found.values())))
    corpus = open_corpus(*(RunDir(path).placement[key] for key in ("corpus", "rows")))
    assert corpus.learned["problem"] == problem
    assert len(corpus.records("train")) == 24, "an example without any of several labels is one too"
    assert corpus.split("train").rows.lengths[0] > 0
    assert any(len(load_frozen(path / "config.yaml").task.row(corpus.split("train"), row)["token_type_ids"]) for row in range(24)), "pairs"


def test_the_loss_and_the_figures_are_those_of_transformers_and_scikit_learn(tmp_path):
    """`model/` in plain transformers, padded: the same logits, hence the same figures."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from trainer.trainer import Outcome

    examples = sentences(60)
    path = ready(tmp_path, examples[:40], examples[40:], "steps=3")
    here = loops.training(loops.single(), path)
    assert here.loop() is Outcome.finished
    here.finish()
    model = AutoModelForSequenceClassification.from_pretrained(path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    assert model.config.id2label == {0: "animal", 1: "fruit", 2: "tool"}
    truth = torch.tensor([model.config.label2id[example["label"]] for example in examples[40:]])
    with torch.no_grad():
        done = model(**tokenizer([example["text"] for example in examples[40:]], padding=True, return_tensors="pt"), labels=truth)
    predicted = done.logits.argmax(-1).numpy()
    summary = RunDir(path).summary
    assert summary["eval_loss"] == pytest.approx(float(done.loss), rel=1e-4)
    assert summary["accuracy"] == metrics.accuracy_score(truth, predicted)
    assert summary["f1_macro"] == metrics.f1_score(truth, predicted, average="macro")
    tables = json.loads((path / "evaluation" / "held_out.json").read_text())
    assert tables["confusion"]["counts"] == metrics.confusion_matrix(truth, predicted, labels=range(3)).tolist()
    check_predictions(path, tmp_path, examples[40:], [model.config.id2label[number] for number in predicted.tolist()])


def test_means_over_labels_are_of_those_that_occur():
    """As scikit-learn has them by default; a label that is neither held out nor predicted has no score to be 0."""
    truth, predicted = np.array([0, 0, 1, 3, 3]), np.array([0, 1, 1, 3, 1])
    found = scores.single_label(truth, predicted, ["a", "b", "never", "d"])
    assert found.figures["f1_macro"] == metrics.f1_score(truth, predicted, average="macro")
    assert found.tables["by_label"]["never"]["support"] == 0
    told = [[f"UPOS{number}" for number in side] for side in (truth, predicted)]
    tags = scores.tags([told[0]], [told[1]], sorted({*told[0], "UPOS2"}))
    assert tags.figures["f1_macro"] == metrics.f1_score(told[0], told[1], average="macro")


def check_predictions(path: Path, folder: Path, examples: Examples, labels: list[str]) -> None:
    """`trainer predict` says what the model says, in the order of the file, of examples without labels too."""
    from trainer.cli import main

    unlabelled = write(folder / "new.jsonl", [{"id": number, "text": example["text"]} for number, example in enumerate(examples)])
    assert main(["predict", f"run={path}", f"input={unlabelled}", f"output={folder / 'out.jsonl'}", "batch_tokens=40"]) == 0
    found = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [one["text"] for one in found] == [example["text"] for example in examples]
    assert [one["predicted_label"] for one in found] == labels and [one["id"] for one in found] == list(range(len(examples)))
    assert all(sum(one["predicted_scores"].values()) == pytest.approx(1, abs=1e-4) for one in found)
    assert main(["predict", f"run={path}", f"input={folder / 'eval.jsonl'}", f"output={folder / 'out.csv'}"]) == 0
    rows = list(csv.DictReader((folder / "out.csv").open()))
    assert [row["label"] for row in rows] == [example["label"] for example in examples], "what the file says stays"
    assert [row["predicted_label"] for row in rows] == labels


def test_b07_predict_names_the_line_that_is_broken_and_writes_nothing(tmp_path, capsys):
    from trainer.cli import main

    examples = sentences(12)
    path = ready(tmp_path, examples, examples[:3], "steps=1")
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    (tmp_path / "new.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    assert main(["predict", f"run={path}", f"input={tmp_path / 'new.jsonl'}", f"output={tmp_path / 'out.jsonl'}"]) == 1
    assert "new.jsonl:2: broken JSON" in capsys.readouterr().err
    assert not [*tmp_path.glob("*out.jsonl*")]
    for words, said in (
        ("input=x.txt output=y.jsonl", "input: x.txt"),
        ("input=n.jsonl output=y.csv", "input: 'n.jsonl' not found"),
        ("input=new.jsonl output=y.txt", "output: y.txt"),
    ):
        assert main(["predict", f"run={path}", *words.replace("new", str(tmp_path / "new")).split()]) == 1
        assert said in capsys.readouterr().err


def test_b05_a_label_that_was_not_trained_on_names_itself_its_example_and_those_that_were(tmp_path):
    examples = sentences(12)
    with pytest.raises(ConfigError) as error:
        ready(tmp_path, examples, [examples[0], {"text": "a rose", "label": "flower"}])
    text = str(error.value)
    assert (
        "'flower'" in text
        and f"example 2 ({tmp_path}/eval.jsonl:2)" in text
        and "3 labels: animal, fruit, tool" in text
        and "task.labels" in text
    )
    for label, words, said in (
        ("nan", ["task.problem=regression"], "'nan'.*is no number"),
        ({"a": 1}, [], r"\{'a': 1\}; allowed: text, a number"),
        (["a", "b"], ["task.class_weights=balanced"], "task.class_weights: of one label an example alone, and these are multi_label"),
    ):
        odd = [{**example, "label": label} for example in examples]
        with pytest.raises(ConfigError, match=said):
            ready(tmp_path, odd, odd[:2], *words)
    with pytest.raises(ConfigError, match=r"task\.labels.*each label once"):
        ready(tmp_path, examples, examples[:2], "task.labels=[a,a]")


def test_b05_the_example_is_named_by_its_line_where_some_are_left_out_and_held_out(tmp_path):
    """In the second of two files, behind lines that are broken, repeat another or are held out."""
    texts = [f"text {number}" for number in range(80)]
    lines = [json.dumps({"text": text, "label": "0.5"}) for text in texts]
    for at in (3, 40, 41):
        lines[at : at + 1] = ["{broken", lines[at], "", lines[0]]
    bad = lines.index(json.dumps({"text": "text 70", "label": "0.5"}))
    lines[bad] = json.dumps({"text": "text 70", "label": "much"})
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:20]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[20:]) + "\n")
    words = ("data=jsonl", f"data.path={tmp_path}/?.jsonl", "data.on_error=skip", "data.deduplicate=true", "task.problem=regression")
    with pytest.raises(ConfigError, match=rf"'much' of example \d+ \({tmp_path}/b\.jsonl:{bad - 19}\) is no number"):
        loops.ready(tmp_path, tmp_path, *TINY, *words, sizes=())


def test_b14_a_missing_column_names_those_that_there_are(tmp_path):
    examples = [{"body": "x", "kind": "y"}] * 3
    with pytest.raises(ConfigError, match=r"data\.columns\.text: missing.*'text' or.*columns are body, kind"):
        ready(tmp_path, examples, examples)
    with pytest.raises(ConfigError, match=r"data\.columns\.label: 'sort' is no column.*its columns: body, kind"):
        ready(tmp_path, examples, examples, "data.columns.text=body", "data.columns.label=sort")
    with pytest.raises(ConfigError, match=r"train\.jsonl:2.*nothing in column 'label'.*on_error=skip"):
        ready(tmp_path, [{"text": "a", "label": "x"}, {"text": "b"}], [{"text": "c", "label": "x"}])
    with pytest.raises(ConfigError, match=r"data=text: it holds text without labels.*jsonl"):
        loops.ready(tmp_path, loops.write_texts(tmp_path), *TINY, sizes=())


def test_examples_that_are_held_out_and_trained_on_are_told(tmp_path, capsys):
    examples = sentences(12)
    ready(tmp_path, examples, [*examples[:2], {"text": "unseen", "label": "tool"}])
    assert "2 of 3 held-out examples are also trained on" in " ".join(capsys.readouterr().out.split())
