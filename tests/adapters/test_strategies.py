"""What stands in front of documents, under strategies that cut parameters: the curve of one device, across a resume, and its export."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.shared import adapted, finish
from tests.adapters.test_prompts import RUNS
from tests.distributed import run_distributed
from tests.loops import losses, train, training
from trainer.distributed import World

CUT = {"fsdp": ("prompt", "prefix"), "zero3": ("prompt", "p_tuning", "prefix")}
WHOLE = "strategy.options.zero_optimization.stage3_param_persistence_threshold=0"
STEPS = "steps=3"


@pytest.fixture(scope="module")
def alone(tmp_path_factory, others, base):
    found = {}
    for kind, words in RUNS.items():
        found[kind] = adapted(tmp_path_factory.mktemp(kind), others, base, STEPS, adapter=words)
        finish(found[kind])
    return found


def finished(world: World, paths: list[str]) -> None:
    """Each run stopped after its first step, gone on with, and exported."""
    from accelerate.state import AcceleratorState

    for path in paths:
        train(world, path, last=1)
        # Accelerate keeps the first engine's settings for the whole process; a run of its own has a process of its own.
        AcceleratorState._reset_state(reset_partial_state=True)
        here = training(world, path)
        here.loop()
        here.finish()
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("strategy", CUT)
def test_c20_the_curve_and_the_export_are_those_of_one_device(tmp_path, others, base, alone, strategy):
    words = (f"strategy={strategy}", *([WHOLE] if strategy == "zero3" else []))
    paths = {kind: adapted(tmp_path / kind, others, base, STEPS, *words, adapter=RUNS[kind], world=2) for kind in CUT[strategy]}
    run_distributed(finished, 2, [str(path) for path in paths.values()])
    for kind, path in paths.items():
        assert losses(path) == pytest.approx(losses(alone[kind]), rel=1e-5), kind
        found, wanted = (load_file(each / "model" / "adapter_model.safetensors") for each in (path, alone[kind]))
        assert list(found) == ["prompt_embeddings"]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
