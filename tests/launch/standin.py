"""A rank program in place of the training loop: real processes that step with gloo, honour Stop, write checkpoints, and fail on command.

STANDIN_FAULTS, a JSON list of {"rank", "step", "kind", "attempt" (default: every)}, says where ranks fail.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainer.environment import foreign_rank
from trainer.rank import leave_process, main, train_in_place
from trainer.survival import FINISHED, STOPPED
from trainer.survival.attempts import newest_committed

MODULE = "tests.launch.standin"
ROOT = Path(__file__).resolve().parent.parent.parent


def read(path: Path) -> SimpleNamespace:
    fields = json.loads(path.read_text())
    return SimpleNamespace(
        strategy=SimpleNamespace(processes=None, name="standin"),
        device=SimpleNamespace(kind="cpu", threads=None),
        survival=SimpleNamespace(timeout_seconds=30.0),
        deterministic=False,
        **fields,
    )


def train(config: Any, world: Any, run: Any, stop: Any) -> int:
    """total ← total + Σ over ranks of a number of (rank, step): wrong if a step is lost, repeated, or run by some ranks only."""
    import torch
    from torch import distributed as dist

    total, start = torch.zeros(1, dtype=torch.float64), newest_committed(run.checkpoints)
    if start >= 0:
        total += json.loads((run.checkpoints / f"step-{start:07d}" / "state.json").read_text())["total"]
    faults = json.loads(os.environ.get("STANDIN_FAULTS", "[]"))
    for step in range(max(start, 0), config.steps):
        if stop.should_stop(step + 1):
            save(run, step, total, world)
            if world.leads:
                run.event("stop", step=step, attempt=world.attempt, reason=stop.reason)
            return STOPPED
        inject(faults, world, step + 1)
        time.sleep(config.step_seconds)
        part = torch.tensor([(world.rank + 1) * 1.1 ** (step % 50)], dtype=torch.float64)
        dist.all_reduce(part)
        total += part
        with (run / f"steps-{world.rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step + 1, "attempt": world.attempt, "threads": torch.get_num_threads()}) + "\n")
        if (step + 1) % config.save_every == 0:
            save(run, step + 1, total, world)
    if world.leads:
        (run / "final.json").write_text(json.dumps({"total": total.item()}))
        print("finished", config.steps)
    return FINISHED


def save(run: Any, step: int, total: Any, world: Any) -> None:
    from torch import distributed as dist

    if world.leads:
        folder = run.checkpoints / f"step-{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text(json.dumps({"total": total.item()}))
        (folder / "COMMIT").touch()
    dist.barrier()


def inject(faults: list[dict[str, Any]], world: Any, step: int) -> None:
    from trainer.choices import ConfigError

    for fault in faults:
        if (fault["rank"], fault["step"]) != (world.rank, step) or fault.get("attempt", world.attempt) != world.attempt:
            continue
        match fault["kind"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise ZeroDivisionError(f"injected at step {step}")
            case "refuse":
                raise ConfigError("task.size: 7 is refused")
            case "exit":
                os._exit(3)
            case "child":
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "standin-child"])
            case "hang":
                time.sleep(600)


def run(run_dir: str) -> int:
    """Under our agent, or under whatever else started this process."""
    place = foreign_rank(os.environ)
    if place is None:
        return main(run_dir, train, read)
    path = Path(run_dir)
    return train_in_place(path, place, read(path / "config.yaml"), train)


if __name__ == "__main__":
    leave_process(run(sys.argv[1]))
