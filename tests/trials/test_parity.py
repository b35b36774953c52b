"""`trainer parity`: strategies that compute the same are told from one that does not, and where it first differs is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trials.conftest import Trainer
from trainer import compose
from trainer.choices import ConfigError
from trainer.run import RunDir
from trainer.trials.outcomes import Distance
from trainer.trials.parity import Variant, compare, first_difference, variants


def test_c20_a_strategy_that_differs_is_found_and_the_place_is_told(trainer: Trainer, folder: Path) -> None:
    done = trainer("parity", "strategies=single,ddp,crooked", "steps=6", "global_batch=7", "micro_batch=3", "model.dropout=0.5")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "crooked differs" in done.stdout and "the update of step 3" in done.stdout
    assert "ddp differs" not in done.stdout
    verdict = json.loads((folder / "runs" / "parity-tiny" / "parity.json").read_text())
    ddp, crooked = verdict["others"]
    assert not verdict["good"] and not ddp["differs"] and crooked["differs"]
    assert ddp["world_size"] == 2 and ddp["loss_apart"] <= 1e-5 and ddp["weights_apart"] <= 1e-4
    assert 0 < verdict["floor"]["weights_apart"] <= 1e-4, "the same sums in another order"
    assert crooked["weights_apart"] > 5 * ddp["weights_apart"] and crooked["furthest"]
    assert verdict["reference"]["loss"][0] > verdict["reference"]["loss"][-1], "it is a rate at which something happens"
    assert len(ddp["state_bytes_by_rank"]) == 2 and ddp["state_bytes_by_rank"][0]["exp_avg"] > 0


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        ({1: {"loss": 5.1}}, "loss of step 1: 5.1, not 5 (2.0e-02 apart, 1.0e-05 allowed); everything before agrees, so it is the first"),
        ({2: {"grad_norm": 1.1}}, "gradient norm of step 2: 1.1, not 1 (1.0e-01 apart, 1.0e-04 allowed); its loss agrees"),
        ({3: {"loss": 3.1}}, "so it is the update of step 2"),
        ({3: {"loss": None}}, "loss of step 3: not finite, not 3"),
        ({2: {"rows": [1, 2]}}, "the samples of step 2 are others"),
        ({3: None}, "step 3 was not computed"),
        ({"weights": 1e-2}, "the final weights are 1.0e-02 apart (1.0e-04 allowed), most of all model.head (2.0e-02)"),
    ],
)
def test_where_two_runs_part(tmp_path: Path, changed: dict, told: str) -> None:
    def variant(changed: dict) -> Variant:
        lines: dict[int, dict[str, Any]] = {step: {"loss": 6.0 - step, "grad_norm": 1.0, "rows": [step]} for step in (1, 2, 3)}
        lines = {step: line | (changed.get(step) or {}) for step, line in lines.items() if changed.get(step, 0) is not None}
        rows = {step: line["rows"] for step, line in lines.items()}
        apart = Distance(changed.get("weights", 1e-7), "model.head", 2 * changed.get("weights", 1e-7))
        return Variant("ddp", RunDir(tmp_path), 2, lines, rows, [], weights=apart)

    # Smaller than noise, everywhere.
    reference = variant({step: {"loss": (6.0 - step) * (1 + 1e-7)} for step in (1, 2, 3)} if told == "" else {})
    found = first_difference(reference, variant(changed), loss=1e-5, norm=1e-4, weights=1e-4)
    assert told in found and (found == "") == (told == "")


@pytest.mark.parametrize(
    ("strategies", "words", "told"),
    [
        (["ddp"], (), "at least two are needed"),
        (["ddp", "fsdp"], ("optim=muon",), "strategy=fsdp cannot run with optim=muon"),
        (["ddp", "dpp"], (), "did you mean 'ddp'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, strategies: list[str], words: tuple[str, ...], told: str) -> None:
    config = compose("steps=2", f"output_dir={tmp_path / 'here'}", *words)
    with pytest.raises(ConfigError) as raised:
        compare(config, strategies, print)
    assert told in str(raised.value)
    assert not (tmp_path / "here").exists()


def test_what_cannot_run_is_left_out_with_its_reason(tmp_path: Path) -> None:
    found, skipped = variants(compose("steps=2", "optim=muon", f"output_dir={tmp_path / 'here'}"), None)
    assert next(iter(found)) == "single" and "ddp" in found
    assert "Muon" in skipped["fsdp"]
