"""What happens before and after the ranks: make a run directory ready, launch, wait, report.

Everything here runs in the process that the user started and touches no accelerator: a mistake is told before any device is taken.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from trainer.choices import ConfigError
from trainer.config import BUDGETS, Config, Resume
from trainer.data.corpus import open_corpus
from trainer.data.deal import describe
from trainer.data.prepare import prepare
from trainer.micro_batch import resolve
from trainer.run import RunDir, load_frozen
from trainer.tracking.closing import closing

console = Console(highlight=False)


@dataclass
class Run:
    """A run that was launched. exit_code: 0 finished, 130 or 143 stopped after saving, else failed."""

    path: Path
    exit_code: int

    @property
    def metrics(self) -> dict[str, Any]:
        """The final figures; empty while the run is unfinished."""
        return RunDir(self.path).summary or {}

    def model(self) -> Any:
        """The trained model, loaded from `model/` by transformers."""
        from trainer.export import load_exported

        return load_exported(self.path / "model")


def train(config: Config) -> Run:
    """Train to the budget, or go on with the run that `output_dir` holds. Returns when the ranks have ended.

    Raises ConfigError for everything that can be known before launch.
    """
    run = RunDir(config.output_dir)
    with run.locked() as lock:
        if is_finished(run, config):
            console.print(f"{config.name} is finished: {run.path}. Start anew with resume.overwrite=true, or name another run with name=…")
            return Run(run.path, 0)
        world_size = config.launcher.ready(config)
        handle = config.launcher.submit(run.path, make_ready(config, run, world_size), lock=lock.fileno())
        done = Run(run.path, handle.wait())
        if done.metrics:
            closing(run.path, console)
        return done


def is_finished(run: RunDir, config: Config) -> bool:
    """Whether the directory holds this very run with its budget consumed."""
    if run.summary is None or config.resume.overwrite or not run.holds_run:
        return False
    run.accepts(config)
    before = load_frozen(run.config_path)
    return all(getattr(before, key) == getattr(config, key) for key in BUDGETS)


def make_ready(config: Config, run: RunDir, world_size: int) -> Config:
    """Prepare the data, freeze the configuration, resolve the placement. Returns the configuration as frozen.

    Raises ConfigError before anything of an older run is touched.
    """
    if config.resume.overwrite:
        run.clear()
        config = dataclasses.replace(config, resume=Resume())
    run.path.mkdir(parents=True, exist_ok=True)
    run.accepts(config)
    prepared = prepare(config)
    config.task.baselines(open_corpus(prepared.corpus, prepared.rows, config))
    config = dataclasses.replace(config, fingerprint=prepared.fingerprint)
    resumes = run.freeze(config)
    (run / "summary.json").unlink(missing_ok=True)
    (run / "stop").unlink(missing_ok=True)
    run.write_placement(corpus=str(prepared.corpus), rows=str(prepared.rows))
    micro_batch = resolve(config, run, world_size)
    run.write_placement(micro_batch=micro_batch, world_size=world_size, strategy=config.strategy.name)
    warning = describe(config.global_batch, world_size, micro_batch)
    if warning:
        console.print(f"[yellow]warning:[/] {warning}")
    verb = "resuming" if resumes else "training"
    console.print(f"{verb} [bold]{config.name}[/] in {run.path}: {config.strategy.name} on {world_size} process{'es' * (world_size > 1)}")
    return config


def existing(path: str) -> RunDir:
    """A run directory that must exist. Raises ConfigError with the runs there are."""
    run = RunDir(path)
    if not run.config_path.exists():
        known = sorted(str(found.parent) for found in Path("runs").glob("**/config.yaml"))
        raise ConfigError(f"run={path}: no run there; " + (f"runs here: {', '.join(known)}" if known else "there are no runs under runs/"))
    return run
