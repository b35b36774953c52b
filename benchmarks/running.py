"""A whole run in this process: what `trainer train` does on one device, without the start of a process a run."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.ours import one_process
from trainer import compose
from trainer.front_door import make_ready
from trainer.run import RunDir, load_frozen
from trainer.survival.stop import Stop
from trainer.trainer import Outcome, Training

ALONE = ("strategy=single", "tracking.wandb=off", "log_every=20", "save_every=1e9", "checkpoint.keep=1", "micro_batch=32")


def trained(folder: Path, *words: str) -> dict[str, Any]:
    """Train to the budget and evaluate; the summary, with `cpu_seconds` of all threads. A run that is finished there is not run again."""
    run = RunDir(folder)
    if run.summary is None:
        config = compose(*ALONE, *words, f"output_dir={folder}", "resume.overwrite=true")
        began = time.process_time()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "printed.txt").open("w") as printed, contextlib.redirect_stdout(printed):
            make_ready(config, run, 1)
            world = one_process()
            stop = Stop(world)
            training = Training(load_frozen(run.config_path), world, run, stop)
            outcome = training.loop()
            training.finish()
            stop.close()
        assert outcome is Outcome.finished, f"{folder}: {outcome}"
        run.event("benchmark", cpu_seconds=time.process_time() - began)
    return {**(run.summary or {}), "cpu_seconds": run.events("benchmark")[-1]["cpu_seconds"]}
