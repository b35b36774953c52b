"""A model that learns of another: soft targets, hidden states and attention, under every strategy, and a student of chosen layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests import loops
from tests.distributed import run_distributed
from tests.tasks.test_classification import sentences, write
from tests.tasks.test_writing import pairs
from trainer.choices import ConfigError
from trainer.run import RunDir

BERT = ("model=bert_tiny", "model.hidden=32", "model.heads=2", "tokenizer.vocab_size=300")
ALL = ("teacher.weight=0.5", "teacher.temperature=3", "teacher.hidden=0.5", "teacher.attention=0.25", "teacher.relation_heads=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher of three layers that has learned its examples, in `teacher/model`, and files."""
    here = tmp_path_factory.mktemp("distil")
    examples = sentences(120)
    write(here / "train.jsonl", examples[:90]), write(here / "eval.jsonl", examples[90:])
    path = ready(here, "teacher", *BERT, "model.layers=3", "steps=80", "global_batch=16", "optim.lr=3e-3")
    finish(path)
    assert RunDir(path).summary["accuracy"] > 0.6
    return here


def ready(here: Path, name: str, *words: str, world: int = 1, task: str = "classification") -> Path:
    data = ("data=jsonl", f"data.train={here}/train.jsonl", f"data.eval={here}/eval.jsonl", f"task={task}")
    return loops.ready(here, here, *data, *words, name=name, world=world, sizes=())


def finish(path: Path) -> None:
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()


def taught(here: Path) -> tuple[str, ...]:
    model = here / "teacher" / "model"
    return (f"tokenizer.path={model}", "tokenizer=pretrained", "teacher=pretrained", f"teacher.path={model}")


def test_what_is_learned_is_what_it_says(folder):
    """The four terms of a step, computed by hand from transformers' own outputs of both models."""
    from transformers import AutoModelForSequenceClassification

    student = ("model=bert_tiny", "model.hidden=32", "model.heads=4", "model.layers=1", "model.dropout=0", "steps=1", "global_batch=6")
    path = ready(folder, "by-hand", *student, *taught(folder), *ALL, "optim.lr=1e-12", "micro_batch=6")
    here = loops.training(loops.single(), path)
    step = here.loader.step(0)
    batch = step.micro_batches[0]
    module = here.placement.gathered().__enter__()
    losses = {term: loss.detach() for term, loss in module.train()(batch).items()}
    assert set(losses) == set(here.config.weights) == set(step.targets)
    # FLOPs by hand: 12 × width² parameters a block; of the head, dense and labels; attention 4 × width a pair of tokens forward.
    tokens, documents, pairs_ = sum(batch.lengths), len(batch.lengths), sum(length**2 for length in batch.lengths)
    body, head, attention = (32 * 32 * 12) * tokens, (32 * 32 + 32 * 3) * documents, 4 * 32 * pairs_
    counted = here.work.flops(batch.tokens, batch.targets, batch.lengths)
    assert counted == 6 * (body + head) + 3 * attention + 3 * (2 * body + attention) + 2 * head, "one block trained, three of the teacher's"
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher" / "model", attn_implementation="eager").eval()
    soft, hidden = 0.0, 0.0
    with torch.no_grad():
        for ids in batch.inputs["input_ids"].split(batch.lengths, dim=1):
            named = {"position_ids": torch.arange(ids.shape[1])[None], "doc_lens": (ids.shape[1],), "output_hidden_states": True}
            ours, theirs = module.model(ids, **named), teacher(ids, output_hidden_states=True)
            said, wanted = ((one.logits / 3).log_softmax(-1) for one in (ours, theirs))
            soft += 9 * float(F.kl_div(said, wanted, reduction="sum", log_target=True))
            hidden += float((1 - F.cosine_similarity(ours.hidden_states[-1], theirs.hidden_states[-1], dim=-1)).sum())
    assert float(losses["classification_soft"]) == pytest.approx(soft, rel=1e-4)
    assert float(losses["hidden"]) == pytest.approx(hidden, rel=1e-4)
    assert float(losses["relations"]) > 0
    twin = ready(
        folder, "twin", "model=pretrained", f"model.path={folder}/teacher/model", *taught(folder), *ALL, "steps=1", "micro_batch=6"
    )
    here = loops.training(loops.single(), twin)
    with here.placement.gathered() as module:
        losses = {term: loss.detach() for term, loss in module.train()(here.loader.step(0).micro_batches[0]).items()}
    assert all(float(losses[term]) == pytest.approx(0, abs=1e-3) for term in ("classification_soft", "hidden", "relations"))


def test_c12_c20_the_curve_is_that_of_one_device_where_the_teacher_is_cut_and_after_a_resume(folder):
    words = (
        "model=pretrained",
        f"model.path={folder}/teacher/model",
        "model.keep_layers=[0,2]",
        *taught(folder),
        *ALL,
        "steps=4",
        "micro_batch=2",
    )
    one = ready(folder, "one", *words)
    finish(one)
    from transformers import AutoModelForSequenceClassification

    assert AutoModelForSequenceClassification.from_pretrained(one / "model").config.num_hidden_layers == 2
    for strategy, world in (("ddp", 3), ("fsdp", 2), ("zero3", 2)):
        path = ready(folder, strategy, *words, f"strategy={strategy}", world=world)
        if strategy == "fsdp":
            run_distributed(loops.train, world, str(path), 2)
        run_distributed(loops.train, world, str(path))
        assert loops.losses(path) == pytest.approx(loops.losses(one), rel=1e-4), strategy
    names = {parameter for file in (one / "checkpoints").rglob("*.json") if "shard" in file.name for parameter in [file.read_text()]}
    assert not any("teacher." in text for text in names), "a checkpoint is the student's"


def test_a_language_model_learns_of_another(folder, tmp_path):
    """Of a decoder that writes, beside a vocabulary that is padded here and not there."""
    write(tmp_path / "train.jsonl", pairs(40)), write(tmp_path / "eval.jsonl", pairs(6))
    short = ("task.max_target_length=16", "sequence_length=64", "task.generate=false", "optim.lr=3e-3")
    sizes = ("model=gpt2_tiny", "model.hidden=32", "model.heads=2")
    teacher = ready(tmp_path, "teacher", *sizes, *short, "tokenizer.vocab_size=300", "model.layers=2", "steps=20", task="seq2seq")
    finish(teacher)
    words = (*sizes, *short, "model.layers=1", *taught(tmp_path), "teacher.weight=1", "steps=20")
    path = ready(tmp_path, "student", *words, task="seq2seq")
    finish(path)
    found = [line["seq2seq_soft_loss"] for line in loops.lines(path, "seq2seq_soft_loss")]
    assert found[-1] < found[0] / 2
    compiled = ready(tmp_path, "compiled", *words, "compile.blocks=true", "compile.backend=eager", task="seq2seq")
    finish(compiled)
    assert loops.losses(compiled) == pytest.approx(loops.losses(path), rel=1e-4)
    (event,) = RunDir(compiled).events("compiled")
    assert (event["graphs"], event["graph_breaks"]) == (2, 0), "one of the student, one of the teacher"


def test_a_teacher_of_something_else_is_refused_before_launch(folder, tmp_path):
    student = ("model=bert_tiny", "model.hidden=32", "model.heads=2", "model.layers=1")
    other = sentences(30)
    for example in other:
        example["label"] = example["label"] + "s"
    write(tmp_path / "train.jsonl", other), write(tmp_path / "eval.jsonl", other[:3])
    model, swapped = folder / "teacher" / "model", tmp_path / "swapped"
    shutil.copytree(model, swapped)
    told = json.loads((swapped / "tokenizer.json").read_text())
    ids = told["model"]["vocab"]
    ids["apple"], ids["pear"] = ids["pear"], ids["apple"]
    (swapped / "tokenizer.json").write_text(json.dumps(told))
    for here, words, said in (
        (folder, [*student, "teacher=pretrained"], r"teacher\.path: missing"),
        (folder, [*student, *taught(folder), "teacher.weight=0"], r"teacher\.weight: 0.*teacher=none"),
        (folder, [*student, *taught(folder), "teacher.hidden=1", "model.hidden=48"], r"teacher\.hidden.*width 48.*width 32"),
        (folder, [*student[:3], "model.layers=4", *taught(folder), "teacher.hidden=1"], r"teacher\.hidden.*has 4 blocks and .* 3, so"),
        (folder, [*student, *taught(folder), "teacher.attention=1"], r"teacher\.relation_heads: 12 do not divide the width 32"),
        (tmp_path, [*student, *taught(folder)], r"labels animal, fruit, tool, and the training examples animals, fruits, tools"),
        (
            folder,
            [*student, *taught(folder)[:2], "teacher=pretrained", f"teacher.path={swapped}"],
            r"'apple' has id.*tokenizer of teacher\.path",
        ),
        (
            folder,
            ["model=pretrained", f"model.path={model}", "model.keep_layers=[0,3]", *taught(folder)],
            r"model\.keep_layers: \[0, 3\].*has 3",
        ),
        (folder, ["model=pretrained", f"model.path={model}", "model.keep_layers=[2,0]", *taught(folder)], r"model\.keep_layers: \[2, 0\]"),
    ):
        with pytest.raises(ConfigError, match=said):
            ready(here, "refused", *words)
