"""A base in 4 bits, on a CPU: what it computes, that it is trained beside and resumed, and that nobody else need know of it."""

from __future__ import annotations

import json

import pytest
import torch

from tests.adapters.shared import adapted, finish
from tests.distributed import run_distributed
from tests.loops import losses, single, train, training
from trainer.adapters.quantized import FourBit
from trainer.choices import ConfigError
from trainer.run import RunDir
from trainer.verbs.evaluate import held_out

WORDS = ("adapter=qlora", "adapter.targets=all", "optim.lr=1e-2", "steps=4")


@pytest.mark.parametrize(("kind", "nested"), [("nf4", True), ("fp4", False)])
def test_a_layer_of_4_bits_is_bitsandbytes_own(kind, nested):
    import bitsandbytes

    torch.manual_seed(0)
    plain, x = torch.nn.Linear(64, 96), torch.randn(5, 64, requires_grad=True)
    own = bitsandbytes.nn.Linear4bit(64, 96, compute_dtype=torch.float32, quant_type=kind, compress_statistics=nested)
    own.load_state_dict(plain.state_dict())
    own = own.to("cpu")
    ours = FourBit(plain.weight.detach(), plain.bias, kind, nested, turned=False)
    torch.testing.assert_close(ours(x), own(x))
    (gradient,) = torch.autograd.grad(ours(x).square().sum(), x)
    y = torch.nn.functional.linear(x, ours.weight, plain.bias)
    torch.testing.assert_close(gradient, torch.autograd.grad(y.square().sum(), x)[0], atol=1e-4, rtol=1e-4)
    assert ours.packed.numel() == plain.weight.numel() // 2 and 0 < (ours.weight - plain.weight).abs().max() < 0.05


def test_it_learns_resumes_and_is_the_same_on_two_ranks(tmp_path, others, base, alone):
    whole = adapted(tmp_path / "whole", others, base, adapter=WORDS)
    finish(whole)
    found = losses(whole)
    assert found[0] == pytest.approx(losses(alone)[0], rel=0.05) and found[0] != losses(alone)[0]
    assert found[-1] < found[0] - 0.01
    (proof,) = RunDir(whole).events("proof")
    (held,) = (row["bytes"] for row in proof["tables"][0] if row["kind"] == "parameter")
    assert held < 0.9 * 4 * json.loads((whole / "summary.json").read_text())["parameters"], "blocks are not among the parameters"
    parted = adapted(tmp_path / "parted", others, base, adapter=WORDS)
    train(single(), parted, last=2)
    again = train(single(), parted)
    with training(single(), whole).placement.gathered() as module:
        assert all(torch.equal(again[name], tensor) for name, tensor in module.state_dict().items())
    assert held_out(RunDir(whole))["eval_loss"] == pytest.approx(RunDir(whole).summary["eval_loss"], rel=1e-5)
    two = adapted(tmp_path / "two", others, base, adapter=WORDS, world=2)
    run_distributed(train, 2, str(two))
    assert losses(two) == pytest.approx(found, rel=1e-5)


def test_what_cannot_be_is_told_before_launch(tmp_path, others, base):
    with pytest.raises(ConfigError, match=r"strategy=fsdp cannot run with adapter=qlora: .* no parameter .* under ddp\|single"):
        adapted(tmp_path, others, base, "strategy=fsdp", adapter=WORDS)
    with pytest.raises(ConfigError, match=r"adapter.bits: 'int4'; allowed: nf4, fp4"):
        adapted(tmp_path, others, base, "adapter.bits=int4", adapter=WORDS)
