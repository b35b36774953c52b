"""Faults on the real command and the real training loop, over a corpus of a few kilobytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launch.processes import family, until
from tests.launch.standin import ROOT
from trainer.survival import STOPPED
from trainer.survival.attempts import newest_committed

STEPS = 90
MODEL = ["model=gpt2_tiny", "model.layers=1", "model.hidden=32", "model.heads=2", "tokenizer.vocab_size=300", "sequence_length=32"]
CADENCE = [f"steps={STEPS}", "save_every=20", "log_every=5", "global_batch=5", "micro_batch=2"]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
WORDS = [*MODEL, *CADENCE, "data=text", "tracking.wandb=off", "tracking.ledger=true"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    draw = random.Random(0)
    for number in range(40):
        lines = (" ".join(draw.choice(["alpha", "beta", "gamma", "tree", "leaf", "root", "stone"]) for _ in range(9)) for _ in range(20))
        (folder / f"{number:02}.txt").write_text(".\n".join(lines))
    return folder


def start(run: Path, texts: Path, *more: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """The command in a session of its own, as a terminal would have it."""
    command = [*(launcher or (sys.executable,)), "-m", "trainer", "train", *WORDS, f"data.path={texts}/*.txt", f"output_dir={run}", *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=run.parent, env=environment, start_new_session=True)


def train(run: Path, texts: Path, *more: str) -> None:
    assert start(run, texts, *more).wait(timeout=180) == 0


def ledger(run: Path, rank: int) -> list[dict[str, Any]]:
    path = run / "ledger" / f"rank-{rank:05d}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def samples(run: Path, world: int) -> list[list[int]]:
    """The rows of each step over all ranks, as the attempt that stands ran it."""
    steps = []
    for number in range(1, STEPS + 1):
        lines = [[line for line in ledger(run, rank) if line["step"] == number] for rank in range(world)]
        last = max(line["attempt"] for line in lines[0])
        steps.append(sorted(row for mine in lines for line in mine if line["attempt"] == last for row in line["rows"]))
    return steps


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def rank_process(run: Path, rank: int) -> psutil.Process:
    (found,) = (process for process in family(run, "trainer.rank") if process.environ().get("RANK") == str(rank))
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Callable[[int], Path]:
    """The same run without a fault, by world size; trained once."""
    folder = tmp_path_factory.mktemp("uninterrupted")

    def run(world: int) -> Path:
        path = folder / str(world)
        if not path.exists():
            train(path, texts, f"launcher.processes={world}")
        return path

    return run


def test_f01_weights_after_a_killed_rank_are_bit_equal(tmp_path: Path, texts: Path, uninterrupted: Callable[[int], Path]) -> None:
    """On three ranks: on two, a sum has but one order."""
    world, broken = 3, tmp_path / "broken"
    whole = uninterrupted(world)
    process = start(broken, texts, f"launcher.processes={world}")
    until(lambda: len(ledger(broken, 0)) >= 30, seconds=120)
    rank_process(broken, world - 1).kill()
    assert process.wait(timeout=180) == 0
    assert not family(broken)
    assert {line["attempt"] for line in ledger(broken, 0)} == {0, 1}
    assert weights(whole) == weights(broken)
    assert samples(whole, world) == samples(broken, world)
    assert sum(map(len, samples(broken, world))) == STEPS * 5


def test_f17_ctrl_c_on_the_command_and_the_same_command_again(
    tmp_path: Path, texts: Path, uninterrupted: Callable[[int], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Again under torchrun, which changes nothing."""
    run = tmp_path / "run"
    process = start(run, texts)
    until(lambda: len(ledger(run, 0)) >= 10, seconds=120)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert not family(run)
    stopped = newest_committed(run / "checkpoints")
    assert stopped == ledger(run, 0)[-1]["step"] == ledger(run, 1)[-1]["step"] < STEPS
    capfd.readouterr()
    assert start(run, texts, launcher=TORCHRUN).wait(timeout=180) == 0
    assert [line["step"] for line in ledger(run, 0)] == list(range(1, STEPS + 1)), "no step twice, none left out"
    assert weights(uninterrupted(2)) == weights(run)
    assert (run / "report.html").is_file() and "what to try next" in capfd.readouterr().out


def test_under_torchrun_rank_0_composes_and_a_signal_saves(tmp_path: Path, texts: Path) -> None:
    run = tmp_path / "run"
    process = start(run, texts, launcher=TORCHRUN)
    until(lambda: len(ledger(run, 0)) >= 10, seconds=120)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    stopped = newest_committed(run / "checkpoints")
    assert stopped == ledger(run, 0)[-1]["step"] == ledger(run, 1)[-1]["step"] < STEPS
    train(run, texts)  # and goes on under our own launcher
    assert [line["step"] for line in ledger(run, 0)] == list(range(1, STEPS + 1))
    assert {line["attempt"] for line in ledger(run, 0)} == {0, 1}


def test_under_torchrun_a_mistake_is_told_once_and_ends_all(tmp_path: Path, texts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path / "run", texts, "optm.lr=1", launcher=TORCHRUN).wait(timeout=120) == 1
    said = capfd.readouterr().err
    assert said.count("optm") and said.count("error: ") == 1 and "optim" in said
    assert not (tmp_path / "run").exists()


def test_a_multirun_ends_with_the_job_that_was_stopped(tmp_path: Path, texts: Path) -> None:
    process = start(tmp_path / "jobs", texts, "-m", "seed=1,2", "steps=100000")
    first = until(lambda: list((tmp_path / "jobs").glob("*/metrics.jsonl")), 120)[0].parent
    (first / "stop").write_text("by hand")
    assert process.wait(timeout=120) == STOPPED
    assert [path.parent for path in (tmp_path / "jobs").glob("*/config.yaml")] == [first]
