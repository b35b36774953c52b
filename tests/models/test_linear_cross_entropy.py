"""Head and loss together, chunk by chunk: the losses and gradients of all logits at once, whose memory is never taken."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tests import tiny
from tests.loops import single
from tests.models import test_denoising
from tests.models.test_families import masked_batch
from tests.models.test_packed import LENGTHS, batch_of
from tests.models.test_pretrained import made
from trainer.config import Head
from trainer.models import layout
from trainer.models.head import LINEAR, last_linear
from trainer.models.heads import CausalModule, DenoisingModule, MaskedModule, chunk_head, loss_sum
from trainer.models.linear_cross_entropy import linear_cross_entropy

# Beside what all logits at once give, a chunk's bf16 gradients are each rounded once more as they are added up.
NOISE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def tensors(rows, width, vocabulary, padding, bias, device="cpu"):
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(rows, width, generator=draw), torch.randn(vocabulary + padding, width, generator=draw) * 0.3
    found = (hidden, weight, *([torch.randn(len(weight), generator=draw)] if bias else []))
    return [one.to(device).requires_grad_() for one in found], draw


def apart(one, other):
    return ((one - other).norm() / other.norm().clamp(min=1e-6)).item()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 12), at_once=st.integers(1, 14), width=st.integers(1, 9), vocabulary=st.integers(1, 40), padding=st.integers(0, 5),
    bias=st.booleans(), dtype=st.sampled_from(list(NOISE)), weighed=st.floats(1e-3, 8.0),
)  # fmt: skip
def test_chunks_give_the_loss_and_the_gradients_of_all_logits(device, rows, at_once, width, vocabulary, padding, bias, dtype, weighed):
    inputs, draw = tensors(rows, width, vocabulary, padding, bias, device)
    targets = torch.randint(0, vocabulary, (rows,), generator=draw).to(device)
    # Another shape of product may be another kernel there, which adds up in another order before it rounds.
    noise = NOISE[dtype] * (4 if device == "cuda" else 1)
    found = []
    for chunked in (True, False):
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            hidden, weight, offset = (*inputs, None)[:3]
            if chunked:
                loss = linear_cross_entropy(hidden, weight, offset, targets, vocabulary, at_once)
            else:
                loss = loss_sum(F.linear(hidden, weight, offset), targets, vocabulary)
        assert loss.dtype == torch.float32
        found.append([loss, *torch.autograd.grad(loss * weighed, inputs)])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype == torch.float32 and one.shape == other.shape
        # Where one token is all that there is, gradients are nothing but noise.
        assert apart(one, other) < noise or float((one - other).abs().max()) < noise * weighed


def test_what_is_frozen_has_no_gradient_and_a_second_backward_is_refused():
    (hidden, weight, bias), _ = tensors(6, 4, 10, 2, True)
    frozen = linear_cross_entropy(hidden, weight.detach(), bias.detach(), torch.arange(6), 10, 4)
    (alone,) = torch.autograd.grad(frozen, hidden, retain_graph=True)
    whole = linear_cross_entropy(hidden, weight, bias, torch.arange(6), 10, 4)
    assert torch.equal(alone, torch.autograd.grad(whole, hidden)[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        frozen.backward()


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(leaf.nbytes for leaf in tree_iter(found) if isinstance(leaf, torch.Tensor))])
        return found


def largest(module, batch):
    with Largest() as seen:
        sum(module(batch).values()).backward()
    return seen.most


def results(module, batch):
    """Sums in training with their gradients, and sums in evaluation."""
    module.train().zero_grad()
    torch.manual_seed(0)  # of dropout
    sums = module(batch)
    sum(weight * value for weight, value in enumerate(sums.values(), start=1)).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}
    with torch.no_grad():
        held_out = module.eval()(batch)
    found = {f"train {name}": value.item() for name, value in sums.items()} | {name: value.item() for name, value in held_out.items()}
    return found, gradients


def check(module, batch, chunk_mib=0.002):
    for regularized in (False, True):
        module.regularized, module.chunk_bytes = regularized, None
        wanted, reference = results(module, batch)
        chunk_head(module, Head(chunk_mib=chunk_mib))
        found, gradients = results(module, batch)
        assert found == pytest.approx(wanted, rel=1e-5) and gradients.keys() == reference.keys()
        assert tiny.distance(gradients, reference) < 1e-5


FAMILIES = sorted({(name, True) for name in layout.CAUSAL} | {(name, False) for name in layout.MASKED})


@pytest.mark.parametrize(("family", "causal"), FAMILIES)
def test_every_family_with_a_linear_head_has_the_same_sums_in_chunks(family, causal):
    model = made(family, causal)
    assert family in LINEAR and last_linear(model) is not None
    batch = batch_of(LENGTHS, torch.Generator().manual_seed(1)) if causal else masked_batch(LENGTHS)
    batch.inputs["input_ids"].clamp_(min=1)
    check((CausalModule if causal else MaskedModule)(model, 101), batch)


def test_pairs_and_bert_s_two_objectives_are_the_same_in_chunks():
    check(DenoisingModule(test_denoising.t5(), 101), test_denoising.batch_of(torch.Generator().manual_seed(1)))
    check(tiny.module("bert"), tiny.batch("bert", tiny.rows(0)))


def test_a_head_that_is_more_than_a_product_gives_its_logits():
    """BART adds a bias to its logits, Granite scales them: neither is in the list, and both are trained as without chunks."""
    pairs = DenoisingModule(test_denoising.bart(), 101)
    assert last_linear(pairs.model) is None and last_linear(made("granite", True)) is None
    check(pairs, test_denoising.batch_of(torch.Generator().manual_seed(1)))


def test_the_logits_of_a_micro_batch_are_never_there():
    module, batch = tiny.module("gpt"), tiny.batch("gpt", tiny.rows(0) * 40)
    whole = 4 * batch.targets["clm"] * tiny.VOCABULARY
    assert largest(copy.deepcopy(module), batch) >= whole
    chunk_head(module, Head(chunk_mib=0.01))
    # What is left is of the blocks, whose feed-forward layer is twice as wide as this vocabulary.
    module.model.transformer.h = torch.nn.ModuleList()
    assert largest(module, batch) < whole / 1.5


@pytest.mark.parametrize("kind", tiny.WEIGHTS)
@pytest.mark.parametrize(("precision", "noise"), [("fp32", 1e-5), ("bf16", 2e-3)])
def test_a_run_in_chunks_has_the_curve_of_one_without(kind, precision, noise):
    """tiny.place trains in chunks unless it is told otherwise, so that what is held beside one device is, under every strategy."""
    curves = [
        tiny.train(tiny.place("single", kind, single(), precision=precision, **own), kind, range(8), 2) for own in ({}, {"chunk_mib": None})
    ]
    assert curves[0]["losses"] == pytest.approx(curves[1]["losses"], rel=noise)
    assert curves[0]["losses"] != curves[1]["losses"]
