"""Compiled blocks: the same losses and gradients, one graph for every size of batch, under every strategy that can have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from tests import loops, tiny
from tests.distributed import run_distributed
from trainer.choices import ConfigError
from trainer.compiling import Compile, refuse_uncompilable
from trainer.composition import compose
from trainer.config import Head, Recompute
from trainer.models import Vocabulary, opaque, packed
from trainer.models.compiled import compile_blocks
from trainer.models.heads import CausalModule, MaskedModule, chunk_head
from trainer.models.modernbert import ModernBERT
from trainer.models.recompute import recompute_blocks

LENGTHS = (7, 3, 7, 12, 1)


@pytest.mark.parametrize(
    ("causal", "window", "dropout", "scaling"), [(True, None, 0.0, None), (False, 4, 0.0, 0.3), (True, None, 0.3, None)]
)
def test_the_operation_is_packed_attention(causal, window, dropout, scaling):
    """Its dropout too: backward draws again what forward has drawn."""
    settings = (causal, window, dropout, scaling)
    found = []
    for attend in (
        lambda *tensors: packed.attention(*tensors, LENGTHS, *settings, None),
        lambda *tensors: opaque.attend(*tensors, opaque.numbered(LENGTHS), *settings)[0],
    ):
        draw = torch.Generator().manual_seed(0)
        tensors = [torch.randn(1, 2, sum(LENGTHS), 8, generator=draw).requires_grad_() for _ in range(3)]
        torch.manual_seed(1)
        out = attend(*tensors)
        torch.rand(3)  # what else draws between forward and backward
        out.backward(torch.randn(out.shape, generator=draw))
        found.append([out.detach(), *(tensor.grad for tensor in tensors)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_lengths_are_found_by_their_number_as_long_as_they_are_used():
    first = opaque.numbered((5, 4))
    for size in range(opaque._KEPT):
        opaque.numbered((1, size + 1))
        assert opaque.numbered((5, 4)) is first and opaque._lengths[int(first)] == (5, 4)
    assert len(opaque._lengths) == len(opaque._numbers) <= opaque._KEPT


def compared(plain, module, compiler, batches, kind):
    """Both on batches of different sizes: losses and gradients, to float noise; and evaluation, to the last bit."""
    for batch in batches:
        losses = []
        for one in (plain, module):
            one.zero_grad()
            loss = sum(one.train()(batch).values())
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        for name, parameter in plain.named_parameters():
            other = module.get_parameter(name).grad
            assert torch.allclose(parameter.grad, other, rtol=1e-4, atol=1e-6), (kind, name)
    with torch.no_grad():
        assert all(torch.equal(value, module.eval()(batches[0])[name]) for name, value in plain.eval()(batches[0]).items())
    return compiler.figures()


def test_ragged_batches_share_one_graph():
    """Full micro-batches have one that knows their size, and another where documents are rows; blocks share them, no batch adds one. The
    loss has one more."""
    plain, module = tiny.module("gpt"), tiny.module("gpt")
    batches = [tiny.batch("gpt", tiny.rows(step)) for step in range(6)]
    for lengths in ((12, 12, 12), (20, 9, 7), (30, 6)):
        batches.append(tiny.batch("gpt", [np.arange(length + 1) for length in lengths]))
    compiler = compile_blocks(module, Compile(blocks=True, backend="aot_eager"), full=(12, 12, 12))
    recompute_blocks(module, Recompute(every=2))
    chunk_head(module, Head(0.005))
    assert list(plain.state_dict()) == list(module.state_dict())
    figures = compared(plain, module, compiler, batches, "gpt")
    assert (figures["graphs"], figures["graph_breaks"]) == (4, 0)
    compiler.settle()
    compared(plain, module, compiler, batches[::-1], "gpt")
    assert compiler.figures()["recompiles"] == 0 and compiler.complaint() is None


def test_layers_of_several_kinds_have_a_graph_each():
    """ModernBERT: the first layer, those with a window, those without."""
    vocabulary, sizes = Vocabulary(size=96, bos=0, eos=0, pad=0), {"layers": 4, "hidden": 16, "heads": 2, "positions": 64, "window": 6}
    plain, module = (MaskedModule(ModernBERT(**sizes).build("masked", vocabulary, 64), 96) for _ in range(2))
    module.load_state_dict(plain.state_dict())
    batches = []
    for step in range(3):
        batch = tiny.batch("gpt", tiny.rows(step))
        index = torch.arange(0, batch.tokens, 3)
        batch.inputs |= {"mlm_index": index, "mlm_targets": batch.inputs["clm_targets"][index]}
        batch.targets = {"mlm": len(index)}
        batches.append(batch)
    compiler = compile_blocks(module, Compile(blocks=True, backend="eager"))
    figures = compared(plain, module, compiler, batches, "modernbert")
    assert (figures["graphs"], figures["graph_breaks"]) == (3, 0)


@pytest.mark.parametrize(("precision", "noise"), [("bf16", 0.03), ("fp8", 0.06)])
def test_blocks_share_a_graph_in_other_precisions(precision, noise):
    """Llama's queries and keys are rotated in fp32, its values are not; in 8 bits every layer has a product of its own."""
    from trainer.models.llama import Llama

    vocabulary, sizes = Vocabulary(size=96, bos=0, eos=0, pad=0), {"layers": 3, "hidden": 32, "heads": 2, "kv_heads": 1, "positions": 64}
    plain, module = (CausalModule(Llama(**sizes).build("causal", vocabulary, 64), 96) for _ in range(2))
    module.load_state_dict(plain.state_dict())
    for one in (plain, module):
        tiny.config(precision).precision.prepare(one)
    compiler = compile_blocks(module, Compile(blocks=True, backend="aot_eager"))
    for step in range(2):
        batch, found = tiny.batch("gpt", tiny.rows(step)), []
        for one in (plain, module):
            one.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = one.train()(batch)["clm"]
            loss.backward()
            found.append((loss.item(), {name: parameter.grad for name, parameter in one.named_parameters()}))
        assert found[1][0] == pytest.approx(found[0][0], rel=1e-3)
        assert tiny.distance(found[1][1], found[0][1]) < noise
    figures = compiler.figures()
    assert (figures["graphs"], figures["graph_breaks"]) == (1, 0)


def trained(world, strategy, backend):
    skeleton, compilers = tiny.skeleton, []

    def prepared(*arguments, **named):
        found = skeleton(*arguments, **named)
        if backend is not None:
            compilers.append(compile_blocks(found, Compile(blocks=True, backend=backend)))
        return found

    tiny.skeleton = prepared
    try:
        # Of ddp a bucket that is smaller than a block, which must not cut it.
        placement = tiny.place(strategy, "gpt", world, **{"bucket_mib": 0.02} if strategy == "ddp" else {})
    finally:
        tiny.skeleton = skeleton
    placement.module.train()
    seen = tiny.train(placement, "gpt", range(4), micro_batches=2)
    figures = [compiler.figures() | {"pieces": counters["aot_autograd"]["ok"]} for compiler in compilers]
    return {"losses": seen["losses"], "weights": tiny.weights(placement), "figures": figures}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_curve_of_ranks_that_compile_is_that_of_one_that_does_not(strategy):
    plain = run_distributed(trained, 1, "single", None, group=False)[0]
    compiled = run_distributed(trained, 2, strategy, "aot_eager")[0]
    assert [(one["graphs"], one["graph_breaks"], one["pieces"]) for one in compiled["figures"]] == [(2, 0, 2)]
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert tiny.distance(compiled["weights"], plain["weights"]) < 1e-5


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return loops.write_texts(tmp_path_factory.mktemp("texts"), files=8)


@pytest.mark.parametrize("given", [(), ("adapter=lora", "precision=fp16", "survival.nan=skip")])
def test_a_run_tells_what_it_compiled(tmp_path, texts, given):
    """In the loop, on real rows: proven as a whole micro-batch, so that no step compiles; and the curve of the run without."""
    losses = {}
    for name, words in (("plain", []), ("compiled", ["compile.blocks=true", "compile.backend=eager"])):
        path = loops.ready(tmp_path, texts, "steps=3", "global_batch=10", *given, *words, name=name)
        training = loops.training(loops.single(), path)
        training.loop()
        losses[name] = loops.losses(path)
    (event,) = training.run.events("compiled")
    assert event["graphs"] >= 1 and event["graph_breaks"] == 0 and event["compile_seconds"] > 0
    assert training.compiler.figures()["graphs"] <= 4
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-6)


@pytest.mark.parametrize(("words", "told"), [
    (["compile.mode=reduce-overhead"], "compile.mode: reduce-overhead; allowed: default, max-autotune-no-cudagraphs"),
    (["compile.mode=max-autotune-no-cudagraphs", "compile.backend=eager"], "compile.mode: .*leave one of them out"),
    (["compile.blocks=true", "strategy=zero3"], "strategy=zero3 cannot run with compile.blocks=True.*strategy=fsdp"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(words, told):
    with pytest.raises(ConfigError, match=told):
        compose("steps=1", *words)


def test_a_machine_without_a_compiler_is_told_before_launch(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"compile.blocks: true, but there is no C\+\+ compiler \(no-such-compiler\); mend that"):
        refuse_uncompilable(compose("steps=1", "compile.blocks=true", "device=cpu"))
    with pytest.raises(ConfigError, match=r"compile\.blocks: true, but recompute\.keep names results"):
        refuse_uncompilable(compose("steps=1", "compile.blocks=true", "device=cpu", "recompute.every=1", "recompute.keep=[matmul]"))
    refuse_uncompilable(compose("steps=1", "device=cpu"))
