"""Ctrl-C, SIGTERM, a closed terminal, and the death of those who supervise: nothing is lost and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launch.processes import events, family, launched, new_run, ranks, steps, total, until
from tests.launch.standin import ROOT
from trainer.survival import KILLED, STOPPED
from trainer.survival.attempts import newest_committed


def start_front_door(run: Path, *options: str, **streams: Any) -> subprocess.Popen[bytes]:
    """In a session of its own, so that its process group is what a terminal would send Ctrl-C to."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.launch.front_door", str(run), "--processes=2", *options]
    return subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **streams)


def finish(run: Path, count: int) -> None:
    """Go on with a stopped run, and hold that every step was run exactly once on both ranks."""
    with launched(run) as handle:
        assert handle.wait() == 0
    for rank in range(2):
        assert steps(run, rank) == list(range(1, count + 1))
    assert total(run) == pytest.approx(sum(3 * 1.1 ** (step % 50) for step in range(count)), rel=1e-12)


def test_f17_ctrl_c_saves_and_leaves_no_process(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=150, save_every=1000, step_seconds=0.02)
    door = start_front_door(run)
    until(lambda: len(steps(run)) > 5)
    os.killpg(door.pid, signal.SIGINT)
    assert door.wait(timeout=60) == 128 + signal.SIGINT
    assert not family(run)
    assert newest_committed(run / "checkpoints") == steps(run)[-1] == steps(run, 1)[-1]
    assert events(run, "stop")[0]["reason"] == "SIGINT"
    assert not (run / "stop").exists()
    finish(run, 150)


def test_f07_sigterm_to_every_supervisor_saves_first(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=150, save_every=1000, step_seconds=0.02)
    door = start_front_door(run)
    until(lambda: len(steps(run)) > 5)
    # A service manager or a pod's end signals all of them, and the front door passes it on once more.
    for process in family(run):
        process.send_signal(signal.SIGTERM)
    assert door.wait(timeout=60) == 128 + signal.SIGTERM
    assert not family(run)
    finish(run, 150)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_f17_ctrl_c_after_another_request_kills(tmp_path: Path, first: signal.Signals) -> None:
    """As the agent's line says, whatever it was that asked first."""
    run = new_run(tmp_path / "run", steps=1000)
    with launched(run, processes=1, faults=[{"rank": 0, "step": 3, "kind": "hang"}]) as handle:
        until(lambda: len(steps(run)) == 2)
        for _ in range(2):
            handle.agent.send_signal(first)
            until(lambda: events(run, "stop_request"))
        handle.agent.send_signal(signal.SIGINT)
        assert handle.agent.wait(timeout=10) == KILLED


def test_f17_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=1000, save_every=4)
    environment_fault = '[{"rank": 1, "step": 8, "kind": "child"}, {"rank": 1, "step": 9, "kind": "hang"}]'
    os.environ["STANDIN_FAULTS"] = environment_fault
    try:
        door = start_front_door(run)
    finally:
        del os.environ["STANDIN_FAULTS"]
    until(lambda: len(steps(run)) == 8)
    before = family(run)
    assert any("standin-child" in process.cmdline() for process in before)
    os.killpg(door.pid, signal.SIGINT)
    until(lambda: events(run, "stop_request"))
    with pytest.raises(subprocess.TimeoutExpired):
        door.wait(timeout=1)
    os.killpg(door.pid, signal.SIGINT)
    assert door.wait(timeout=10) == KILLED
    assert not [process for process in before if process.is_running() and process.status() != "zombie"]
    assert newest_committed(run / "checkpoints") == 8


def test_a_stop_file_is_a_request_too(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=1000, save_every=1000)
    with launched(run) as handle:
        until(lambda: steps(run))
        (run / "stop").write_text("by hand")
        assert handle.wait() == STOPPED
    assert events(run, "stop")[0]["reason"] == "by hand"


def test_a_stop_before_the_first_step_runs_none(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=1000, save_every=1000)
    with launched(run) as handle:
        until(lambda: events(run, "launch"))
        handle.cancel()
        assert handle.wait() == 128 + signal.SIGINT
    assert len(steps(run)) == len(steps(run, 1)) < 1000


@pytest.mark.parametrize("stopped", [False, True])
def test_ranks_die_with_their_agent(tmp_path: Path, stopped: bool) -> None:
    run = new_run(tmp_path / "run", steps=100000, save_every=1000)
    with launched(run) as handle:
        until(lambda: steps(run))
        mine = ranks(run)
        assert len(mine) == 2
        if stopped:
            mine[0].suspend()
        handle.agent.kill()
        handle.agent.wait()
        until(lambda: not ranks(run), seconds=5)


def test_a_killed_front_door_stops_the_run_after_saving(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=150, save_every=1000, step_seconds=0.02)
    door = start_front_door(run)
    until(lambda: len(steps(run)) > 5)
    door.kill()
    door.wait()
    until(lambda: not family(run))
    assert newest_committed(run / "checkpoints") == steps(run)[-1]
    finish(run, 150)


def test_a_run_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=40, step_seconds=0.02)
    door = start_front_door(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until(lambda: steps(run))
    assert door.stdout is not None
    door.stdout.close()
    assert door.wait(timeout=60) == 0
    assert total(run)


def test_the_lock_is_held_while_the_agent_lives(tmp_path: Path) -> None:
    import fcntl

    run = new_run(tmp_path / "run", steps=100000)
    held = (run / ".lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    with launched(run, lock=held.fileno()) as handle, (run / ".lock").open("w") as other:
        held.close()
        until(lambda: steps(run))
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for rank in ranks(run):
            assert str(run / ".lock") not in [file.path for file in rank.open_files()]
        handle.agent.kill()
        handle.agent.wait()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
