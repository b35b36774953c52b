"""AdaLoRA: which ranks stay is what PEFT's allocator says, as many as the budget allows, the same on every rank and across resumes."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch

from tests.adapters.shared import adapted, finish
from tests.distributed import run_distributed
from tests.loops import losses, single, train, training
from trainer.adapters import Budget
from trainer.adapters.adalora import AdaLora
from trainer.adapters.ranks import allocate, watch
from trainer.choices import ConfigError
from trainer.strategies.torch_driven import prime

WORDS = ("adapter=adalora", "adapter.rank=6", "adapter.target_rank=2", "adapter.targets=all", "optim.lr=1e-1", "steps=8")


def test_the_ranks_that_stay_are_those_of_peft(base):
    from peft.tuners.adalora.layer import RankAllocator
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base / "model")
    adapter = AdaLora(rank=6, target_rank=2, targets="all")
    adapter.adapt(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([parameter for _, parameter in named], lr=1e-2, fused=True)
    watch(optimizer, named, 0.85, 0.85, 0.0)
    prime(optimizer)
    theirs = RankAllocator(model, model.peft_config["default"], "default")
    for step in range(4):
        tokens = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(step))
        model(input_ids=tokens, labels=tokens).loss.backward()
        theirs.update_ipt(model)
        optimizer.step()
        optimizer.zero_grad()
    pattern = theirs.mask_to_budget(copy.deepcopy(model), 9)
    layers = len(pattern)
    allocate(optimizer, named, Budget(9 / layers))
    found = {name: (parameter != 0).flatten().tolist() for name, parameter in named if "lora_E" in name}
    assert found == pattern and sum(map(sum, found.values())) == 9


def test_the_gradient_of_orthogonality_is_that_of_the_papers_regularizer():
    from trainer.adapters.ranks import orthogonality

    torch.manual_seed(0)
    a, b = torch.nn.Parameter(torch.randn(3, 8)), torch.nn.Parameter(torch.randn(10, 3))
    wanted = ((a @ a.T - torch.eye(3)).norm() + (b.T @ b - torch.eye(3)).norm()) / 2
    wanted.backward()
    for found, parameter in zip(orthogonality([a, b]), (a, b), strict=True):
        torch.testing.assert_close(found, parameter.grad)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, others, base):
    path = adapted(tmp_path_factory.mktemp("adalora"), others, base, "save_every=5", "checkpoint.keep=9", adapter=WORDS)
    finish(path)
    return path


def ranks(path) -> dict[str, list[bool]]:
    with training(single(), path).placement.gathered() as module:
        return {name: (tensor != 0).flatten().tolist() for name, tensor in module.named_parameters() if "lora_E" in name}


def test_the_budget_is_met_and_the_export_is_read_by_peft(alone, base, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trainer.cli import main

    found = ranks(alone)
    assert sum(map(sum, found.values())) == 2 * len(found) < sum(map(len, found.values()))
    here = training(single(), alone)
    step = here.loader.step(0)
    with torch.no_grad():
        after = sum(here.placement.module(batch)["clm"] for batch in step.micro_batches) / step.targets["clm"]
    assert after < losses(alone)[0] - 0.001
    tokens = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    assert main(["export", f"run={alone}", "merge=true", f"output={tmp_path}/merged"]) == 0
    merged, plain = (AutoModelForCausalLM.from_pretrained(each).eval() for each in (tmp_path / "merged", base / "model"))
    with torch.no_grad():
        before = plain(tokens).logits
        peft = PeftModel.from_pretrained(plain, str(alone / "model")).eval()
        logits = peft(input_ids=tokens).logits
        torch.testing.assert_close(merged(tokens).logits, logits, atol=1e-5, rtol=1e-5)
    assert (logits - before).abs().max() > 1e-3


def test_f01_c20_a_resume_is_bit_equal_and_two_ranks_keep_the_same_ranks(tmp_path, others, base, alone):
    """The second half of the run, in which ranks go and settle: alone again, and on two ranks."""
    path = tmp_path / "run"
    shutil.copytree(alone, path, ignore=shutil.ignore_patterns("step-0000008", "summary.json", "metrics.jsonl", "model"))
    words = ("save_every=5", "checkpoint.keep=9")
    adapted(tmp_path, others, base, *words, adapter=WORDS)
    again = train(single(), str(path))
    with training(single(), alone).placement.gathered() as module:
        assert all(torch.equal(again[name], tensor) for name, tensor in module.state_dict().items())
    two = adapted(tmp_path / "two", others, base, *words, adapter=WORDS, world=2)
    run_distributed(train, 2, str(two))
    assert losses(two) == pytest.approx(losses(alone), rel=1e-5)
    assert ranks(two) == ranks(alone)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["strategy=zero2"], "strategy=zero2 cannot run with adapter=adalora: .* holds only a part of every matrix; set adapter=lora, or"),
        (["adapter.target_rank=6"], r"adapter.target_rank: 6; allowed: below adapter.rank=6"),
        (["adapter.warmup=0.5", "adapter.settling=0.5"], "leave no step in which ranks go"),
    ],
)
def test_what_cannot_be_is_told_before_launch(tmp_path, others, base, words, told):
    keys = {word.split("=")[0] for word in words}
    with pytest.raises(ConfigError, match=told):
        adapted(tmp_path, others, base, *words, adapter=tuple(word for word in WORDS if word.split("=")[0] not in keys))
