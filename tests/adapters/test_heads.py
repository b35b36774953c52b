"""A pretraining run gives its body to a task with another head: the head begins anew, with an adapter too, and PEFT reads both."""

from __future__ import annotations

import re

import pytest
import torch

from tests import loops
from tests.adapters.shared import finish
from tests.tasks.test_classification import sentences, write
from trainer.choices import ConfigError
from trainer.run import RunDir

SIZES = ("model=bert_tiny", "model.layers=1", "model.hidden=32", "model.heads=2")


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory, texts):
    path = loops.ready(tmp_path_factory.mktemp("mlm"), texts, *SIZES, "task=mlm", "steps=2", "tokenizer.vocab_size=300", sizes=())
    finish(path)
    return path


def classifier(folder, pretraining, *words):
    examples = sentences(24)
    files = write(folder / "train.jsonl", examples[:20]), write(folder / "eval.jsonl", examples[20:])
    data = ("task=classification", "data=jsonl", f"data.train={files[0]}", f"data.eval={files[1]}", "steps=2")
    begun = ("tokenizer=pretrained", f"tokenizer.path={pretraining}/model", f"init.run={pretraining}")
    sizes = [word for word in SIZES if word.split("=")[0] not in {each.split("=")[0] for each in words}]
    return loops.ready(folder, folder, *sizes, *data, *begun, *words, sizes=())


@pytest.mark.parametrize("adapter", ["none", "lora", "prompt"])
def test_a_new_head_on_another_runs_body(tmp_path, pretraining, capsys, monkeypatch, adapter):
    from peft import PeftModel
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

    path = classifier(tmp_path, pretraining, f"adapter={adapter}", *(["adapter.count=4"] if adapter == "prompt" else []))
    here = loops.training(loops.single(), path)
    said = capsys.readouterr().out
    assert f"init.run: {pretraining}: not in its checkpoint, so with first values: model.bert.pooler.dense.weight" in said
    with here.placement.gathered() as module:
        began = {name: tensor.clone() for name, tensor in module.model.named_parameters()}
    theirs = dict(AutoModelForMaskedLM.from_pretrained(pretraining / "model").named_parameters())
    key = "bert.encoder.layer.0.attention.self.key.weight"
    assert torch.equal(began[key], theirs[key]) and began["classifier.weight"].abs().sum() > 0
    here.loop()
    here.finish()
    check_card(path, "transformers" if adapter == "none" else "peft", monkeypatch, capsys)
    if adapter == "none":
        return
    # Both bodies were trained beside it; the head too.
    base = AutoModelForSequenceClassification.from_pretrained(path / "model" / "base")
    peft = PeftModel.from_pretrained(base, str(path / "model")).eval()
    step = here.loader.step(0).micro_batches[0]
    here.placement.module.eval()
    with torch.no_grad():
        ours = here.placement.module(step)["logits"]
        for row, ids in zip(ours, step.inputs["input_ids"][0].split(step.lengths), strict=True):
            alone = peft(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits[0]
            torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)
    assert not torch.equal(dict(module.model.named_parameters())["classifier.weight"], began["classifier.weight"])
    from trainer.verbs.evaluate import held_out

    assert held_out(RunDir(path))["eval_loss"] == pytest.approx(RunDir(path).summary["eval_loss"], rel=1e-5)


def check_card(path, library, monkeypatch, capsys):
    """Its lines say a label, and a hub reads its figures."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(path / "model" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == (library, "text-classification")
    figures = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert figures["accuracy"] == pytest.approx(RunDir(path).summary["accuracy"], abs=1e-6)
    assert "| labels | `animal`, `fruit`, `tool` |" in card.text
    monkeypatch.chdir(path)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.strip() in ("animal", "fruit", "tool")


def test_any_other_difference_is_refused_as_before(tmp_path, pretraining):
    with pytest.raises(ConfigError, match=r"init.run: .*has shape .* there, and .* here; model.hidden is 32 there and 48 here"):
        classifier(tmp_path, pretraining, "model.hidden=48")
