"""Optimizers that need no whole tensors, and averages of weights: one curve under every strategy, one checkpoint for all of them."""

import functools
import operator
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.distributed import run_distributed
from trainer.averaging import KIND
from trainer.checkpoint.opening import open_newest
from trainer.checkpoint.store import save
from trainer.distributed import World
from trainer.optim import SGD, Average, Lion

CHOICES = {
    "lion": functools.partial(Lion, lr=1e-3, ema=Average(decay=0.8)),
    "sgd": functools.partial(SGD, lr=0.3, nesterov=True, weight_decay=0.01),
}
# Lion steps by the sign: where a gradient is all but zero, its noise decides.
TOLERANCE = {"lion": 1e-3, "sgd": 1e-4}
STEPS, DROPPED = 12, 3


def apart(mine, reference):
    """Relative distance of two sets of weights, without the attention's biases: softmax does not see those of the keys."""
    return tiny.distance(*({name: tensor for name, tensor in found.items() if "c_attn.bias" not in name} for found in (mine, reference)))


def curves(world, strategy, root, names=tuple(CHOICES)):
    found = {}
    for name in names:
        placement = tiny.place(strategy, "gpt", world, optim=CHOICES[name]())
        seen = tiny.train(placement, "gpt", range(STEPS), micro_batches=2, max_norm=0.5, poison=DROPPED)
        save(Path(root) / name, STEPS, placement, {}, world)
        before = tiny.weights(placement)
        averaged = average_of(placement)
        after = tiny.weights(placement)
        seen |= {"weights": before, "unchanged": all(torch.equal(before[name], after[name]) for name in before)}
        seen |= {"averaged": averaged, "kinds": sorted({piece.kind for piece in placement.pieces()})}
        found[name] = seen | {"held": {row["kind"]: row["bytes"] for row in placement.state_table()}}
    return found


def average_of(placement):
    """The averaged weights and the loss with them, evaluated as the loop does."""
    with placement.averaged():
        placement.module.eval()
        with torch.no_grad():
            loss = placement.module(tiny.batch("gpt", tiny.rows(50)))["clm"].item()
        placement.module.train()
        return {"weights": tiny.weights(placement), "loss": loss}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return run_distributed(curves, 1, "single", str(tmp_path_factory.mktemp("single")), group=False)[0]


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_c20_elementwise_optimizers_have_one_curve(strategy, reference, tmp_path):
    # One process can hold one DeepSpeed engine.
    calls = [(name,) for name in CHOICES] if strategy.startswith("zero") else [tuple(CHOICES)]
    parts = [run_distributed(curves, 2, strategy, str(tmp_path), names) for names in calls]
    ranks = [functools.reduce(operator.or_, found) for found in zip(*parts, strict=True)]
    for name, wanted in reference.items():
        assert wanted["losses"][-1] < 0.9 * wanted["losses"][0] and wanted["applied"][DROPPED] == 0.0
        found = ranks[0][name]
        assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-5), name
        assert apart(found["weights"], wanted["weights"]) < TOLERANCE[name]
        assert (found["kinds"], found["applied"], found["unchanged"]) == (wanted["kinds"], wanted["applied"], True)
        for rank in ranks:
            assert rank[name]["averaged"]["loss"] == pytest.approx(wanted["averaged"]["loss"], rel=1e-5)
            for kind in set(found["kinds"]) - {"parameter"} if strategy != "ddp" else ():
                assert rank[name]["held"][kind] <= 0.52 * wanted["held"][kind]
        # What was saved is of no strategy: one process goes on with it, averages included.
        alone = World(0, 1, 0, 1, torch.device("cpu"))
        placement = tiny.place("single", "gpt", alone, optim=CHOICES[name](), seed=1)
        placement.load(open_newest(tmp_path / name, alone).read)
        assert placement.scalars() == {"optimizer_step": STEPS - 1}
        assert apart(average_of(placement)["weights"], wanted["averaged"]["weights"]) < TOLERANCE[name]
        assert (tiny.distance(wanted["averaged"]["weights"], wanted["weights"]) > 1e-3) == (KIND in found["kinds"])


def test_an_average_is_of_the_applied_steps_alone(tmp_path):
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    placement = tiny.place("single", "gpt", alone, optim=Lion(lr=1e-3, ema=Average(decay=0.5)))
    wanted, updates = tiny.weights(placement), 0
    for step in range(8):
        applied = tiny.train(placement, "gpt", range(step, step + 1), poison=2)["applied"][0]
        if applied:
            weight = 1 - min(0.5, (1 + updates) / (10 + updates))
            now = tiny.weights(placement)
            wanted = {name: tensor + weight * (now[name] - tensor) for name, tensor in wanted.items()}
            updates += 1
    assert updates == 7 and tiny.distance(average_of(placement)["weights"], wanted) < 1e-6
    # Weights of another run are where an average begins.
    save(tmp_path, 8, placement, {}, alone)
    other = tiny.place("single", "gpt", alone, optim=Lion(ema=Average(decay=0.5)), weights=open_newest(tmp_path, alone).read)
    assert tiny.distance(average_of(other)["weights"], tiny.weights(placement)) == 0.0
