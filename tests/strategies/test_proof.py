"""The proof before step 1: passes and leaves no trace under every strategy, and catches placements that are wrong."""

import re

import pytest
import torch

from tests import tiny
from tests.distributed import run_distributed
from trainer.strategies.proof import ProofError, prove
from trainer.strategies.replicated import Replicated
from trainer.strategies.torch_driven import Called

PLACED = [("single", 1), ("ddp", 2), ("zero2", 2), ("fsdp", 2), ("zero1", 3), ("zero3", 3), ("fsdp", 3), ("hsdp", 4)]


def prober(placement, kind):
    whole = tiny.batch(kind, tiny.rows(0))

    def run_backward(scale):
        loss = tiny.objective(placement.module(whole), kind, whole.targets)
        placement.accumulate(loss * scale, last=True)

    return run_backward


def state(placement):
    return {(piece.name, piece.kind, piece.box): piece.tensor.clone() for piece in placement.pieces()}


def proves(world, strategy, kind, precision, dropout):
    placement = tiny.place(strategy, kind, world, precision=precision, dropout=dropout)
    before = state(placement)
    proof = prove(placement, prober(placement, kind), world)
    after = state(placement)
    same = before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    return {"tables": proof.tables, "lines": proof.lines(), "same": same, "steps": placement.scalars()["optimizer_step"]}


@pytest.mark.parametrize(("strategy", "world"), PLACED)
@pytest.mark.parametrize(("kind", "precision", "dropout"), [("gpt", "fp32", 0.1), ("bert", "bf16", 0.0)])
def test_c17_every_strategy_proves_itself(strategy, world, kind, precision, dropout):
    for rank in run_distributed(proves, world, strategy, kind, precision, dropout, group=strategy != "single"):
        assert rank["same"] and rank["steps"] == 0
        assert len(rank["tables"]) == world and len(rank["lines"]) == len(rank["tables"][0])
        for row in rank["tables"][0]:
            assert row["dtype"] == "float32"
        held = {row["kind"] for row in rank["tables"][0]}
        assert {"parameter", "gradient", "exp_avg", "exp_avg_sq"} <= held and ("reduction" in held) == (world > 1)


class Unsynchronised(Replicated):
    """What Accelerate's FSDP plugin gives on a CPU: several processes, nothing wrapped."""

    def accumulate(self, loss, last):
        (loss * self.data_size).backward()


class HalfSynchronised(Replicated):
    """A head called outside of what is wrapped."""

    def accumulate(self, loss, last):
        loss.backward()
        for name, parameter in self.named:
            if "ln_f" not in name:
                torch.distributed.all_reduce(parameter.grad)


def wrong(world, flaw):
    called = Called(model := tiny.module("gpt"), world.device, None)
    build = {"half": HalfSynchronised}.get(flaw, Unsynchronised)
    if flaw == "dtype":
        model.bfloat16()
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr": 1e-3, "base_lr": 1e-3}], fused=True)
    placement = build(called, model, optimizer, world)
    if flaw == "offload":
        placement.on_host = lambda: {"exp_avg"}
        placement.state_table = lambda table=placement.state_table: [row | {"device": "cuda"} for row in table()]
    if flaw == "bytes":
        placement.share = lambda shape: torch.Size(shape).numel() // world.size
    try:
        prove(placement, prober(placement, "gpt"), world)
    except ProofError as error:
        return str(error)
    return None


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("flaw", "words"),
    [("none", "is not that of all ranks: multiplied by 1.000"), ("half", r"gradient of model.transformer.ln_f.weight is not"),
     ("dtype", "parameter is bfloat16, should be float32"), ("bytes", "exp_avg takes .* bytes, at most"),
     ("offload", "exp_avg lies on cuda, should be offloaded to cpu")],
)  # fmt: skip
def test_c20_a_wrong_placement_is_caught_on_every_rank(flaw, words, world):
    for error in run_distributed(wrong, world, flaw):
        assert error is not None, "every rank must stop, or the others would wait for it"
        assert re.search(words, error), error


def reduced(world):
    """A curve and the proof's dtype of reductions, by the dtype that is asked for; buckets so small that there are several."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        placement = tiny.place("ddp", "gpt", world, reduce_dtype=dtype, bucket_mib=0.05)
        tables = prove(placement, prober(placement, "gpt"), world).tables
        seen = tiny.train(placement, "gpt", range(6), micro_batches=2)["losses"]
        found[dtype] = {row["kind"]: row["dtype"] for row in tables[0]}, seen
    return found


def test_c17_ddp_adds_up_gradients_in_bf16_where_it_is_asked_to():
    for rank in run_distributed(reduced, 2):
        (whole, curve), (half, rounded) = rank["float32"], rank["bfloat16"]
        assert half == whole | {"reduction": "bfloat16"} and whole["reduction"] == whole["gradient"] == "float32"
        assert rounded == pytest.approx(curve, rel=5e-3) and rounded != curve
