"""State in the host's memory under ZeRO: the same curve, norms, dropped steps and averages, and checkpoints that any strategy reads."""

import math
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.distributed import run_distributed
from tests.strategies.test_proof import prober
from trainer import compose
from trainer.checkpoint.opening import open_newest
from trainer.checkpoint.store import save
from trainer.choices import ConfigError
from trainer.distributed import World
from trainer.optim import AdamW, Average
from trainer.strategies.proof import prove
from trainer.strategies.zero import Offload, Zero2, Zero3

SAVED, DROPPED, STEPS = 5, 7, 12
OPTIMIZER, PARAMETERS = {"offload_optimizer": Offload.cpu}, {"offload_parameters": Offload.cpu}
OFFLOADED = {
    "zero1": ("zero1", OPTIMIZER),
    "zero2": ("zero2", OPTIMIZER),
    "zero3": ("zero3", OPTIMIZER),
    "zero3-parameters": ("zero3", PARAMETERS),
    "zero3-both": ("zero3", OPTIMIZER | PARAMETERS),
}


def run(world, strategy, options, start, root):
    """From first values to SAVED, from there on from the checkpoint in `start`, if one is given, to STEPS; saved on the way in `root`."""
    placement = tiny.place(strategy, "gpt", world, optim=AdamW(lr=2e-3, ema=Average(decay=0.8)), **options)
    proof = prove(placement, prober(placement, "gpt"), world)
    parts = [tiny.train(placement, "gpt", range(SAVED), micro_batches=2, max_norm=0.5)]
    tiny.backward(placement, "gpt", SAVED, 3)
    dropped = placement.discard().item()
    save(Path(root) / "first", SAVED, placement, {}, world)
    if start is not None:
        placement.load(open_newest(Path(start), world).read)
    parts.append(tiny.train(placement, "gpt", range(SAVED, STEPS), micro_batches=3, max_norm=0.5, poison=DROPPED))
    with placement.averaged():
        averages = tiny.weights(placement)
    save(Path(root) / "last", STEPS, placement, {}, world)
    return {key: [value for part in parts for value in part[key]] for key in parts[0]} | {
        "weights": tiny.weights(placement),
        "averages": averages,
        "dropped": dropped,
        "steps": placement.scalars()["optimizer_step"],
        "kinds": sorted({piece.kind for piece in placement.pieces()}),
        "table": proof.tables[world.rank],
        "on_host": sorted(placement.on_host()),
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run of one process, and where it saved."""
    root = tmp_path_factory.mktemp("plain")
    (found,) = run_distributed(run, 1, "ddp", {}, None, str(root))
    return found, root


@pytest.mark.parametrize("name", OFFLOADED)
def test_c20_c18_c09_offload_changes_no_number(name, plain, tmp_path):
    strategy, options = OFFLOADED[name]
    wanted, start = plain
    assert wanted["losses"][-1] < 0.9 * wanted["losses"][0] and wanted["applied"].index(0.0) == DROPPED
    norms = [norm for norm in wanted["norms"] if math.isfinite(norm)]
    assert len(norms) == STEPS - 1 and min(norms) > 0.5, "every step is clipped"
    ranks = run_distributed(run, 2, strategy, options, str(start / "first"), str(tmp_path))
    for rank in ranks:
        assert rank["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
        assert [norm for norm in rank["norms"] if math.isfinite(norm)] == pytest.approx(norms, rel=1e-4)
        assert rank["dropped"] == pytest.approx(wanted["dropped"], rel=1e-4)
        assert (rank["applied"], rank["steps"], rank["kinds"]) == (wanted["applied"], STEPS - 1, wanted["kinds"])
        held = {row["kind"]: row for row in rank["table"]}
        assert ("exp_avg" in rank["on_host"]) == ("offload_optimizer" in options)
        assert all(held[kind]["device"] == "cpu" and held[kind]["bytes"] <= held[kind]["share"] for kind in rank["on_host"])
    assert tiny.distance(ranks[0]["weights"], wanted["weights"]) < 1e-4
    assert tiny.distance(ranks[0]["averages"], wanted["averages"]) < 1e-4
    # What it saved is of no strategy.
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    placement = tiny.place("single", "gpt", alone, optim=AdamW(ema=Average(decay=0.8)), seed=1)
    placement.load(open_newest(tmp_path / "last", alone).read)
    assert placement.scalars() == {"optimizer_step": STEPS - 1}
    assert tiny.distance(tiny.weights(placement), wanted["weights"]) < 1e-4


@pytest.mark.parametrize(("build", "told"), [
    (lambda: Zero2(options=section(device="cpu")), r"offload_optimizer\.device is set .* set strategy\.offload_optimizer"),
    (lambda: Zero2(options={"zero_optimization": {"cpu_offload": True}}), r"cpu_offload is set .* set strategy\.offload_optimizer=cpu"),
    (lambda: Zero2(options=section(ratio=0.5), **OPTIMIZER), r"offload_optimizer\.ratio is set by the framework"),
    (lambda: Zero2(options=section(pin_memory=False)), r"offload_optimizer says how .*; remove it, or set strategy\.offload_opt"),
    (lambda: Zero2(options={"zero_optimization": {"offload_param": {}}}), r"set strategy=zero3 strategy\.offload_parameters=cpu"),
    (lambda: compose("steps=1", "strategy=zero1", "strategy.offload_optimizer=nvme"), "stage 3 alone.*set strategy.offload_optimizer=cpu"),
    (lambda: compose("steps=1", "strategy=zero3", "strategy.offload_parameters=nvme"), "the disk.*set strategy.offload_parameters=cpu"),
    (lambda: compose("steps=1", "strategy=zero2", "strategy.offload_parameters=cpu"), "strategy.offload_parameters"),
    (lambda: compose("steps=1", "strategy=zero2", "strategy.offload_optimizer=disk"), "strategy.offload_optimizer.*nvme"),
])  # fmt: skip
def test_b16_what_cannot_be_offloaded_is_refused_with_its_key(build, told):
    with pytest.raises(ConfigError, match=told):
        build()


def section(**keys):
    return {"zero_optimization": {"offload_optimizer": keys}}


def test_what_else_deepspeed_knows_of_offload_is_passed_on():
    config = compose("steps=1", "strategy=zero3", "strategy.offload_optimizer=cpu", "strategy.offload_parameters=cpu",
                     "strategy.options.zero_optimization.offload_optimizer.pin_memory=false")  # fmt: skip
    settings = config.strategy.settings(config)
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert settings["zero_optimization"]["offload_param"] == {"device": "cpu"} and settings["zero_force_ds_cpu_optimizer"] is False
    assert "offload_optimizer" not in Zero3().settings(config)["zero_optimization"]
