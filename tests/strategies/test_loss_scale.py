"""fp16 and the scale of its loss: the arithmetic against a forced scale in fp32, and fp16 itself under every strategy."""

import math

import pytest
import torch

from tests import tiny
from tests.distributed import run_distributed
from tests.strategies.test_proof import prober
from trainer.bench.syncs import HostSyncs
from trainer.checkpoint.opening import open_newest
from trainer.checkpoint.store import save
from trainer.distributed import World
from trainer.strategies.loss_scale import LossScale
from trainer.strategies.proof import prove
from trainer.strategies.zero import Offload

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def test_the_scale_halves_and_doubles_on_the_device():
    scale = LossScale(torch.device("cpu"), first=8, steps_to_double=3)
    found = []
    with HostSyncs() as counted:
        for applied in (1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0):
            scale.update(torch.tensor(float(applied)))
            found.append(scale.value.clone())
    assert counted.counts == {}
    # A run of three finite steps doubles it, one that is not halves it and begins the run anew; 1 is the least.
    assert [int(value) for value in found] == [8, 8, 4, 4, 4, 8, 8, 8, 4, 2, 1, 1, 1, 1]
    other = LossScale(torch.device("cpu"))
    other.load(scale.scalars())
    assert (other.value, other.finite_steps) == (scale.value, scale.finite_steps)
    for _ in range(60):
        other.finite_steps.fill_(1999)
        other.update(torch.ones(()))
    assert other.value == 2**24


def test_c16_a_scaled_loss_is_unscaled_before_it_is_clipped(tmp_path):
    """fp32 with a forced scale: not a number differs but by rounding, norms and clipped updates included."""
    plain, scaled = (tiny.place("single", "gpt", ALONE) for _ in range(2))
    scaled.loss_scale = LossScale(ALONE.device, first=2**13, steps_to_double=4)
    curves = [tiny.train(placement, "gpt", range(8), micro_batches=2, max_norm=0.5, poison=2) for placement in (plain, scaled)]
    assert curves[0]["losses"] == pytest.approx(curves[1]["losses"], rel=1e-6) and min(curves[0]["norms"]) > 0.5
    finite = [[norm for norm in curve["norms"] if math.isfinite(norm)] for curve in curves]
    assert finite[0] == pytest.approx(finite[1], rel=1e-5) and curves[0]["applied"] == curves[1]["applied"]
    assert tiny.distance(tiny.weights(scaled), tiny.weights(plain)) < 1e-6
    # Two steps, one dropped, five more: halved once, doubled once.
    assert scaled.scalars() == {"optimizer_step": 7, "loss_scale": 2**13, "loss_scale_finite_steps": 1}
    save(tmp_path, 8, scaled, {}, ALONE)
    again = tiny.place("single", "gpt", ALONE, precision="fp16")
    again.load(open_newest(tmp_path, ALONE).read)
    assert again.scalars() == scaled.scalars()


def test_an_accumulate_that_forgets_the_scale_is_caught():
    placement = tiny.place("single", "gpt", ALONE, precision="fp16")
    placement.accumulate = lambda loss, last: loss.backward()
    with pytest.raises(TypeError, match=r"must call backward on self\.scaled\(loss\)"):
        tiny.train(placement, "gpt", range(1))


def halved(world, strategy, options):
    placement = tiny.place(strategy, "gpt", world, precision="fp16", **options)
    prove(placement, prober(placement, "gpt"), world)
    seen = tiny.train(placement, "gpt", range(10), micro_batches=2, max_norm=0.5, poison=4)
    one = torch.full((), float(world.size))  # what undoes the mean over the ranks
    factor = placement.scaled(one) if hasattr(placement, "scaled") else one * placement.zero.loss_scale
    return seen | placement.scalars() | {"factor": factor.item(), "dtypes": sorted({row["dtype"] for row in placement.state_table()})}


def test_c17_fp16_means_products_alone_under_every_strategy():
    placed = [("single", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("fsdp", 2), ("hsdp", 4)]
    found = {strategy: run_distributed(halved, world, strategy, {}, group=strategy != "single") for strategy, world in placed}
    for strategy in ("zero1", "zero3"):
        found[f"{strategy}, offloaded"] = run_distributed(halved, 2, strategy, {"offload_optimizer": Offload.cpu})
    (alone,) = found["single"]
    assert alone["losses"][-1] < 0.9 * alone["losses"][0]
    for strategy, ranks in found.items():
        for rank in ranks:
            assert rank["dtypes"] == ["float32"] and rank["losses"] == pytest.approx(alone["losses"], rel=2e-3), strategy
            # Halved by the poisoned step, and by any whose gradients were too large for fp16 at first.
            dropped = rank["applied"].count(0.0)
            assert dropped >= 1 and rank["applied"][4] == 0.0 and rank["optimizer_step"] == 10 - dropped
            assert rank["loss_scale"] == rank["factor"] == 2**16 // 2**dropped, "products of fp16 are as large on any number of ranks"
            assert rank["norms"][0] == pytest.approx(alone["norms"][0], rel=2e-2)
