"""Every adapter under strategies that cut what is trained: the curve of one device, across a resume, and its export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.shared import adapted, finish
from tests.adapters.test_kinds import KINDS
from tests.adapters.test_prompts import RUNS
from tests.distributed import run_distributed
from tests.loops import in_an_engine_of_its_own, losses, train, training
from trainer.adapters.folder import VALUES
from trainer.distributed import World

ADAPTERS: dict[str, Any] = {**RUNS, **KINDS}
IN_FRONT = ("prompt", "p_tuning", "prefix")
# Each adapter under two of them at least; all are in benchmarks/support.py, without resumes and exports.
CUT = {
    "zero2": ("prompt", "p_tuning", "ia3", "bottleneck"),
    "zero3": (*IN_FRONT, "dora", "bottleneck"),
    "fsdp": ("prompt", "prefix", "dora", "ia3"),
}
OPTIONS = {"zero3": ["strategy.options.zero_optimization.stage3_param_persistence_threshold=0"]}
STEPS = "steps=3"


@pytest.fixture(scope="module")
def alone(tmp_path_factory, others, base):
    found = {}
    for kind in {kind for kinds in CUT.values() for kind in kinds}:
        found[kind] = adapted(tmp_path_factory.mktemp(kind), others, base, STEPS, adapter=ADAPTERS[kind])
        finish(found[kind])
    return found


def finished(world: World, paths: list[str]) -> None:
    """Each run stopped after its first step, gone on with, and exported."""
    for path in paths:
        in_an_engine_of_its_own(train, world, path, 1)
        in_an_engine_of_its_own(_finish, world, path)


def _finish(world: World, path: str) -> None:
    here = training(world, path)
    here.loop()
    here.finish()


@pytest.mark.parametrize("strategy", CUT)
def test_c20_the_curve_and_the_export_are_those_of_one_device(tmp_path, others, base, alone, strategy):
    words, world = (f"strategy={strategy}", *OPTIONS.get(strategy, ())), 2
    paths = {kind: adapted(tmp_path / kind, others, base, STEPS, *words, adapter=ADAPTERS[kind], world=world) for kind in CUT[strategy]}
    run_distributed(finished, world, [str(path) for path in paths.values()])
    for kind, path in paths.items():
        assert losses(path) == pytest.approx(losses(alone[kind]), rel=1e-5), kind
        found, wanted = (load_file(each / "model" / VALUES) for each in (path, alone[kind]))
        assert kind not in IN_FRONT or list(found) == ["prompt_embeddings"]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
