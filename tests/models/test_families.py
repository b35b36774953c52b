"""Each family by its sizes: parameter counts, parity with transformers' own attention, a small real training."""

from __future__ import annotations

import pytest
import torch
import yaml

from tests import loops
from tests.conftest import ROOT
from tests.models.test_packed import LENGTHS, VOCABULARY, batch_of
from trainer.choices import ConfigError, find, load_choices
from trainer.generation import open_writer
from trainer.models import Vocabulary
from trainer.models.heads import CausalModule, MaskedModule
from trainer.run import RunDir
from trainer.tasks import Batch
from trainer.verbs.evaluate import held_out

load_choices()
CONF = ROOT / "conf"
SIZES = {"layers": 2, "hidden": 32, "heads": 4, "positions": 64}
TINY = {
    "gpt2": SIZES,
    "llama": SIZES | {"kv_heads": 2},
    "bert": SIZES,
    "roberta": SIZES,
    # Four tokens on each side, in every second layer; documents are longer than that.
    "modernbert": SIZES | {"layers": 4, "window": 8, "global_every": 2, "initializer_range": 0.2},
}
# YAML → the head, the vocabulary, and parameters in millions: as published, or with GPT-2's vocabulary as the name says.
COUNTS = {
    "llama_124m": ("causal", 50_257, 124), "llama_350m": ("causal", 50_257, 350), "llama_774m": ("causal", 50_257, 774),
    "llama_1b": ("causal", 50_257, 1000), "llama_7b": ("causal", 32_000, 6738),
    "roberta_base": ("masked", 50_265, 125), "roberta_large": ("masked", 50_265, 355),
    "t5_small": ("denoising", 32_128, 60.5), "t5_base": ("denoising", 32_128, 222.9),
    "modernbert_base": ("masked", 50_368, 149), "modernbert_large": ("masked", 50_368, 395),
}  # fmt: skip


def built(name, objective, **sizes):
    """A model of random weights with transformers' own eager attention."""
    torch.manual_seed(0)
    model = find("model", name)(**(TINY[name] | sizes)).build(objective, VOCABULARY, 64)
    model.set_attn_implementation("eager")
    return model


def alone(model, ids, lengths):
    """transformers' own logits of each document by itself, one after the other: `[tokens, vocabulary]`."""
    return torch.cat([model(input_ids=part[None]).logits[0] for part in ids[0].split(list(lengths))])


@pytest.mark.parametrize("name", COUNTS)
def test_a_size_has_the_parameters_of_its_name(name):
    head, size, millions = COUNTS[name]
    path = CONF / "model" / f"{name}.yaml"
    tree = yaml.safe_load(path.read_text())
    family = tree.pop("defaults")[0]
    with torch.device("meta"):
        model = find("model", family)(**tree).build(head, Vocabulary(size, 0, 0, 0), 256)
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.03)


def check_own_loss(model, batch, causal):
    """The packed loss is the one that transformers computes itself from `labels`, of each document alone, over the whole vocabulary."""
    ids, labels = batch.inputs["input_ids"][0], torch.full((sum(batch.lengths),), -100)
    if causal:  # transformers shifts the labels, so that a document's first has no place and its last token no target
        labels = batch.inputs["clm_targets"]
        starts = torch.tensor([0, *batch.lengths[:-1]]).cumsum(0)
        index = torch.tensor([row for row in range(len(ids)) if row + 1 not in starts and row + 1 < len(ids)])
        term, targets = "clm", labels[index + 1]
    else:
        term, index, targets = "mlm", batch.inputs["mlm_index"], batch.inputs["mlm_targets"]
        labels[index] = targets
    counts = [int((part[causal:] != -100).sum()) for part in labels.split(batch.lengths)]
    parts = zip(ids.split(batch.lengths), labels.split(batch.lengths), counts, strict=True)
    with torch.no_grad():
        theirs = sum(model(input_ids=part[None], labels=own[None]).loss.item() * count for part, own, count in parts if count)
        inputs = batch.inputs | {f"{term}_index": index, f"{term}_targets": targets}
        module = (CausalModule if causal else MaskedModule)(model, model.get_output_embeddings().weight.shape[0])
        ours = module(Batch(inputs, batch.lengths, {term: len(targets)}, batch.tokens))[term].item()
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_the_loss_is_the_one_that_transformers_computes(name):
    causal = name in ("gpt2", "llama")
    batch = batch_of(LENGTHS, torch.Generator().manual_seed(1)) if causal else masked_batch(LENGTHS)
    check_own_loss(built(name, "causal" if causal else "masked"), batch, causal)


def check_parity(model, module, batch, term, expected, targets):
    """Loss and gradients of the packed row are those of the logits of each document alone."""
    loss = torch.nn.functional.cross_entropy(expected[:, :101], targets, reduction="sum")
    loss.backward()
    reference = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    found = module(batch)[term]
    found.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    scale = max(gradient.abs().max() for gradient in reference.values())
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, reference[name], atol=1e-5 * float(scale)), name


@pytest.mark.parametrize("sizes", [{}, {"kv_heads": 4, "tie_embeddings": False}, {"kv_heads": 1, "rope_theta": 500.0}])
def test_c14_packed_llama_is_each_document_alone(sizes):
    model = built("llama", "causal", **sizes)
    batch = batch_of(LENGTHS, torch.Generator().manual_seed(1))
    expected = alone(model, batch.inputs["input_ids"], LENGTHS)
    module = CausalModule(model, 101)
    assert torch.allclose(module.logits(batch, None), expected, rtol=1e-5, atol=1e-5)
    check_parity(model, module, batch, "clm", expected, batch.inputs["clm_targets"])


@pytest.mark.parametrize("lengths", [(7, 3, 7, 12, 1), (15, 15)], ids=["ragged", "equal"])
@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_c14_packed_masked_models_are_each_document_alone(name, lengths):
    """ModernBERT's documents are longer than the window of its local layers; RoBERTa counts positions from the one after padding."""
    model = built(name, "masked")
    batch = masked_batch(lengths)
    index = batch.inputs["mlm_index"]
    expected = alone(model, batch.inputs["input_ids"], lengths)
    module = MaskedModule(model, 101).train()
    assert torch.allclose(module.logits(batch, None), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(module.logits(batch, index), expected[index], rtol=1e-5, atol=1e-5)
    check_parity(model, module, batch, "mlm", expected[index], batch.inputs["mlm_targets"])
    with torch.no_grad():
        assert module.eval()(batch)["mlm_right"] == (expected[index, :101].argmax(-1) == batch.inputs["mlm_targets"]).sum()


def masked_batch(lengths):
    batch = batch_of(lengths, torch.Generator().manual_seed(1), pretraining=True)
    # The id of padding, from which RoBERTa counts, does not occur in documents.
    inputs = {name: tensor for name, tensor in batch.inputs.items() if not name.startswith(("nsp", "token_type"))}
    inputs["input_ids"] = inputs["input_ids"].clamp(min=VOCABULARY.pad + 1)
    return Batch(inputs, batch.lengths, {"mlm": batch.targets["mlm"]}, batch.tokens)


def test_a_window_that_reaches_everywhere_is_no_window():
    """Local layers with a window of twice the longest document give what layers that see all give."""
    batch = masked_batch((9, 4))
    losses = [
        MaskedModule(built("modernbert", "masked", local_theta=160_000.0, **sizes), 101)(batch)["mlm"].item()
        for sizes in ({"window": 20}, {"global_every": 1}, {"window": 8})
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("name", "sizes", "told"),
    [
        ("llama", {"heads": 5}, "model.hidden: 32 is not a multiple of model.heads: 5"),
        ("llama", {"hidden": 12}, "must be even"),
        ("llama", {"kv_heads": 3}, "not a multiple of model.kv_heads: 3"),
        ("llama", {"rope_theta": 0.0}, "model.rope_theta: 0.0"),
        ("modernbert", {"hidden": 12}, "not an even multiple"),
        ("modernbert", {"window": 7}, "model.window: 7; allowed: even"),
        ("modernbert", {"global_every": 0}, "model.global_every: 0"),
    ],
)
def test_shapes_that_a_family_cannot_have_are_refused(name, sizes, told):
    with pytest.raises(ConfigError, match=told):
        find("model", name)(**(TINY[name] | sizes))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return loops.write_texts(tmp_path_factory.mktemp("texts"))


def trained(tmp_path, texts, *words):
    """A run that went the whole way on real text; its loss fell."""
    path = loops.ready(tmp_path, texts, "steps=30", "optim.lr=1e-2", *words)
    training = loops.training(loops.single(), path)
    training.loop()
    training.finish()
    losses = loops.losses(path)
    assert losses[-1] < 0.8 * losses[0]
    return path


def test_llama_trains_is_exported_and_writes(tmp_path, texts):
    path = trained(tmp_path, texts, "model=llama_tiny", "model.kv_heads=1")
    writer = open_writer(path / "model", 32)
    assert writer.model.config.model_type == "llama" and writer.write("alpha", 8, temperature=0).startswith("alpha")


@pytest.mark.parametrize("words", [["model=modernbert_tiny"], ["model=roberta_tiny", "tokenizer.kind=bpe", "task.whole_word=true"]])
def test_masked_models_train_are_exported_evaluated_and_fill(tmp_path, texts, words):
    path = trained(tmp_path, texts, "task=mlm", *words)
    recorded = RunDir(path).summary
    anew = held_out(RunDir(path), "cpu")
    assert anew["eval_loss"] == pytest.approx(recorded["eval_loss"], rel=1e-5)
    assert anew["masked_accuracy"] == recorded["masked_accuracy"] and recorded["masked_accuracy_from_neighbour"] > 0
    writer = open_writer(path / "model", 32)
    assert writer.fills and len(writer.fill("alpha [MASK] gamma.")[0]) == 5


def test_muon_takes_the_maps_of_llama_and_not_its_embedding():
    from trainer.optim import is_hidden_matrix

    tables = {name for name, parameter in built("llama", "causal", tie_embeddings=False).named_parameters()
              if parameter.ndim == 2 and not is_hidden_matrix(name, parameter)}  # fmt: skip
    assert tables == {"model.embed_tokens.weight", "lm_head.weight"}
