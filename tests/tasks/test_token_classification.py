"""Tags of words through the real loop: words and tokens, long sentences, figures by seqeval, CoNLL files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seqeval import metrics

from tests import loops
from tests.distributed import run_distributed
from tests.tasks.test_classification import Examples, evaluated, write
from trainer.choices import ConfigError
from trainer.data.corpus import open_corpus
from trainer.run import RunDir
from trainer.tasks import scores
from trainer.tasks.token_classification import TokenClassification

TINY = ("task=token_classification", "model=bert_tiny", "model.layers=1", "model.hidden=32", "model.heads=2", "tokenizer.vocab_size=300")
TAGS = {"the": "O", "saw": "O", "anna": "B-PER", "bell": "I-PER", "paris": "B-LOC", "supercalifragilistic": "O"}


def sentences(count: int, longest: int = 12) -> list[dict[str, Any]]:
    """Words that always have the same tag."""
    draw = np.random.default_rng(0)
    words = [draw.choice(list(TAGS), draw.integers(1, longest)).tolist() for _ in range(count)]
    return [{"tokens": sentence, "tags": [TAGS[word] for word in sentence]} for sentence in words]


def ready(folder: Path, train: Examples, held_out: Examples, *words: str, world: int = 1, name: str = "run") -> Path:
    files = write(folder / "train.jsonl", train), write(folder / "eval.jsonl", held_out)
    data = ("data=jsonl", f"data.train={files[0]}", f"data.eval={files[1]}")
    return loops.ready(folder, folder, *TINY, *data, *words, name=name, world=world, sizes=())


@pytest.mark.parametrize("model", ["bert_tiny", "gpt2_tiny"])
def test_every_word_is_tagged_once_also_of_sentences_longer_than_a_row(tmp_path, model):
    """WordPiece, and byte-level BPE whose tokens begin with the blank before them."""
    examples = sentences(20, longest=40)
    path = ready(tmp_path, examples[:15], examples[15:], f"model={model}", "sequence_length=16", "steps=1")
    corpus = open_corpus(*(RunDir(path).placement[key] for key in ("corpus", "rows")))
    task, split = TokenClassification(), corpus.split("train")
    words: dict[int, list[int]] = {}
    tags: dict[int, list[str]] = {}
    for row in range(len(split.rows)):
        found, example = task.row(split, row), int(split.rows.pieces(row)[0, 1])
        assert len(found["input_ids"]) <= 16 and len(found["places"]) == len(found["words"]) == split.rows.targets["tags"][row]
        words.setdefault(example, []).extend(found["words"].tolist())
        tags.setdefault(example, []).extend(corpus.learned["labels"][tag] for tag in found["target"])
    assert words == {number: list(range(len(example["tokens"]))) for number, example in enumerate(examples[:15])}
    assert tags == {number: example["tags"] for number, example in enumerate(examples[:15])}


def test_c04_c20_it_learns_and_two_ranks_find_what_one_finds(tmp_path):
    examples = sentences(123)
    words = ("steps=30", "optim.lr=5e-3", "model.initializer_range=0.1")
    one = ready(tmp_path, examples[:100], examples[100:], *words, name="one")
    alone = evaluated(loops.single(), str(one))["figures"]
    assert alone["f1"] > 0.9 and alone["accuracy"] > 0.9
    two = ready(tmp_path, examples[:100], examples[100:], *words, "micro_batch=3", name="two", world=2)
    for rank in run_distributed(evaluated, 2, str(two)):
        assert rank["figures"]["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-2)
        assert rank["figures"]["f1"] == pytest.approx(alone["f1"], abs=0.02)


@pytest.mark.parametrize("scheme", ["iob1", "iob2", "iobes"])
def test_entities_are_scored_by_the_rules_of_seqeval(scheme):
    written = {
        "iob2": (["B-PER", "I-PER", "O", "B-LOC", "B-LOC"], ["B-PER", "O", "O", "B-LOC", "B-LOC"]),
        "iob1": (["I-PER", "I-PER", "O", "I-LOC", "B-LOC"], ["I-PER", "O", "O", "I-LOC", "B-LOC"]),
        "iobes": (["B-PER", "E-PER", "O", "S-LOC", "S-LOC"], ["S-PER", "O", "O", "S-LOC", "S-LOC"]),
    }
    truth, predicted = ([side] for side in written[scheme])
    found = scores.tags(truth, predicted, sorted({*truth[0], *predicted[0]}))
    assert found.figures["f1"] == metrics.f1_score(truth, predicted) == pytest.approx(2 / 3)
    assert found.figures["precision"] == metrics.precision_score(truth, predicted)
    assert found.tables["by_label"]["LOC"]["support"] == 2


@pytest.mark.parametrize("letters", ["BIES", "BILU", "BMES"])
def test_entities_of_other_letters_are_the_same_entities(letters):
    """U next to U of one kind, and U before B, are two entities each."""
    begin, inside, end, single = letters
    truth = [f"{single}-LOC", f"{single}-LOC", f"{begin}-LOC", f"{inside}-LOC", f"{end}-LOC", "O"]
    predicted = [f"{single}-LOC", "O", f"{begin}-LOC", f"{inside}-LOC", f"{end}-LOC", "O"]
    found = scores.tags([truth], [predicted], sorted({*truth}))
    assert found.tables["by_label"]["LOC"]["support"] == 3
    assert (found.figures["precision"], found.figures["recall"]) == (1.0, pytest.approx(2 / 3))


def test_conll_and_conllu_are_read_as_they_are_written(tmp_path):
    conll = "-DOCSTART- -X- O O\n\nAnna NNP B-NP B-PER\nslept VBD B-VP O\n\n\nParis NNP B-NP B-LOC\n"
    (tmp_path / "a.conll").write_text(conll * 4)
    conllu = "# newdoc id = n-1\n# text = I don't\n1\tI\tI\tPRON" + "\t_" * 6 + "\n2-3\tdon't" + "\t_" * 8
    conllu += "\n2\tdo\tdo\tAUX" + "\t_" * 6 + "\n3\tn't\tnot\tPART" + "\t_" * 6 + "\n3.1\tgo" + "\t_" * 8 + "\n\n"
    (tmp_path / "a.conllu").write_text(conllu * 3)
    given = (*TINY, "steps=1", "sequence_length=16")
    for kind, data, expected in (
        ("conll", ("data.columns.tags=4",), {"tokens": ["Anna", "slept"], "tags": ["B-PER", "O"]}),
        ("conllu", (), {"tokens": ["I", "do", "n't"], "tags": ["PRON", "AUX", "PART"]}),
    ):
        file = tmp_path / f"a.{kind}"
        splits = (f"data={kind}", f"data.train={file}", f"data.eval={write(tmp_path / f'b.{kind}', [])}")
        (tmp_path / f"b.{kind}").write_text(file.read_text())
        path = loops.ready(tmp_path, tmp_path, *given, *splits, *data, name=kind, sizes=())
        corpus = open_corpus(*(RunDir(path).placement[key] for key in ("corpus", "rows")))
        assert corpus.records("train")[0] == expected


def test_b07_a_broken_sentence_is_named_by_its_line(tmp_path):
    for name, text, said in (("x.conll", "a\tO\nb\tO\n\nc\tO\nd\n", "x.conll:4"), ("x.conllu", "1\ta\tb\n", "x.conllu:1")):
        (tmp_path / name).write_text(text)
        data = (f"data={name.split('.')[1]}", f"data.train={tmp_path / name}", f"data.eval={tmp_path / name.replace('x', 'y')}")
        (tmp_path / name.replace("x", "y")).write_text(text)
        with pytest.raises(ConfigError, match=rf"{said}.*columns|data\.columns\.tokens: missing"):
            loops.ready(tmp_path, tmp_path, *TINY, *data, sizes=())
    with pytest.raises(ConfigError, match=r"data\.columns\.tags: example 2 \(.*jsonl:2\) has 2 tokens and 1 tags"):
        ready(tmp_path, [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", "b"], "tags": ["O"]}], sentences(2))
    with pytest.raises(ConfigError, match=r"B-ORG.*example 1"):
        ready(tmp_path, sentences(9), [{"tokens": ["a"], "tags": ["B-ORG"]}])


def test_real_treebank_and_entities_are_read_whole(tmp_path, data_folder):
    given = (*TINY, "steps=1", "sequence_length=32")
    treebank = ("data=conllu", f"data.path={data_folder / 'ud_ewt' / 'en_ewt-ud-dev.conllu'}")
    entities = ("data=conll", f"data.path={data_folder / 'wnut17' / 'emerging.dev.conll'}")
    for name, data, count, labels in (("ewt", treebank, 2001, 17), ("wnut", entities, 1009, 13)):
        path = loops.ready(tmp_path, tmp_path, *given, *data, name=name, sizes=())
        corpus = open_corpus(*(RunDir(path).placement[key] for key in ("corpus", "rows")))
        assert sum(corpus.meta["splits"][split]["documents"] for split in ("train", "eval")) == count
        assert len(corpus.learned["labels"]) == labels and json.dumps(corpus.learned["labels"])
