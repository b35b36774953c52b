"""Packed attention, the target-row head and the padded vocabulary, against transformers' own full computation."""

from __future__ import annotations

import pytest
import torch

from trainer.models import Vocabulary
from trainer.models.bert import BERT
from trainer.models.gpt2 import GPT2
from trainer.models.heads import CausalModule, PretrainingModule
from trainer.tasks import Batch

LENGTHS = (7, 3, 7, 12, 1)
VOCABULARY = Vocabulary(size=101, bos=0, eos=0, pad=0)


def batch_of(lengths, generator, pretraining=False):
    tokens = sum(lengths)
    inputs = {
        "input_ids": torch.randint(0, 101, (1, tokens), generator=generator),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
    }
    if not pretraining:
        inputs["clm_targets"] = torch.randint(0, 101, (tokens,), generator=generator)
        return Batch(inputs, tuple(lengths), {"clm": tokens}, tokens)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0)[:-1].tolist()])
    inputs["token_type_ids"] = torch.randint(0, 2, (1, tokens), generator=generator)
    inputs["mlm_index"] = torch.arange(0, tokens, 4)
    inputs["mlm_targets"] = torch.randint(0, 101, (len(inputs["mlm_index"]),), generator=generator)
    inputs["nsp_index"], inputs["nsp_targets"] = starts, torch.tensor([index % 2 for index in range(len(lengths))])
    return Batch(inputs, tuple(lengths), {"mlm": len(inputs["mlm_index"]), "nsp": len(lengths)}, tokens)


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    return GPT2(layers=2, hidden=32, heads=4, positions=64).build("causal", VOCABULARY, 64)


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return BERT(layers=2, hidden=32, heads=4, positions=64).build("pretraining", VOCABULARY, 64)


def test_c14_packed_gpt_is_each_document_alone(gpt):
    """Loss and gradients of a pack equal those of transformers' own attention on each document by itself."""
    batch = batch_of(LENGTHS, torch.Generator().manual_seed(1))
    expected = torch.zeros(())
    start = 0
    for length in LENGTHS:
        logits = gpt(input_ids=batch.inputs["input_ids"][:, start : start + length], use_cache=False).logits[0]
        expected = expected + torch.nn.functional.cross_entropy(
            logits[:, :101], batch.inputs["clm_targets"][start : start + length], reduction="sum"
        )
        start += length
    expected.backward()
    reference = {name: parameter.grad.clone() for name, parameter in gpt.named_parameters()}
    gpt.zero_grad()
    loss = CausalModule(gpt, 101)(batch)["clm"]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in gpt.named_parameters():
        assert torch.allclose(parameter.grad, reference[name], atol=2e-5), name


def test_c14_packed_bert_is_each_pair_alone_and_heads_on_targets_equal_full_heads(bert):
    batch = batch_of(LENGTHS, torch.Generator().manual_seed(1), pretraining=True)
    inputs = batch.inputs
    starts = inputs["nsp_index"].tolist()
    scores, relations = [], []
    for start, length in zip(starts, LENGTHS, strict=True):
        span = slice(start, start + length)
        out = bert(input_ids=inputs["input_ids"][:, span], token_type_ids=inputs["token_type_ids"][:, span])
        scores.append(out.prediction_logits[0])
        relations.append(out.seq_relationship_logits)
    masked = torch.cat(scores)[inputs["mlm_index"]][:, :101]
    expected = {
        "mlm": torch.nn.functional.cross_entropy(masked, inputs["mlm_targets"], reduction="sum"),
        "nsp": torch.nn.functional.cross_entropy(torch.cat(relations), inputs["nsp_targets"], reduction="sum"),
    }
    sum(expected.values()).backward()
    reference = {name: parameter.grad.clone() for name, parameter in bert.named_parameters()}
    bert.zero_grad()
    module = PretrainingModule(bert, 101).train()
    for found, full in zip(module.heads(batch).values(), (torch.cat(scores)[inputs["mlm_index"]], torch.cat(relations)), strict=True):
        assert torch.allclose(found, full, rtol=1e-5, atol=1e-5)
    losses = module(batch)
    sum(losses.values()).backward()
    for term, loss in losses.items():
        assert loss.item() == pytest.approx(expected[term].item(), rel=1e-5)
    for name, parameter in bert.named_parameters():
        assert torch.allclose(parameter.grad, reference[name], atol=3e-5), name
    module.eval()
    assert module(batch)["mlm_right"].item() == (masked.argmax(-1) == inputs["mlm_targets"]).sum().item()


def test_vocabulary_padding_changes_no_loss(gpt):
    """101 entries are padded to 128 rows; what the extra rows hold is of no consequence, and they get no gradient from the head."""
    assert gpt.get_output_embeddings().weight.shape[0] == 128
    module, batch = CausalModule(gpt, 101), batch_of(LENGTHS, torch.Generator().manual_seed(1))
    before = module(batch)["clm"]
    with torch.no_grad():
        gpt.get_output_embeddings().weight[101:] = 50.0
    after = module(batch)["clm"]
    assert before.item() == after.item()
    after.backward()
    assert gpt.get_output_embeddings().weight.grad[101:].abs().max() == 0


def test_a_filler_has_no_loss_and_finite_zero_gradients(gpt, bert):
    """A micro-batch without targets still gives every parameter a gradient, so that no rank misses a collective."""
    batch = batch_of(LENGTHS, torch.Generator().manual_seed(1))
    batch.inputs |= {"clm_index": torch.empty(0, dtype=torch.long), "clm_targets": torch.empty(0, dtype=torch.long)}
    batch.targets["clm"] = 0
    pretraining = batch_of(LENGTHS, torch.Generator().manual_seed(1), pretraining=True)
    for name in ("mlm_index", "mlm_targets", "nsp_index", "nsp_targets"):
        pretraining.inputs[name] = torch.empty(0, dtype=torch.long)
    for module, one in ((CausalModule(gpt, 101), batch), (PretrainingModule(bert, 101).train(), pretraining)):
        loss = sum(module(one).values())
        loss.backward()
        assert loss.item() == 0
        assert all(parameter.grad is not None and parameter.grad.abs().max() == 0 for parameter in module.parameters())


def test_a_mask_is_refused(gpt):
    """A padding mask would be dropped silently by transformers' mask builders; it must be an error instead."""
    CausalModule(gpt, 101)
    with pytest.raises(ValueError, match="doc_lens"):
        gpt(input_ids=torch.zeros(2, 5, dtype=torch.long))
