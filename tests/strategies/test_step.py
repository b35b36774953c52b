"""What a step may not do under any strategy: wait for the host, keep a bad gradient, untie weights, reduce at the wrong micro-batch."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from tests.distributed import run_distributed
from trainer.adapters import NoAdapter
from trainer.bench.syncs import HostSyncs
from trainer.choices import ConfigError, find, load_choices
from trainer.compiling import Compile
from trainer.optim import AdamW, Muon
from trainer.strategies.matrix import REFUSALS, markdown, refuse_unsupported, support
from trainer.strategies.zero import Offload, Zero2

PLACED = [("single", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("fsdp", 2)]


def everywhere(fn, *args, more=()):
    for strategy, world in [*PLACED, *more]:
        yield strategy, run_distributed(fn, world, strategy, *args, group=strategy != "single")


def state(placement):
    return {(piece.name, piece.kind, piece.box): piece.tensor.clone() for piece in placement.pieces()} | placement.scalars()


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) if isinstance(one[key], torch.Tensor) else one[key] == other[key] for key in one
    )


def syncs(world, strategy):
    placement = tiny.place(strategy, "bert", world)
    tiny.train(placement, "bert", range(2))
    with HostSyncs() as counted:
        for step in (2, 3):
            loss = tiny.backward(placement, "bert", step, 2)
            placement.finish(1.0, 0.1)
    return {"counts": dict(counted.counts), "loss": loss}


def test_no_host_synchronisation_in_a_step():
    for strategy, ranks in everywhere(syncs):
        for rank in ranks:
            # A step's of DeepSpeed's own: overflow, and whether the norm is valid. Named here, so that one more is noticed.
            own = {"zero1": 3, "zero2": 3, "zero3": 1}.get(strategy, 0)
            assert rank["counts"] == ({"aten::_local_scalar_dense": 2 * own} if own else {}), strategy


def test_the_counter_sees_what_waits():
    tensor = torch.arange(6.0, requires_grad=True)

    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return grad.expand(6) * grad.item()

    with HostSyncs() as counted:
        tensor[tensor.detach() > 2].sum()
        torch.nonzero(tensor.detach())
        bool((tensor.detach() > 2).any())
        Waits.apply(tensor).backward()
    assert counted.counts["aten::_local_scalar_dense"] == 2 and counted.counts["aten::nonzero"] >= 1
    assert counted.counts["aten::index"] == 1 and counted.total >= 4


def poisoned(world, strategy):
    placement = tiny.place(strategy, "gpt", world)
    tiny.train(placement, "gpt", range(3))
    before = state(placement)
    seen = tiny.train(placement, "gpt", range(3, 4), micro_batches=2, poison=3)
    unchanged = same(before, state(placement))
    after = tiny.train(placement, "gpt", range(4, 6))
    return {
        "unchanged": unchanged,
        "seen": seen,
        "after": after,
        "steps": placement.scalars()["optimizer_step"],
        "weights": tiny.weights(placement),
    }


def test_c18_c03_a_step_that_is_not_finite_is_dropped_alike():
    found = dict(everywhere(poisoned))
    reference = found["single"][0]
    for strategy, ranks in found.items():
        for rank in ranks:
            # One rank's gradient was NaN; all of them drop the step, with its moments and its count.
            assert rank["unchanged"], strategy
            assert rank["seen"]["applied"] == [0.0] and not math.isfinite(rank["seen"]["norms"][0])
            assert rank["after"]["applied"] == [1.0, 1.0] and rank["steps"] == 5
        assert ranks[0]["after"]["losses"] == pytest.approx(reference["after"]["losses"], rel=1e-5)
        assert tiny.distance(ranks[0]["weights"], reference["weights"]) < 1e-4


def discards(world, strategy):
    placement = tiny.place(strategy, "gpt", world)
    tiny.train(placement, "gpt", range(2))
    before = state(placement)
    tiny.backward(placement, "gpt", 2, 2)
    norm = placement.discard().item()
    unchanged = same(before, state(placement))
    # What was dropped is gone: the next step sees its own gradient only.
    return {"unchanged": unchanged, "norm": norm, "next": tiny.train(placement, "gpt", range(2, 4))["norms"]}


def test_discarded_gradients_leave_no_trace():
    found = dict(everywhere(discards))
    for ranks in found.values():
        for rank in ranks:
            assert rank["unchanged"]
            assert rank["next"] == pytest.approx(found["single"][0]["next"], rel=1e-4)
            assert rank["norm"] == pytest.approx(rank["next"][0], rel=1e-4)


def reduces(world):
    placement = tiny.place("ddp", "gpt", world)
    found = []
    for _ in range(2):  # again after DDP has rebuilt its buckets
        batches, counts = tiny.dealt(placement, "gpt", 0, 2)
        for index, batch in enumerate(batches):
            placement.accumulate(tiny.objective(placement.module(batch), "gpt", counts), last=index == 1)
            found.append(placement.named[0][1].grad.clone())
        placement.discard()
    return found


def test_ddp_reduces_at_the_last_micro_batch_alone():
    one, other = run_distributed(reduces, 2)
    assert all(gradient.abs().sum() > 0 for gradient in one)
    assert [torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True)] == [False, True, False, True]


def tied(world, strategy):
    placement = tiny.place(strategy, "gpt", world)
    tiny.train(placement, "gpt", range(3))
    with placement.gathered() as whole:
        ties = whole.model.lm_head.weight is whole.model.transformer.wte.weight
        loss = torch.zeros(())
        if world.rank == 0:  # of use there alone; no rank may be needed for a forward
            loss = whole.eval()(tiny.batch("gpt", tiny.rows(0)))["clm"].detach()
            whole.train()
    names = [piece.name for piece in placement.pieces() if piece.kind == "parameter"]
    # Gathering is an aside: training goes on as before.
    return {"ties": ties, "loss": loss, "names": names, "losses": tiny.train(placement, "gpt", range(3, 5))["losses"]}


def test_c12_tied_weights_stay_tied():
    found = dict(everywhere(tied, more=[("hsdp", 4)]))
    for ranks in found.values():
        assert all(rank["ties"] for rank in ranks)
        assert not any("lm_head" in name for rank in ranks for name in rank["names"])
        assert ranks[0]["loss"].item() == pytest.approx(found["single"][0]["loss"].item(), rel=1e-5)
        assert ranks[0]["losses"] == pytest.approx(found["single"][0]["losses"], rel=1e-5)


class Products(TorchDispatchMode):
    """The dtypes of matrix products."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::bmm"):
            self.seen.add(str(args[-1].dtype))
        return func(*args, **(kwargs or {}))


def halved(world, strategy, kind):
    placement = tiny.place(strategy, kind, world, precision="bf16")
    with Products() as products:
        seen = tiny.train(placement, kind, range(10), micro_batches=2)
    dtypes = sorted({row["dtype"] for row in placement.state_table()} | {str(p.tensor.dtype) for p in placement.pieces()})
    return {"products": sorted(products.seen), "losses": seen["losses"], "dtypes": dtypes}


def test_c17_bf16_means_products_alone():
    found = dict(everywhere(halved, "gpt", more=[("hsdp", 4)]))
    for strategy, ranks in found.items():
        for rank in ranks:
            assert rank["products"] == ["torch.bfloat16"], strategy
            assert set(rank["dtypes"]) == {"float32", "torch.float32"}
        assert ranks[0]["losses"] == pytest.approx(found["single"][0]["losses"], rel=5e-3)


def test_b16_what_cannot_go_together_is_refused_with_the_reason():
    load_choices()
    for refusal in REFUSALS:
        for strategy in refusal.strategies:
            chosen, optim = find("strategy", strategy)(), AdamW()
            if refusal.key == "optim":
                optim, words = find("optim", refusal.value)(), "set optim=.*ddp"
            elif refusal.key in ("adapter", "compile.blocks"):
                continue  # tests/adapters, tests/models/test_compiled.py
            else:
                setattr(chosen, refusal.key.removeprefix("strategy."), Offload(refusal.value))
                words = f"set {refusal.key}=cpu$"  # no strategy runs with it
            with pytest.raises(ConfigError, match=f"strategy={strategy} cannot run with {refusal.key}={refusal.value}: .*{words}"):
                refuse_unsupported(SimpleNamespace(strategy=chosen, optim=optim, adapter=NoAdapter(), compile=Compile()))
            assert strategy in markdown()
    refuse_unsupported(SimpleNamespace(strategy=SimpleNamespace(name="ddp"), optim=Muon(), adapter=NoAdapter(), compile=Compile()))
    offloaded = find("strategy", "zero2")(offload_optimizer=Offload.cpu)
    refuse_unsupported(SimpleNamespace(strategy=offloaded, optim=AdamW(), adapter=NoAdapter(), compile=Compile()))
    rows = {line.split("`")[1]: line.split("|")[2:-1] for line in support().splitlines() if "`" in line}
    heads = [name.strip() for name in support().splitlines()[0].split("|")[2:-1]]
    disk = dict(zip(heads, rows["strategy.offload_parameters=nvme"], strict=True))
    assert {name for name, word in disk.items() if word.strip()} == {"zero3"}, "a strategy without the option has no cell"


@pytest.mark.parametrize("options", [{"gradient_clipping": 1.0}, {"zero_optimization": {"stage": 3}}, {"bf16": {"enabled": True}}])
def test_deepspeed_options_that_are_ours_are_refused(options):
    with pytest.raises(ConfigError, match=r"strategy\.options: (gradient_clipping|zero_optimization\.stage|bf16) is set by the framework"):
        Zero2(options=options)
    assert Zero2(options={"zero_optimization": {"overlap_comm": False}}).options


def unwrapped_blocks():
    from trainer.strategies.sharded import units

    return [type(block).__name__ for kind in ("gpt", "bert") for block in units(tiny.module(kind))]


def test_fsdp_cuts_by_transformer_block():
    from trainer.strategies.sharded import units

    assert unwrapped_blocks() == ["GPT2Block"] * 2 + ["BertLayer"] * 2
    model = tiny.module("gpt")
    model.model.transformer.h[1].ln_1 = model.model.transformer.ln_f
    with pytest.raises(ValueError, match="share parameters"):
        units(model)
