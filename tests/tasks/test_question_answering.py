"""Answers that stand in a text: windows, places, figures, the same at any number of processes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import loops
from tests.tasks.test_classification import NOUNS, ready, write
from trainer.checkpoint.boxes import whole
from trainer.choices import ConfigError
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.tokenizer_files import load_tokenizer
from trainer.models import Vocabulary
from trainer.models.answering import AnsweringModule
from trainer.models.pretrained import Pretrained
from trainer.run import RunDir
from trainer.tasks import answer_scores
from trainer.tasks.answer_scores import Answered
from trainer.tasks.answers import best_places
from trainer.tasks.question_answering import QuestionAnswering

QA = ("task=question_answering",)
TINY = (*QA, "model=bert_tiny", "model.layers=1", "model.hidden=32", "model.heads=2", "tokenizer.vocab_size=300")


def questions(count: int, unanswerable: bool = True) -> list[dict[str, Any]]:
    """Which noun of a kind stands in a text of other words, and perhaps none; of quite different lengths."""
    draw, found = np.random.default_rng(0), []
    for number in range(count):
        kind, other = draw.permutation(list(NOUNS))[:2]
        words = [*draw.choice(["the", "a", "red", "old", "big"], draw.integers(1, 30)), str(draw.choice(NOUNS[other]))]
        answer = str(draw.choice(NOUNS[kind]))
        if is_there := not unanswerable or number % 3 > 0:
            words.insert(int(draw.integers(0, len(words))), answer)
        context = " ".join(words) + f" n{number}"
        places = {"text": [answer], "answer_start": [context.index(answer)]} if is_there else {"text": [], "answer_start": []}
        found.append({"question": f"which {kind}?", "context": context, "answers": places})
    return found


def corpus_of(path: Path) -> Corpus:
    return open_corpus(*(RunDir(path).placement[key] for key in ("corpus", "rows")))


def squad(examples: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """As SQuAD has it, a paragraph a question."""
    paragraphs = []
    for number, example in enumerate(examples):
        pairs = zip(*example["answers"].values(), strict=True)
        asked = {"id": f"q{number}", "question": example["question"], "is_impossible": not example["answers"]["text"]}
        asked["answers"] = [{"text": text, "answer_start": start} for text, start in pairs]
        paragraphs.append({"context": example["context"], "qas": [asked]})
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}], **more}


@pytest.mark.parametrize("model", ["bert_tiny", "gpt2_tiny"])
def test_a_model_learns_to_answer_and_says_what_transformers_says_of_it(tmp_path, model):
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    examples = questions(340)
    given = (*QA, f"model={model}", "steps=160", "global_batch=32", "micro_batch=32", "optim.lr=1e-2", "model.initializer_range=0.1")
    path = ready(tmp_path, examples[:300], examples[300:], *given, "sequence_length=32")
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    summary = RunDir(path).summary
    assert summary["has_answer_exact_match"] > 80 and summary["no_answer_exact_match"] > 80
    assert {"has_answer_f1", "no_answer_f1", "best_f1", "best_f1_threshold"} <= set(summary)
    exported = AutoModelForQuestionAnswering.from_pretrained(path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    losses = []
    split, task = here.corpus.split("eval"), QuestionAnswering()
    for number in range(len(split.rows)):
        row = {name: torch.from_numpy(values)[None] for name, values in task.row(split, number).items()}
        told = {name: row[name] for name in tokenizer.model_input_names if name in row and row[name].numel()}
        start, end = row["places"][:, 2], row["places"][:, 3]
        with torch.no_grad():
            losses.append(float(exported(**told, start_positions=start, end_positions=end).loss))
    assert summary["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    check_predictions(path, tmp_path, examples[300:], summary)


def check_predictions(path: Path, folder: Path, examples: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """`trainer predict` answers files of questions, SQuAD's too, in the order of the file."""
    from trainer.cli import main

    asked = write(folder / "new.jsonl", [{**example, "answers": None} for example in examples])
    (folder / "new.json").write_text(json.dumps(squad(examples), indent=1))
    found = []
    for file in (asked, folder / "new.json"):
        assert main(["predict", f"run={path}", f"input={file}", f"output={folder / 'out.jsonl'}", "batch_tokens=100"]) == 0
        found.append([json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()])
    assert [one.pop("id") for one in found[1]] == [f"q{number}" for number in range(len(examples))]
    assert [one.pop("answers") for one in found[1]] == [example["answers"] for example in examples], "what the file says stays"
    assert found[0] == found[1]
    right = 0
    for example, one in zip(examples, found[0], strict=True):
        answer, start = one["predicted_answer"], one["predicted_answer_start"]
        assert (start is None and not answer) or example["context"][start:].startswith(answer)
        best = one["predicted_best"]
        assert 1 < len(best) <= 21 and sum(each["score"] for each in best) == pytest.approx(1, abs=1e-4)
        assert {"answer": answer, "answer_start": start, "score": one["predicted_score"]} in best
        right += answer == "".join(example["answers"]["text"])
    assert 100 * right / len(examples) == pytest.approx(summary["exact_match"])


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Bert", "ModernBert"])
def test_the_body_of_a_pretrained_model_is_found_beside_another_head(tmp_path, family):
    import transformers
    from transformers import AutoModel

    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{family}Config")(**sizes, **{f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")})
    head = "ForMaskedLM" if "Bert" in family else "ForCausalLM" if family == "Llama" else "LMHeadModel"
    getattr(transformers, f"{family}{head}")(config).save_pretrained(tmp_path)
    pretrained = Pretrained(path=str(tmp_path))
    module = AnsweringModule(pretrained.skeleton("question_answering", Vocabulary(64, pad=0), 32, {"num_labels": 2}))
    first = pretrained.weights(module, 0)
    body = AutoModel.from_pretrained(tmp_path)
    assert {name.split(".")[1] for name in first.new} <= {"qa_outputs", "classifier"}
    inside = module.model.base_model
    for name, parameter in inside.named_parameters():
        shape = tuple(parameter.shape)
        stored = first(f"model.{module.model.base_model_prefix}.{name}", "parameter", shape, whole(shape))
        assert torch.equal(stored, body.get_parameter(name))


TEXTS = st.text(alphabet="ab c\n.é京𝒳'-", min_size=1, max_size=80)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, data_folder):
    """WordPiece, and byte-level BPE with blanks before its tokens and characters of several tokens."""
    folder = tmp_path_factory.mktemp("tokenizers")
    found = []
    for model in ("bert_tiny", "gpt2_tiny"):
        path = ready(folder, questions(9), questions(3), *QA, f"model={model}", "steps=1", name=model)
        found.append(load_tokenizer(corpus_of(path).tokenizer_path))
    return found


@given(context=TEXTS, place=st.integers(0, 79), size=st.integers(1, 9), length=st.integers(12, 40), asked=TEXTS)
@settings(max_examples=60, deadline=None)
def test_windows_hold_every_token_and_answers_their_characters(tokenizers, context, place, size, length, asked):
    answer = context[place : place + size].strip()
    if not answer or not asked.strip():
        return
    start = context.index(answer, place)
    example = {"question": asked, "context": context, "answers": {"text": [answer], "answer_start": [start]}}
    for tokenizer in tokenizers:
        rows = list(QuestionAnswering().encode([example], 0, tokenizer, {}, length))
        places, is_held = set(), False
        for row in rows:
            ids, _, begins, ends, (first, null, left, right) = row.sections
            assert len(ids) <= length and len(begins) == len(ends) <= len(ids) and null == 0
            places |= set(zip(begins.tolist(), ends.tolist(), strict=True))
            holds = len(begins) > 0 and begins[0] <= start and start + len(answer) <= ends[-1]
            assert (left, right) == (null, null) or holds
            if holds:
                is_held = True
                assert first <= left <= right < first + len(begins)
                low, high = begins[left - first], ends[right - first]
                # At the borders of tokens, and not one token more.
                assert low <= start < ends[left - first] and begins[right - first] < start + len(answer) <= high
        every = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert {end for _, end in places} == {end for _, end in every}
        assert is_held or len(rows) > 1 or "京" in answer or "𝒳" in answer


@given(st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=1, max_size=9), st.integers(1, 12), st.integers(1, 30))
def test_the_best_places_are_those_of_all_pairs(logits, longest, count):
    starts, ends = (np.array(values, np.float32) for values in zip(*logits, strict=True))
    every = [(-starts[a] - ends[b], a, b) for a in range(len(starts)) for b in range(a, min(len(ends), a + longest))]
    found = best_places(starts, ends, longest, count)
    assert [score for *_, score in found] == [-score for score, *_ in sorted(every)[:count]]
    assert {(-score, a, b) for a, b, score in found} <= set(every) and len(set(found)) == len(found) == min(count, len(every))


WORDS = st.lists(st.sampled_from(["the", "a", "cat", "Cat.", "dog-house", "--", "An", "über", "U.S.", "\tan"]), max_size=5).map(" ".join)


@given(st.lists(st.tuples(st.lists(WORDS.map("x {}".format), min_size=1, max_size=3), WORDS.map("y {}".format)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_exact_match_and_f1_are_those_of_squad(examples):
    from torchmetrics.functional.text import squad as official

    found = answer_scores.extracted([Answered(truth, said, 0.0, "English") for truth, said in examples]).figures
    said = [{"prediction_text": said, "id": str(number)} for number, (_, said) in enumerate(examples)]
    truth = [
        {"answers": {"text": texts, "answer_start": [0] * len(texts)}, "id": str(number)} for number, (texts, _) in enumerate(examples)
    ]
    assert found == pytest.approx({name: float(value) for name, value in official(said, truth).items()}, rel=1e-6)


def test_figures_by_hand_of_what_is_empty_of_no_answer_and_of_chinese():
    # Of SQuAD 1.1 two empty bags of words have nothing in common; of 2.0 they are equal.
    nothing = Answered(["the"], "a", -1.0, "x")
    assert answer_scores.extracted([nothing]).figures == {"exact_match": 100.0, "f1": 0.0}
    assert answer_scores.extracted_or_none([nothing], 0.0).figures["f1"] == 100.0
    examples = [
        Answered(["big cat"], "cat", -3.0, "x"),
        Answered([], "dog", 1.0, "x"),
        Answered(["cow"], "cow", 2.0, "x"),
        Answered([], "cat", 4.0, "x"),
    ]
    found = answer_scores.extracted_or_none(examples, 0.0).figures
    assert found["exact_match"] == 50.0 and found["f1"] == pytest.approx(100 * (2 / 3 + 1 + 0 + 1) / 4)
    assert found["has_answer_f1"] == pytest.approx(100 / 3) and found["no_answer_f1"] == 100.0
    # Answering the first costs and gains nothing in exact match; the second costs one, the third gains it back.
    assert found["best_exact_match"] == 50.0 and found["best_f1"] == pytest.approx(100 * (2 / 3 + 2) / 4)
    assert found["best_f1_threshold"] == -3.0
    # 3 of 4 characters are right, of 3 and of 4.
    chinese = Answered(["北京大學"], "京大學。", 0.0, "他在北京大學學習。")
    assert answer_scores.extracted([chinese]).figures == {"exact_match": 0.0, "f1": pytest.approx(100 * 6 / 7)}
    assert answer_scores.extracted([Answered(["北京"], "京", 0.0, "a text that says 北京 once")]).figures["f1"] == 0.0


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["cat", "cat dog", "cow"]), st.integers(-2, 2)), min_size=1, max_size=6))
def test_the_best_threshold_is_the_best_of_all(examples):
    answered = [Answered(["cat dog"] if has else [], said, float(null), "x") for has, said, null in examples]
    figures = answer_scores.extracted_or_none(answered, 0.0).figures
    for name in ("exact_match", "f1"):
        at = [answer_scores.extracted_or_none(answered, threshold).figures[name] for threshold in (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0)]
        assert figures[f"best_{name}"] == pytest.approx(max(at))
        best = answer_scores.extracted_or_none(answered, figures[f"best_{name}_threshold"]).figures[name]
        assert best == pytest.approx(figures[f"best_{name}"])


def test_real_questions_from_end_to_end_and_none_on_a_paragraph_that_is_held_out(tmp_path, data_folder):
    from trainer.cli import main

    everything = json.loads((data_folder / "xquad" / "xquad.en.json").read_text())
    (tmp_path / "some.json").write_text(json.dumps({"version": "1.1", "data": everything["data"][:6]}))
    given = (*TINY, "steps=2", "data=squad", f"data.path={tmp_path / 'some.json'}", "data.held_out=0.2", "sequence_length=128")
    path = loops.ready(tmp_path, tmp_path, *given, sizes=())
    corpus = corpus_of(path)
    sides = [{example["context"] for example in corpus.records(split)} for split in ("train", "eval")]
    assert not sides[0] & sides[1] and all(sides) and len(sides[0] | sides[1]) == 30
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    assert {"exact_match", "f1"} <= set(RunDir(path).summary) and "best_f1" not in RunDir(path).summary
    assert main(["predict", f"run={path}", f"input={tmp_path / 'some.json'}", f"output={tmp_path / 'out.csv'}"]) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) > 100


def test_b07_what_is_broken_in_a_squad_file_is_named_by_its_place(tmp_path):
    good = squad(questions(12))
    paragraphs = good["data"][0]["paragraphs"]
    for broken, said in (
        (json.dumps(good, indent=1).replace('"qas": [', '"qas": ', 1), r"x\.json:\d+:\d+: broken JSON"),
        (json.dumps({"version": "1", "data": [{"title": "t"}]}), r"x\.json: data\[0\] has no 'paragraphs', but 'title'"),
        (json.dumps({**good, "data": {}}), r"x\.json: 'data' of the file is an object, not a list"),
        (json.dumps(good).replace('"which', '"why": "which', 1).replace('"question": "why', '"why'), r"x\.json:1: data\[0\].*'question'"),
        (json.dumps(squad([{**questions(2, False)[0], "question": 3}])), r"x\.json:1: 'question' of .*qas\[0\] is a number, not text"),
    ):
        (tmp_path / "x.json").write_text(broken)
        with pytest.raises(ConfigError, match=said):
            loops.ready(tmp_path, tmp_path, *TINY, "data=squad", f"data.path={tmp_path / 'x.json'}", sizes=())
    paragraphs[1]["qas"][0]["is_impossible"] = True
    (tmp_path / "x.json").write_text(json.dumps(good))
    with pytest.raises(ConfigError, match=r"x\.json:2: .*paragraphs\[1\]\.qas\[0\] is impossible, and has 1 answers; mend the question"):
        loops.ready(tmp_path, tmp_path, *TINY, "data=squad", f"data.path={tmp_path / 'x.json'}", sizes=())


def test_b05_an_answer_that_does_not_stand_where_it_is_said_to_is_mended_or_refused(tmp_path):
    good = questions(12, unanswerable=False)
    moved = {"question": "q", "context": "one two two", "answers": {"text": ["one"], "answer_start": [5]}}
    path = ready(tmp_path, [moved, *good], good, *QA, "steps=1")
    row = QuestionAnswering().row(corpus_of(path).split("train"), 0)
    first, _, left, right = row["places"].tolist()
    assert (row["begins"][left - first], row["ends"][right - first]) == (0, 3)
    for answers, said in (
        ({"text": ["two"], "answer_start": [5]}, r"'two' of example 1 .*answer_start=5.*'wo '.*at several places"),
        ({"text": ["six"], "answer_start": [0]}, r"'six' of example 1 .*nowhere"),
        ({"text": ["one", "two"], "answer_start": [0]}, r"of example 1 \(.*jsonl:1\); allowed"),
        ([{"text": "two"}], r"at several places"),
        ("one", r"'one' of example 1 \(.*jsonl:1\); allowed: \{"),
    ):
        with pytest.raises(ConfigError, match=rf"data\.columns\.answers: .*{said}"):
            ready(tmp_path, [{**moved, "answers": answers}, *good], good, *QA, "steps=1")
    silent = [{**example, "answers": {"text": [], "answer_start": []}} for example in good]
    with pytest.raises(ConfigError, match="no training example has an answer"):
        ready(tmp_path, silent, good, *QA)
    with pytest.raises(ConfigError, match=r"task\.stride: 40 with sequence_length=32; allowed: below 13"):
        ready(tmp_path, good, good[:2], *QA, "task.stride=40")
