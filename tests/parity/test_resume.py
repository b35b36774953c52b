"""A checkpoint belongs to the model: saved under one strategy and world, resumed under another, the curve has no seam."""

import functools
import itertools
from pathlib import Path

import pytest
import torch

from tests import resuming, tiny
from tests.distributed import run_distributed
from trainer.checkpoint.opening import open_newest
from trainer.checkpoint.store import save

# Every strategy saves and resumes, every world is left and entered, upwards and downwards; benchmarks/matrix.py runs all pairs.
CHAIN = [
    ("single", 1),
    ("zero3", 2),
    ("fsdp", 3),
    ("hsdp", 4),
    ("ddp", 2),
    ("zero3", 3),
    ("zero1", 2),
    ("single", 1),
    ("fsdp", 2),
    ("zero2", 3),
    ("zero3", 1),
    ("zero2", 1),
    ("ddp", 3),
    ("fsdp", 1),
    ("ddp", 1),
]


@functools.cache
def saved(strategy, world, kind, root):
    return run_distributed(resuming.first_part, world, strategy, kind, root, group=strategy != "single")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise(CHAIN)), ids=lambda pair: f"{pair[0]}@{pair[1]}")
def test_c09_resumed_under_another_strategy_and_world(first, second, folder):
    kind = "bert" if second[1] == 3 else "gpt"
    root = str(Path(folder) / f"{first}-{kind}")
    whole = saved(*first, kind, root)
    strategy, world = second
    rest = run_distributed(resuming.second_part, world, strategy, kind, root, group=strategy != "single")[0]
    assert rest["losses"] == pytest.approx(whole["losses"][resuming.SAVED_AT :], rel=1e-5)
    assert tiny.distance(rest["weights"], whole["weights"]) < 1e-4
    assert rest["steps"] == whole["steps"] == resuming.STEPS


@pytest.mark.parametrize(("strategy", "world"), [("single", 1), ("ddp", 3), ("zero2", 3), ("zero3", 3), ("fsdp", 3)])
def test_resumed_where_it_was_is_bit_equal(strategy, world, tmp_path):
    group = strategy != "single"
    whole = run_distributed(resuming.first_part, world, strategy, "gpt", str(tmp_path), group=group)[0]
    rest = run_distributed(resuming.second_part, world, strategy, "gpt", str(tmp_path), group=group)[0]
    assert rest["losses"] == whole["losses"][resuming.SAVED_AT :]
    assert all(torch.equal(rest["weights"][name], whole["weights"][name]) for name in whole["weights"])


def branches(world, strategy, root):
    placement = tiny.place(strategy, "gpt", world, weights=open_newest(Path(root), world).read)
    batch = tiny.batch("gpt", tiny.rows(0))
    placement.module.eval()
    with torch.no_grad():
        loss = placement.module(batch)["clm"].item()
    fresh = all(not tensor.any() for piece in placement.pieces() if piece.kind != "parameter" for tensor in [piece.tensor])
    return {"loss": loss, "fresh": fresh, "steps": placement.scalars()["optimizer_step"]}


def origin(world, root):
    placement = tiny.place("single", "gpt", world)
    tiny.train(placement, "gpt", range(3))
    save(Path(root), 3, placement, {}, world)
    with torch.no_grad():
        return placement.module(tiny.batch("gpt", tiny.rows(0)))["clm"].item()


def test_weights_of_another_run_come_without_its_moments(tmp_path):
    (loss,) = run_distributed(origin, 1, str(tmp_path), group=False)
    for strategy in ("ddp", "zero2", "zero3", "fsdp"):
        for rank in run_distributed(branches, 2, strategy, str(tmp_path)):
            assert rank["loss"] == pytest.approx(loss, rel=1e-5) and rank["fresh"] and rank["steps"] == 0
