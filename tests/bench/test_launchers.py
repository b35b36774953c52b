"""`trainer bench` as torchrun and srun start it: one allocation, every number of processes; and what a signal leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.bench.test_bench import ROOT, RUN
from tests.launch.processes import until
from tests.launch.test_foreign import free_port
from tests.loops import write_texts
from trainer.bench.results import load
from trainer.bench.scaling import curves

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
WORDS = ("-m", "trainer", "bench", *RUN, "strategy=ddp", "tracking.wandb=off", "name=tiny", "warmup=1", "repeats=1")
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    write_texts(tmp_path / "texts")
    return tmp_path


def started(folder: Path, *command: str, **more: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | more
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_one_allocation_of_torchrun_measures_every_number_of_processes(folder: Path) -> None:
    process = started(folder, *TORCHRUN, *WORDS, "processes=1,2", "scaling=weak", "steps=2")
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 0, told
    results = load(folder / "runs" / "bench-tiny")
    assert [(cell.state.value, cell.world, len(cell.repeats)) for cell in results.cells] == [("measured", 1, 1), ("measured", 2, 1)], told
    one, two = (cell.repeats[0] for cell in results.cells)
    assert (one["samples"], two["samples"]) == (2 * 8, 2 * 16), "each process brings a global batch"
    assert "communication_in_flight" in two and all(repeat["host_syncs_per_step"] == 0 for repeat in (one, two))
    assert (results.conditions["launcher"], results.conditions["nodes"]) == ("torchrun", 1)
    ((base, point),) = curves(results.cells)
    assert point.efficiency.median == pytest.approx(two["tokens_per_second"] / 2 / one["tokens_per_second"]) and base.cell.world == 1
    assert "weak scaling" in told and "started by torchrun" in told and told.count("making ready") == 2, "one of them speaks"


def ranks(supervisors: list[subprocess.Popen[str]]) -> list[psutil.Process]:
    """The processes that are measured."""
    found = []
    for each in supervisors:
        with contextlib.suppress(psutil.Error):  # git, for one, is gone before it is asked
            found += [child for child in psutil.Process(each.pid).children() if "trainer.bench.rank" in child.cmdline()]
    return found


def test_a_signal_to_one_task_of_srun_ends_all(folder: Path) -> None:
    more: dict[str, Any] = SRUN | {"SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    tasks = [
        started(folder, sys.executable, *WORDS, "steps=100000", **more, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in (0, 1)
    ]
    try:
        measured = until(lambda: len(found := ranks(tasks)) == 2 and found, seconds=120)
        tasks[1].send_signal(signal.SIGTERM)
        told = [task.communicate(timeout=60)[0] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [130, 130], told
    assert "interrupted; the same command measures what is missing" in told[0]
    assert not any(rank.is_running() for rank in measured)
    (cell,) = json.loads((folder / "runs" / "bench-tiny" / "results.json").read_text())["cells"]
    assert (cell["state"], cell["processes"], cell["repeats"]) == ("pending", 2, [])
