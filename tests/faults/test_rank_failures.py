"""Ranks that die, raise or refuse: what the agent does, what it says, and what its exit code tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launch.processes import events, family, launched, new_run, steps, total
from trainer.survival import HALTED


def expected_total(count: int, world: int) -> float:
    return sum(sum(rank + 1 for rank in range(world)) * 1.1 ** (step % 50) for step in range(count))


@pytest.mark.parametrize("world", [2, 3])
def test_f01_a_killed_rank_is_restarted_from_the_last_checkpoint(tmp_path: Path, world: int, capfd: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path / "run", steps=12, save_every=4)
    with launched(run, processes=world, faults=[{"rank": world - 1, "step": 7, "attempt": 0, "kind": "kill"}]) as handle:
        assert handle.wait() == 0
        assert not family(run)
    lines = [json.loads(line) for line in (run / "steps-0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["attempt"] == 1] == list(range(5, 13))
    assert max(line["step"] for line in lines if line["attempt"] == 0) <= 7
    assert total(run) == pytest.approx(expected_total(12, world), rel=1e-12)
    (failure,) = events(run, "failure")
    assert failure["rank"] == world - 1 and "SIGKILL" in failure["reason"]
    (restart,) = events(run, "restart")
    assert restart["from_step"] == 4 and restart["attempt"] == 1
    said = capfd.readouterr().err
    assert f"rank {world - 1}" in said.splitlines()[0] and "restarting from the checkpoint of step 4" in said


def test_f03_the_root_cause_is_shown_first_and_the_exit_code_is_not_zero(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path / "run")
    with launched(run, "--restarts=0", faults=[{"rank": 1, "step": 3, "kind": "raise"}]) as handle:
        assert handle.wait() == 1
        assert not family(run)
    said = capfd.readouterr().err
    assert "ZeroDivisionError: injected at step 3" in said.splitlines()[0] and "rank 1 at step 3" in said.splitlines()[0]
    assert 'raise ZeroDivisionError(f"injected' in said, "the traceback is shown"
    assert "Connection" not in said, "what the peers met is a consequence, and is left to their logs"
    assert "logs/rank-00001.log" in said
    assert not (run / "final.json").exists()


def test_an_exit_code_of_a_rank_is_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path / "run")
    with launched(run, "--restarts=0", faults=[{"rank": 0, "step": 3, "kind": "exit"}]) as handle:
        assert handle.wait() == 1
    assert "rank 0" in (said := capfd.readouterr().err) and "exit code 3" in said


def test_a_refused_configuration_is_not_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path / "run")
    with launched(run, "--restarts=3", faults=[{"rank": 0, "step": 2, "kind": "refuse"}]) as handle:
        assert handle.wait() == HALTED
    assert len(events(run, "launch")) == 1
    said = capfd.readouterr().err
    assert "task.size: 7 is refused" in said and "Traceback" not in said


def test_f15_restarts_without_progress_end_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path / "run", steps=12, save_every=4)
    with launched(run, "--restarts=1", faults=[{"rank": 1, "step": 6, "kind": "raise"}]) as handle:
        assert handle.wait() == 1
    assert [event["attempt"] for event in events(run, "launch")] == [0, 1]
    assert "giving up" in capfd.readouterr().err
    assert events(run, "give_up")


def test_f12_a_new_checkpoint_renews_the_restarts(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=12, save_every=4)
    faults = [{"rank": 1, "step": 6, "attempt": 0, "kind": "kill"}, {"rank": 0, "step": 10, "attempt": 1, "kind": "kill"}]
    with launched(run, "--restarts=1", faults=faults) as handle:
        assert handle.wait() == 0
    assert [event["from_step"] for event in events(run, "restart")] == [4, 8]
    assert total(run) == pytest.approx(expected_total(12, 2), rel=1e-12)
    assert steps(run)[-4:] == [9, 10, 11, 12]
