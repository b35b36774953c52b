"""`trainer rehearse`: real kills at the moments that were planned, and a balance that finds what is lost or repeated."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trials.conftest import Trainer
from trainer.choices import ConfigError
from trainer.trials.killing import Moment, plan_of, plans
from trainer.trials.rehearsal import balance
from trainer.verbs import rehearse


def test_f08_f11_nothing_is_lost_under_kills_at_two_placements(trainer: Trainer, folder: Path) -> None:
    words = ("steps=20", "save_every=1", "global_batch=7", "micro_batch=3", "strategies=single,ddp", "worlds=2", "strategy=single")
    done = trainer("rehearse", "kills=2", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "samples: 0 lost, 0 repeated" in done.stdout and "nothing was lost" in done.stdout
    root = folder / "runs" / "rehearse-tiny"
    verdict = json.loads((root / "rehearsal.json").read_text())
    assert verdict["good"] and len(verdict["kills"]) == 2
    assert all(kill["moment"] == kill["planned"] for kill in verdict["kills"])
    assert {kill["moment"] for kill in verdict["kills"]} == {"commit", "first_step"}
    assert verdict["weights_apart"] <= max(1e-4, 5 * verdict["floor"])
    launches = [json.loads(line) for line in (root / "killed" / "events.jsonl").read_text().splitlines()]
    worlds = [event["world_size"] for event in launches if event["kind"] == "launch"]
    assert len(worlds) == 3 and set(worlds) == {1, 2}
    assert (root / "rehearsal.txt").read_text() in done.stdout


@pytest.mark.parametrize(("words", "told"), [(("model.dropout=0.1",), "0.1"), (("model=pretrained", "model.path=x"), "None")])
def test_placements_are_compared_without_dropout(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    """None: that of a directory, whatever it is."""
    with pytest.raises(ConfigError, match=rf"model\.dropout: {told}: .*set model\.dropout=0"):
        rehearse.run(["strategies=single,ddp", "worlds=2", "steps=4", f"output_dir={tmp_path / 'here'}", *words])


def test_rows_that_are_lost_or_repeated_are_found() -> None:
    alone = {1: [3, 5, 7], 2: [1, 1, 9]}
    assert balance(alone, {1: [3, 5, 7], 2: [1, 1, 9]}) == ({}, {})
    assert balance(alone, {1: [3, 7], 2: [1, 9, 9]}) == ({1: [5], 2: [1]}, {2: [9]})
    assert balance(alone, {1: [3, 5, 7], 2: [1, 1, 9], 3: [2]}) == ({}, {3: [2]})


@given(st.integers(1, 80), st.integers(2, 5000), st.integers(1, 500), st.integers(0, 99))
def test_kills_are_shared_out_as_promised(kills: int, steps: int, save_every: int, seed: int) -> None:
    found = plans(kills, steps, save_every, seed, 0.1, 0.2)
    kinds = [plan.moment for plan in found]
    assert len(found) == kills
    assert kinds.count(Moment.commit) + kinds.count(Moment.save) >= min(kills, math.floor(0.3 * kills))
    assert kinds.count(Moment.commit) >= math.floor(0.1 * kills) and kinds.count(Moment.first_step) >= math.floor(0.1 * kills)
    assert [plan.after for plan in found] == sorted(plan.after for plan in found)
    assert all(0 <= plan.after < max(1, steps - save_every) and plan_of(plan.text()) == plan for plan in found)
