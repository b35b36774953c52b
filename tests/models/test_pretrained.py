"""Models of any family from a directory: packed where that keeps documents apart, else padded, else refused; the same loss either way."""

from __future__ import annotations

import pytest
import torch

from tests import loops
from tests.models.test_families import alone, check_own_loss, check_parity, masked_batch
from tests.models.test_packed import LENGTHS, VOCABULARY, batch_of
from trainer.bench.syncs import HostSyncs
from trainer.choices import ConfigError
from trainer.models import layout
from trainer.models.deferred import real_copy
from trainer.models.heads import CausalModule, LanguageModule, MaskedModule
from trainer.models.layout import Packed
from trainer.models.padded import Padded, Unpacked
from trainer.models.pretrained import Pretrained, dropouts_of
from trainer.run import RunDir
from trainer.strategies.sharded import blocks
from trainer.verbs.evaluate import held_out

# Sizes by the names of most configurations; a configuration takes what it knows of them, and its own beside.
SIZES = {
    "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
OWN = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 5},
    "qwen2": {"num_key_value_heads": 2, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 5},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "modernbert": {"local_attention": 8, "cls_token_id": 0, "sep_token_id": 0},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "granite": {"logits_scaling": 3.0},
    "deberta-v2": {"pos_att_type": ["p2c", "c2p"], "relative_attention": True},
}


def config_of(family):
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **(SIZES | OWN.get(family, {})))


def made(family, causal):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    torch.manual_seed(0)
    return (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(config_of(family), attn_implementation="eager").eval()


def check(family, causal):
    """Logits, loss and gradients of a packed batch against transformers' own of each document; the layout that was chosen."""
    model = made(family, causal)
    batch = batch_of(LENGTHS, torch.Generator().manual_seed(1)) if causal else masked_batch(LENGTHS)
    batch.inputs["input_ids"].clamp_(min=VOCABULARY.pad + 1)
    check_own_loss(made(family, causal), batch, causal)
    expected = alone(model, batch.inputs["input_ids"], LENGTHS)
    module: LanguageModule = CausalModule(model, 101) if causal else MaskedModule(model, 101)
    assert torch.allclose(module.logits(batch, None), expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))
    term = "clm" if causal else "mlm"
    rows = slice(None) if causal else batch.inputs["mlm_index"]
    check_parity(model, module, batch, term, expected[rows], batch.inputs[f"{term}_targets"])
    return module


@pytest.mark.parametrize(
    ("family", "causal"), [*((name, True) for name in sorted(layout.CAUSAL)), *((name, False) for name in sorted(layout.MASKED))]
)
def test_c14_known_families_are_packed(family, causal, monkeypatch):
    """What the list says holds, and the proof at start would find it: windows and grouped heads, scaled and transformed heads."""
    module = check(family, causal)
    assert isinstance(module.layout, Packed) and not module.notice
    monkeypatch.setattr(layout, "CAUSAL" if causal else "MASKED", frozenset())
    assert layout.layout_of(made(family, causal), causal)[0] == module.layout


@pytest.mark.parametrize(
    ("family", "causal", "expected"),
    [
        ("granite", True, Packed),
        ("bloom", True, Padded),
        ("gpt_neo", True, Padded),
        ("ernie", False, Packed),
        ("deberta-v2", False, Padded),
    ],
)
def test_c14_an_unknown_family_is_packed_by_proof_or_padded(family, causal, expected):
    module = check(family, causal)
    assert isinstance(module.layout, expected)
    assert module.notice.startswith(f"{family}: ") and ("padded" in module.notice) == (expected is Padded)


def test_what_cannot_be_kept_apart_or_sees_ahead_is_refused():
    """A convolution reads over the border of a document, padded or not; a two-sided model has nothing to predict."""
    with pytest.raises(ConfigError, match=r"convbert: its documents influence each other, packed .* and padded"):
        MaskedModule(made("convbert", False), 101)
    with pytest.raises(ConfigError, match="a token sees those after it"):
        CausalModule(made("bert", True), 101)


def test_unpacking_puts_every_token_in_its_place_without_waiting():
    lengths, tokens = (3, 1, 4), torch.tensor([5, 6, 7, 8, 1, 2, 3, 4])
    with HostSyncs() as counted:
        unpacked = Unpacked.of(lengths, torch.device("cpu"))
        rows = unpacked.rows(tokens, 0)
    assert counted.total == 0
    assert rows.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0], [1, 2, 3, 4]]
    assert rows.flatten()[unpacked.home].tolist() == tokens.tolist() and unpacked.real.sum() == 8


def test_a_padded_step_waits_for_nothing():
    """With torch's attention, whose mask transformers would otherwise look at on the host."""
    model = made("llama", True)
    layout.use_attention(model, "padded")
    module = CausalModule.__new__(CausalModule)
    torch.nn.Module.__init__(module)
    module.layout, module.model, module.vocabulary_size, module.regularized = Padded(0), model, 101, False
    module.chunk_bytes = None
    batch = batch_of(LENGTHS, torch.Generator().manual_seed(1))
    with HostSyncs() as counted:
        module(batch)["clm"].backward()
    assert counted.total == 0, counted.counts


@pytest.mark.parametrize("family", ["gpt_neox", "electra", "distilbert", "bloom", "deberta-v2"])
def test_units_of_a_sharded_model_are_its_transformer_blocks(family):
    model = made(family, family in ("gpt_neox", "bloom"))
    found = blocks(model)
    assert len(found) == 2 and len({type(block) for block in found}) == 1
    assert sum(parameter.numel() for block in found for parameter in block.parameters()) > 0.5 * sum(
        parameter.numel() for name, parameter in model.named_parameters() if ".0." in name or ".1." in name
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return loops.write_texts(tmp_path_factory.mktemp("texts"))


@pytest.mark.parametrize(
    ("family", "task", "padded"),
    [("gpt_neox", "clm", False), ("bloom", "clm", True), ("electra", "mlm", False), ("deberta-v2", "mlm", True)],
)
def test_a_directory_is_trained_exported_and_evaluated(tmp_path, texts, capsys, family, task, padded):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    config = config_of(family)
    config.vocab_size = 320
    torch.manual_seed(0)
    (AutoModelForCausalLM if task == "clm" else AutoModelForMaskedLM).from_config(config).save_pretrained(tmp_path / "hub")
    words = ("model=pretrained", f"model.path={tmp_path / 'hub'}", f"task={task}", "optim.lr=1e-2", "steps=12")
    path = loops.ready(tmp_path, texts, *words, sizes=())
    training = loops.training(loops.single(), path)
    assert (f"{family}: documents are padded" in capsys.readouterr().out) == padded
    training.loop()
    training.finish()
    assert loops.losses(path)[-1] < 0.95 * loops.losses(path)[0]
    recorded, anew = RunDir(path).summary, held_out(RunDir(path), "cpu")
    assert anew["eval_loss"] == pytest.approx(recorded["eval_loss"], rel=1e-4)


def test_a_directory_without_the_head_or_the_positions_is_refused(tmp_path):
    config_of("roberta").save_pretrained(tmp_path)
    chosen = Pretrained(path=str(tmp_path))
    chosen.verify("masked", VOCABULARY, 63)
    with pytest.raises(ConfigError, match="longer than the 63 positions"):
        chosen.verify("masked", VOCABULARY, 64)
    with pytest.raises(ConfigError, match="there is no pretraining head, but causal and masked"):
        chosen.verify("pretraining", VOCABULARY, 8)


@pytest.mark.parametrize(
    ("family", "objective"),
    [("gpt2", "causal"), ("llama", "causal"), ("opt", "causal"), ("bert", "masked"), ("modernbert", "masked"), ("t5", "denoising")],
)
def test_dropout_of_a_directory_is_that_of_its_configuration_or_another(tmp_path, family, objective):
    config = config_of(family)
    for name in dropouts_of(config):
        setattr(config, name, 0.25)
    if family == "opt":
        config.layerdrop = 0.5
    if family == "t5":
        config.decoder_start_token_id = 0
    config.save_pretrained(tmp_path)

    def loss(dropout):
        chosen = Pretrained(path=str(tmp_path), dropout=dropout)
        chosen.verify(objective, VOCABULARY, 16)
        model = real_copy(chosen.skeleton(objective, VOCABULARY, 16)).train()
        ids = torch.arange(3, 19)[None]
        return model, [model(input_ids=ids, labels=ids).loss.item() for _ in range(3)]

    model, still = loss(0.0)
    assert len(set(still)) == 1 and getattr(model.config, "layerdrop", 0.0) == 0.0
    for dropout, wanted in ((0.5, 0.5), (None, 0.25)):
        model, drawn = loss(dropout)
        assert len(set(drawn)) > 1 and {getattr(model.config, name) for name in dropouts_of(model.config)} == {wanted}
        assert getattr(model.config, "layerdrop", 0.5) == 0.5, "whole layers are another matter"


def test_a_dropout_that_there_is_none_of_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1}')
    with pytest.raises(ConfigError, match=r"model\.dropout: 0\.1, but the configuration of .* names no dropout; leave it out"):
        Pretrained(path=str(tmp_path), dropout=0.1).verify("causal", VOCABULARY, 16)
    Pretrained(path=str(tmp_path), dropout=0.0).verify("causal", VOCABULARY, 16)
    with pytest.raises(ConfigError, match=r"model\.dropout: 1\.0"):
        Pretrained(path=str(tmp_path), dropout=1.0)
