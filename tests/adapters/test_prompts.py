"""What stands in front of documents computes what PEFT computes of each document alone; it is trained, exported and read back."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.adapters.shared import adapted, finish
from tests.loops import losses, ready, single, train, training
from trainer.adapters.prompts import _TAKE_KEYS, USES, Prefix, Prompt, PTuning
from trainer.checkpoint.opening import shapes_in
from trainer.choices import ConfigError
from trainer.export import load_exported
from trainer.generation import open_writer
from trainer.models.examples import ClassificationModule, TaggingModule
from trainer.models.front import embedding_of
from trainer.models.heads import CausalModule
from trainer.models.layout import CAUSAL, MASKED, layout_of, pairs_of
from trainer.models.objectives import with_head
from trainer.models.packed import use_attention
from trainer.run import RunDir
from trainer.tasks import Batch
from trainer.verbs.evaluate import held_out

LENGTHS = (5, 9, 1, 5)
KINDS = {
    "prompt": Prompt(count=3),
    "p_tuning": PTuning(count=3, hidden=12),
    "prefix": Prefix(count=3),
    "projection": Prefix(count=3, projection=12),
}
HEADS = ("causal", "masked", "sequence_classification", "token_classification")


def network(family: str, objective: str) -> Any:
    from transformers import CONFIG_MAPPING

    ids: dict[str, Any] = {
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "decoder_start_token_id": 1,
    }
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    named = {"n_embd": 16, "n_layer": 2, "n_head": 2, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "ffn_dim": 24}
    other = {"word_embed_proj_dim": 16, "embedding_size": 8, "sliding_window": 4}
    grouped: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 8} if family in ("llama", "mistral", "qwen2", "qwen3", "olmo2") else {}
    known = CONFIG_MAPPING[family]()
    given: dict[str, Any] = {name: value for name, value in {**sizes, **named, **other}.items() if hasattr(known, name)}
    config = CONFIG_MAPPING[family](**given, **ids, **grouped)
    torch.manual_seed(0)
    return with_head(objective, config, {"num_labels": 3} if "classification" in objective else {}).eval()


def test_an_encoder_reads_virtual_tokens_too():
    """Of an encoder–decoder model, whose decoder attends to them."""
    from peft import get_peft_model

    model = network("t5", "denoising")
    KINDS["p_tuning"].adapt(model)
    layout, _ = pairs_of(model)
    draw = torch.Generator().manual_seed(0)
    read, written = (torch.randint(5, 64, (1, size), generator=draw) for size in (9, 6))
    given = Batch({"input_ids": read, "decoder_ids": written}, (5, 4), {}, decoded=(2, 4))
    encoder = embedding_of(model).front_encoder
    plain = network("t5", "denoising")
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "front_encoder" not in name})
    settings = model.peft_config["default"]
    settings.task_type = "SEQ_2_SEQ_LM"
    wrapped: Any = get_peft_model(plain, settings).eval()
    wrapped.prompt_encoder["default"] = encoder
    with torch.no_grad():
        found = layout.logits(model, given, None).split(given.decoded)
        for logits, ids, decoded in zip(found, read.split((5, 4), 1), written.split((2, 4), 1), strict=True):
            before = torch.nn.functional.pad(decoded[:, :-1], (1, 0), value=1)
            wanted = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=before).logits[0]
            torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)


def batch(causal: bool) -> Batch:
    draw = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(5, 64, (1, sum(LENGTHS)), generator=draw)}
    inputs["position_ids"] = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return Batch(inputs, LENGTHS, {})


def ours(model: Any, objective: str, given: Batch) -> list[torch.Tensor]:
    """Logits of each document, packed as in training."""
    if objective == "sequence_classification":
        return list(ClassificationModule(model, "single_label_classification", None, 0.0).eval().outputs(given).logits)
    if objective == "token_classification":
        padded = TaggingModule(model, 0.0).eval().outputs(given).logits
        return [row[:length] for row, length in zip(padded, LENGTHS, strict=True)]
    layout, _ = layout_of(model, objective == "causal")
    return list(layout.logits(model, given.inputs, given.lengths, None).split(LENGTHS))


def theirs(model: Any, objective: str, given: Batch) -> list[torch.Tensor]:
    """Logits that PEFT's own wrapper gives of each document alone."""
    from peft import get_peft_model

    encoder = (model if hasattr(model, "prefix") else embedding_of(model)).front_encoder
    plain = copy.deepcopy(model)
    use_attention(plain, "eager")
    settings = plain.__dict__.pop("peft_config")["default"]
    settings.task_type = USES[objective]
    for holder in (plain, embedding_of(plain)):
        holder._modules.pop("front_encoder", None)
    table = embedding_of(plain)
    if hasattr(table, "virtual_tokens"):
        table.__class__ = type(table).__mro__[1]
    wrapped: Any = get_peft_model(plain, settings)
    wrapped.prompt_encoder["default"] = encoder
    wrapped.eval()
    found = []
    for ids in given.inputs["input_ids"].split(LENGTHS, dim=1):
        logits = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        found.append(logits if objective == "sequence_classification" else logits[-ids.shape[1] :])
    return found


@pytest.mark.parametrize("objective", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_packed_document_gives_what_peft_gives_of_it_alone(kind, objective):
    from trainer.models.objectives import has_head

    families = sorted(MASKED) if objective == "masked" else sorted(CAUSAL) if objective == "causal" else sorted(CAUSAL | MASKED)
    tried = 0
    for family in families:
        if isinstance(KINDS[kind], Prefix) and family not in _TAKE_KEYS:
            continue
        try:
            model = network(family, objective)
        except ValueError:
            continue  # no such head
        assert has_head(model.config, objective)
        KINDS[kind].adapt(model)
        given = batch(objective == "causal")
        with torch.no_grad():
            for found, wanted in zip(ours(model, objective, given), theirs(model, objective, given), strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5, msg=lambda text, family=family: f"{family}: {text}")
        tried += 1
    assert tried >= 5


RUNS = {
    "prompt": ("adapter=prompt", "adapter.count=4", "optim.lr=3e-2"),
    "p_tuning": ("adapter=p_tuning", "adapter.count=4", "adapter.hidden=16", "optim.lr=1e-2"),
    "prefix": ("adapter=prefix", "adapter.count=4", "adapter.projection=16", "optim.lr=1e-2"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_it_is_trained_resumed_exported_evaluated_and_writes(tmp_path, others, base, kind):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    whole = adapted(tmp_path / "whole", others, base, adapter=RUNS[kind])
    finish(whole)
    assert all(".front_encoder." in name for name in shapes_in(whole / "checkpoints" / "step-0000006"))
    parted = adapted(tmp_path / "parted", others, base, adapter=RUNS[kind])
    train(single(), parted, last=3)
    again = train(single(), parted)
    here = training(single(), whole)
    with here.placement.gathered() as module:
        assert all(torch.equal(again[name], tensor) for name, tensor in module.state_dict().items())
    step = here.loader.step(0)
    with torch.no_grad():
        after = sum(here.placement.module(batch)["clm"] for batch in step.micro_batches) / step.targets["clm"]
    assert after < losses(whole)[0] - 1e-4
    tokens = torch.randint(5, 250, (1, 9), generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(base / "model")
    peft = PeftModel.from_pretrained(plain, str(whole / "model")).eval()
    trained = CausalModule(load_exported(whole / "model", bare=True).eval(), 300)
    given = Batch({"input_ids": tokens, "position_ids": torch.arange(9)[None]}, (9,), {})
    with torch.no_grad():
        # Beside the checkpoint, what is loaded by PEFT and by us is the same.
        logits = peft(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -9:]
        torch.testing.assert_close(trained.logits(given, None), logits, atol=1e-5, rtol=1e-5)
        here.placement.module.eval()
        torch.testing.assert_close(here.placement.module.inner.logits(given, None)[:, : logits.shape[1]], logits, atol=1e-5, rtol=1e-5)
        given_alone = load_exported(whole / "model").eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        torch.testing.assert_close(given_alone.logits[0, -9:], logits, atol=1e-5, rtol=1e-5)
        assert held_out(RunDir(whole))["eval_loss"] == pytest.approx(RunDir(whole).summary["eval_loss"], rel=1e-5)
        wanted = peft.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False)[0].tolist()
    writer = open_writer(whole / "model")
    assert writer._generated(tokens[0].tolist(), 4, 0.0, 1, 0)[9:] == wanted[-4:]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["adapter=prompt", "model.positions=40"],
            r"adapter.count: 20 virtual .* of 32 are more than the 40 positions.*sequence_length=20",
        ),
        (["adapter=prompt", "task=mlm_nsp", "model=bert_tiny"], r"adapter=prompt: PEFT.* has no class for a pretraining head"),
        (["adapter=prefix", "task=mlm", "model=modernbert_tiny"], r"adapter=prefix: .* a modernbert none.*bert, camembert"),
        (["adapter=prompt", "adapter.first=zero"], r"adapter.first: 'zero'; allowed: vocabulary, normal"),
        (["adapter=prefix", "adapter.count=0"], r"adapter.count: 0; allowed: above 0"),
    ],
)
def test_what_cannot_be_had_is_told_before_launch(tmp_path, texts, words, told):
    with pytest.raises(ConfigError, match=told):
        ready(tmp_path, texts, *words)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_texts_are_written_behind_it_side_by_side_as_alone(kind):
    from trainer.models.writing import Decoding, PromptWriting

    model = network("gpt2", "causal")
    KINDS[kind].adapt(model)
    module = PromptWriting(model, 64, False, "seq2seq", Decoding(5, {})).eval()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    whole = batch(True)
    prompts = tuple(max(1, length - 1) for length in LENGTHS)
    settings = Decoding(5, {}).settings(model, 64)
    found = []
    with torch.no_grad(), module._attending():
        together = module.written(replace(whole, prompts=prompts), settings)
        for ids, size in zip(whole.inputs["input_ids"].split(LENGTHS, dim=1), prompts, strict=True):
            one = Batch({"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None]}, (ids.shape[1],), {}, prompts=(size,))
            found.append(module.written(one, settings)[0])
        plain = module.generated(settings, input_ids=whole.inputs["input_ids"][:, :4])[0, 4:] if kind == "prompt" else None
    for row, one in zip(together, found, strict=True):
        assert row.tolist()[: len(one)] == one.tolist()
    assert plain is None or plain.tolist() != together[0].tolist()
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
