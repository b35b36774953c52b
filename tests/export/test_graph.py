"""`trainer export onnx=true`: the graph computes what transformers computes of the folder beside it, at any batch and length."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests import loops
from tests.tasks.test_classification import ready as ready_examples
from tests.tasks.test_classification import sentences
from tests.tasks.test_writing import pairs
from trainer.choices import ConfigError
from trainer.cli import main
from trainer.export import graph
from trainer.predicting import Predictor
from trainer.run import load_frozen

rt = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return loops.write_texts(tmp_path_factory.mktemp("texts"))


def exported(path: Path) -> Path:
    """Trained for its steps, and exported."""
    loops.train(loops.single(), str(path))
    assert main(["export", f"run={path}", f"output={path / 'out'}", "onnx=true"]) == 0
    return path / "out"


def inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Of batches and lengths that no tracing has seen; the texts after the first are padded."""
    ids = torch.randint(10, 300, (batch, length), generator=torch.Generator().manual_seed(batch))
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, max(1, length - 2 * row) :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def session(file: Path):
    return rt.InferenceSession(file, providers=["CPUExecutionProvider"])


SHAPES = [(1, 1), (1, 32), (2, 3), (5, 17)]


@pytest.fixture(scope="module")
def causal(tmp_path_factory, texts):
    return exported(loops.ready(tmp_path_factory.mktemp("causal"), texts, "steps=1"))


def test_a_causal_model(causal):
    folder = causal
    model, run = transformers.AutoModelForCausalLM.from_pretrained(folder), session(folder / "model.onnx")
    for shape in SHAPES:
        given = inputs(*shape)
        (found,) = run.run(["logits"], {name: value.numpy() for name, value in given.items()})
        with torch.no_grad():
            wanted = model(**given).logits
        real = given["attention_mask"].bool()
        torch.testing.assert_close(torch.from_numpy(found)[real], wanted[real], rtol=1e-4, atol=1e-4)
    card = (folder / "README.md").read_text()
    assert "`model.onnx` is in ONNX: input_ids, attention_mask → logits; within " in card


def test_a_classifier_with_an_adapter_is_merged_and_knows_the_parts_of_a_pair(tmp_path):
    examples = [{**example, "pair": f"pair {number}"} for number, example in enumerate(sentences(30))]
    path = ready_examples(tmp_path, examples[:24], examples[24:], "steps=2", "adapter=lora", "data.columns.pair=pair")
    folder = exported(path)
    assert not (folder / "adapter_config.json").exists()
    model, run = transformers.AutoModelForSequenceClassification.from_pretrained(folder), session(folder / "model.onnx")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for count in (1, 6):
        texts = [example["text"] for example in examples[:count]], [example["pair"] for example in examples[:count]]
        given = tokenizer(*texts, padding=True, return_tensors="pt")
        assert {"input_ids", "attention_mask", "token_type_ids"} == {*given} == {each.name for each in run.get_inputs()}
        (found,) = run.run(["logits"], {name: value.numpy() for name, value in given.items()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(**given).logits.numpy(), rtol=0, atol=2e-6)
            other = model(**given | {"token_type_ids": torch.zeros_like(given["token_type_ids"])}).logits
        assert not np.allclose(found, other.numpy(), rtol=0, atol=1e-5), "the second part of a pair counts"


def test_an_embedding_of_each_text_of_a_pair(tmp_path):
    """Pooled and of length 1, as `trainer predict` has it; beside the states of the tokens, which other programs pool themselves."""
    examples = [{"anchor": f"{one['source']} " * (number + 1), "positive": one["target"]} for number, one in enumerate(pairs(20))]
    words = ("task=contrastive", "task.pooling=last", "steps=1", "micro_batch=auto", "sequence_length=48")
    path = ready_examples(tmp_path, examples[:14], examples[14:], *words)
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    folder = exported(path)
    run, tokenizer = session(folder / "model.onnx"), transformers.AutoTokenizer.from_pretrained(folder)
    predictor = Predictor(path / "model", load_frozen(path / "config.yaml"), torch.device("cpu"))
    wanted = [one["embedding"] for one in predictor.answers([{"anchor": one["anchor"]} for one in examples], 4096)]
    # Padded on the right, as in training.
    ids = [tokenizer(one["anchor"], truncation=True, max_length=48)["input_ids"] for one in examples]
    given = {"input_ids": np.zeros((len(ids), 48), np.int64), "attention_mask": np.zeros((len(ids), 48), np.int64)}
    given |= {each.name: np.zeros_like(given["input_ids"]) for each in run.get_inputs() if each.name not in given}
    for row, each in enumerate(ids):
        given["input_ids"][row, : len(each)], given["attention_mask"][row, : len(each)] = each, 1
    (found,) = run.run(["sentence_embedding"], given)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert "last_hidden_state, sentence_embedding; within " in (folder / "README.md").read_text()
    # Each text was compared by itself, not both as one.
    assert {int(size) for size in re.findall(r"PyTorch on (\d+) held-out", (folder / "README.md").read_text())} == {12}


def test_an_encoder_and_a_decoder(tmp_path, texts):
    folder = exported(loops.ready(tmp_path, texts, "steps=1", "model=t5_tiny", "task=denoising", "model.head_size=8"))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    encoder, decoder = (session(folder / f"{name}_model.onnx") for name in ("encoder", "decoder"))
    for batch, length in SHAPES:
        given, written = inputs(batch, length), inputs(batch, 7)["input_ids"]
        (read,) = encoder.run(["last_hidden_state"], {name: value.numpy() for name, value in given.items()})
        held = {"encoder_hidden_states": read, "encoder_attention_mask": given["attention_mask"].numpy()}
        (found,) = decoder.run(["logits"], held | {"input_ids": written.numpy()})
        with torch.no_grad():
            wanted = model(**given, decoder_input_ids=written).logits.numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_graph_that_differs_is_refused_and_nothing_is_there(causal, tmp_path, monkeypatch, capsys):
    """Here: the graph of other weights, in place of what the tracing gives."""
    import onnx
    from onnx import numpy_helper

    changed = onnx.load(causal / "model.onnx")
    table = max(changed.graph.initializer, key=lambda each: np.prod(each.dims))
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) * np.float32(1.1), table.name))
    monkeypatch.setattr(graph, "_write", lambda file, *_: onnx.save(changed, file))
    assert main(["export", f"run={causal.parent}", f"output={tmp_path / 'out'}", "onnx=true"]) == 1
    said = capsys.readouterr().err
    assert re.search(r"onnx: true, but model\.onnx differs from PyTorch by 0\.\d+ \(allowed: 0\.0001\); nothing was written", said), said
    assert not [*tmp_path.iterdir()]


def test_what_onnx_needs_is_told_before_any_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text("")
    assert main(["export", f"run={tmp_path}", "onnx=true", "dtype=bfloat16"]) == 1
    assert "onnx: true with dtype=bfloat16; allowed: dtype=float32" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx is not here; pip install 'shardloom\[onnx\]'"):
        graph.require_packages()
