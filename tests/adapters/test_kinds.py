"""Every adapter learns, goes on where it stopped, and is read back from its folder."""

from __future__ import annotations

import pytest
import torch

from tests.adapters.shared import adapted, finish
from tests.loops import losses, single, train, training
from trainer.checkpoint.opening import shapes_in
from trainer.export import load_exported

KINDS = {
    "dora": ("adapter=dora", "optim.lr=1e-2", "adapter.targets=all"),
    "ia3": ("adapter=ia3", "optim.lr=2e-1"),
    "bottleneck": ("adapter=bottleneck", "adapter.size=8", "optim.lr=1e-2"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_resumes_and_is_read_back(tmp_path, others, base, alone, kind):
    whole = adapted(tmp_path / "whole", others, base, adapter=KINDS[kind])
    finish(whole)
    before = losses(whole)[0]
    assert before == pytest.approx(losses(alone)[0], rel=1e-5)  # nothing is changed at first
    parted = adapted(tmp_path / "parted", others, base, adapter=KINDS[kind])
    train(single(), parted, last=3)
    again = train(single(), parted)
    names = shapes_in(whole / "checkpoints" / "step-0000006")
    assert names and not any(name.endswith(("c_attn.weight", "wte.weight")) for name in names)
    here = training(single(), whole)
    step = here.loader.step(0)
    with torch.no_grad():
        after = sum(here.placement.module(batch)["clm"] for batch in step.micro_batches) / step.targets["clm"]
    assert after < before - 0.003
    with here.placement.gathered() as module:
        assert all(torch.equal(again[name], tensor) for name, tensor in module.state_dict().items())
        model = load_exported(whole / "model")
        read = dict(model.named_parameters(prefix="model"))
        assert all(torch.equal(read[name], parameter) for name, parameter in module.named_parameters())
    tokens = torch.randint(0, 250, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(model.eval()(tokens).logits, load_exported(base / "model").eval()(tokens).logits, atol=1e-3)
