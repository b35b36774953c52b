"""Ranks that torchrun, `accelerate launch` or srun started: how they are told from ordinary processes, and how they train and stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.processes import events, family, new_run, steps, until
from tests.launch.standin import MODULE, ROOT
from trainer.environment import RankEnv, expand_counts, expand_nodes, foreign_rank, is_public
from trainer.survival import STOPPED
from trainer.survival.attempts import newest_committed

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_NTASKS": "9",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "n[2-3]",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_JOB_ID": "77",
}


def test_an_ordinary_process_is_no_rank() -> None:
    assert foreign_rank({}) is None
    assert foreign_rank({"RANK": "0", "WORLD_SIZE": "2"}) is None


def test_the_ranks_of_our_agent_are_not_foreign() -> None:
    assert foreign_rank(TORCHRUN | {"TRAINER_ATTEMPT": "0"}) is None


def test_torchrun_is_seen() -> None:
    elastic = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert foreign_rank(TORCHRUN | elastic) == RankEnv(3, 4, 1, 2, "10.0.0.1", 1234, "torchrun", attempt=2, joins=True)


def test_deepspeed_is_seen() -> None:
    place = foreign_rank({name: value for name, value in TORCHRUN.items() if name != "LOCAL_WORLD_SIZE"} | {"LOCAL_SIZE": "2"})
    assert place is not None and (place.local_size, place.joins, place.launcher) == (2, False, "environment")


def test_srun_is_seen() -> None:
    place = foreign_rank(SRUN)
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (5, 7, 1, 3)
    assert (place.address, place.launcher, place.joins) == ("n2", "slurm", False)
    other = foreign_rank(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    assert other is not None and other.port == place.port and other.local_size == 4


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash inside an allocation of nine tasks
        {"SLURM_STEP_ID": "4294967290"},  # an interactive step
        {"SLURM_STEP_ID": ""},  # a batch script
    ],
)
def test_a_shell_under_slurm_is_no_rank(change: dict[str, str]) -> None:
    assert foreign_rank(SRUN | change) is None


def test_contradictory_variables_are_refused() -> None:
    with pytest.raises(ValueError, match="rank 4 of 4"):
        foreign_rank(TORCHRUN | {"RANK": "4"})


def test_slurms_short_forms() -> None:
    assert expand_nodes("n[1-3,07],login,r[1-2]c[08-09]") == ["n1", "n2", "n3", "n07", "login", "r1c08", "r1c09", "r2c08", "r2c09"]
    assert expand_counts("4(x2),3") == [4, 4, 3]


def test_s07_public_addresses_are_told_from_private_ones() -> None:
    assert is_public("8.8.8.8")
    assert not any(map(is_public, ("127.0.0.1", "10.1.2.3", "192.168.0.1", "fe80::1", "no-such-host.invalid")))


def test_detection_imports_no_torch() -> None:
    code = "import sys, trainer.environment, trainer.agent, trainer.launch.local; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


TOOLS = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": [str(TOOLS / "torchrun"), "--standalone", "--nproc-per-node=2", "-m", MODULE],
    # Its `--cpu` starts one process, whatever the number asked for; `--multi_gpu` starts two, with or without GPUs.
    "accelerate": [str(TOOLS / "accelerate"), "launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
                   "--dynamo_backend=no", "--main_process_port=0", "-m", MODULE],
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_of_a_foreign_launcher_train_and_stop_on_sigterm(tmp_path: Path, launcher: str) -> None:
    run = new_run(tmp_path / "run", steps=100000, save_every=100000, step_seconds=0.01)
    process = subprocess.Popen([*LAUNCHERS[launcher], str(run)], env=environment(), cwd=tmp_path, start_new_session=True)
    try:
        until(lambda: len(steps(run)) > 3 and len(steps(run, 1)) > 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) != 0
        until(lambda: not family(run), seconds=30)
    finally:
        for left in family(run):
            left.kill()
    assert events(run, "stop")[0]["reason"] == "SIGTERM"
    assert newest_committed(run / "checkpoints") == steps(run)[-1] == steps(run, 1)[-1]


def srun(run: Path, size: int, port: int, **more: str) -> list[subprocess.Popen[bytes]]:
    """Processes with the variables that srun sets."""
    common = {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": str(size),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", MODULE, str(run)],
            env=environment(**common, SLURM_NODEID="0", SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), MASTER_PORT=str(port), **more),
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ranks_of_srun_train_and_one_signal_stops_all(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=100000, save_every=100000, step_seconds=0.01)
    processes = srun(run, 3, free_port(), MASTER_ADDR="127.0.0.1")
    try:
        until(lambda: all(len(steps(run, rank)) > 3 for rank in range(3)))
        processes[2].send_signal(signal.SIGUSR1)
        assert [process.wait(timeout=60) for process in processes] == [STOPPED] * 3
    finally:
        for process in processes:
            process.kill()
    assert len({steps(run, rank)[-1] for rank in range(3)}) == 1
    assert events(run, "stop")[0]["reason"] == "SIGUSR1"


def test_f06_a_taken_port_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        first, second = srun(run, 2, port, MASTER_ADDR="127.0.0.1")
        try:
            _, said = first.communicate(timeout=60)
            assert first.returncode == 1
            assert f"127.0.0.1:{port}" in said.decode()
        finally:
            second.kill()
            second.communicate()


def test_steps_are_those_of_both_ranks(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=6, save_every=3)
    done = subprocess.run([*LAUNCHERS["torchrun"], str(run)], env=environment(), cwd=tmp_path, timeout=120)
    assert done.returncode == 0
    expected = sum(3 * 1.1**step for step in range(6))
    assert json.loads((run / "final.json").read_text())["total"] == pytest.approx(expected, rel=1e-12)
