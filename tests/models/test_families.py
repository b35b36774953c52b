"""Each family by its sizes: parameter counts, parity with transformers' own attention, a small real training."""

from __future__ import annotations

import pytest
import torch

from tests import loops
from tests.models.test_packed import LENGTHS, VOCABULARY, batch_of
from trainer import compose
from trainer.choices import ConfigError, find, load_choices
from trainer.models import Vocabulary
from trainer.models.heads import CausalModule

load_choices()
TINY = {"llama": {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "positions": 64}}
# YAML → parameters in millions, with GPT-2's vocabulary of 50,257 (Llama 2's own of 32,000 for its 7B).
COUNTS = {"llama_124m": 124, "llama_350m": 350, "llama_774m": 774, "llama_1b": 1000, "llama_7b": 6738}


def built(name, objective, vocabulary=VOCABULARY, **sizes):
    torch.manual_seed(0)
    model = find("model", name)(**(TINY[name] | sizes)).build(objective, vocabulary, 64)
    model.set_attn_implementation("eager")
    return model


def alone(model, ids, lengths):
    """transformers' own logits of each document by itself, one after the other: `[tokens, vocabulary]`."""
    return torch.cat([model(input_ids=part[None]).logits[0] for part in ids[0].split(list(lengths))])


@pytest.mark.parametrize("name", COUNTS)
def test_a_size_has_the_parameters_of_its_name(name):
    size = 32_000 if name == "llama_7b" else 50_257
    with torch.device("meta"):
        model = compose(f"model={name}", "steps=1").model.build("causal", Vocabulary(size, 0, 0, 0), 256)
    assert model.num_parameters() / 1e6 == pytest.approx(COUNTS[name], rel=0.03)


@pytest.mark.parametrize("sizes", [{}, {"kv_heads": 4, "tie_embeddings": False}, {"kv_heads": 1, "rope_theta": 500.0}])
def test_c14_packed_llama_is_each_document_alone(sizes):
    model = built("llama", "causal", **sizes)
    batch = batch_of(LENGTHS, torch.Generator().manual_seed(1))
    expected = alone(model, batch.inputs["input_ids"], LENGTHS)
    loss = torch.nn.functional.cross_entropy(expected[:, :101], batch.inputs["clm_targets"], reduction="sum")
    loss.backward()
    reference = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    found = CausalModule(model, 101)(batch)["clm"]
    found.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, reference[name], atol=2e-5), name


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"heads": 5}, "model.hidden: 32 is not a multiple of model.heads: 5"),
        ({"hidden": 12}, "must be even"),
        ({"kv_heads": 3}, "not a multiple of model.kv_heads: 3"),
        ({"rope_theta": 0.0}, "model.rope_theta: 0.0"),
    ],
)
def test_shapes_that_llama_cannot_have_are_refused(sizes, told):
    with pytest.raises(ConfigError, match=told):
        find("model", "llama")(**(TINY["llama"] | sizes))


def test_llama_trains_is_exported_and_writes(tmp_path):
    """The whole way on real text: the loss falls, and `model/` goes on with a prompt."""
    from trainer.generation import open_writer

    texts = tmp_path / "texts"
    texts.mkdir()
    path = loops.ready(tmp_path, loops.write_texts(texts), "model=llama_tiny", "model.kv_heads=1", "steps=30", "optim.lr=1e-2")
    training = loops.training(loops.single(), path)
    training.loop()
    training.finish()
    losses = loops.losses(path)
    assert losses[-1] < 0.7 * losses[0]
    writer = open_writer(path / "model", 32)
    assert writer.model.config.model_type == "llama" and writer.write("alpha", 8, temperature=0).startswith("alpha")


def test_muon_takes_the_maps_of_llama_and_not_its_embedding():
    from trainer.optim import is_hidden_matrix

    tables = {name for name, parameter in built("llama", "causal", tie_embeddings=False).named_parameters()
              if parameter.ndim == 2 and not is_hidden_matrix(name, parameter)}  # fmt: skip
    assert tables == {"model.embed_tokens.weight", "lm_head.weight"}
