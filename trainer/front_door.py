"""What happens before and after the ranks: make a run directory ready, launch, wait, report.

Everything here runs in the process that the user started and touches no accelerator: a mistake is told before any device is taken.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from trainer.adapters.folder import is_adapter
from trainer.catalogue.entries import run_folders
from trainer.choices import ConfigError
from trainer.compiling import refuse_uncompilable
from trainer.config import BUDGETS, Config
from trainer.data.corpus import open_corpus
from trainer.data.deal import describe
from trainer.data.prepare import prepare
from trainer.initial import refuse_other_ids, refuse_unadaptable, refuse_unfitting, refuse_unmatched
from trainer.micro_batch import resolve
from trainer.run import RunDir, load_frozen
from trainer.teaching import refuse_unteachable
from trainer.tracking.closing import closing
from trainer.tracking.report import REPORT

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
            if not (run / REPORT).exists():
                closing(run.path, console)  # the process before ended between the run's end and its report
            return Run(run.path, 0)
        done = launched(config, run, lock.fileno())
        if done.metrics:
            closing(run.path, console)
        return done


def launched(config: Config, run: RunDir, lock: int) -> Run:
    """Make the run's directory ready, launch, wait for the end. lock: descriptor of the run's held lock. Raises ConfigError as `train`."""
    world_size = config.launcher.ready(config)
    handle = config.launcher.submit(run.path, make_ready(config, run, world_size), lock=lock)
    return Run(run.path, handle.wait())


def is_finished(run: RunDir, config: Config) -> bool:
    """Whether the directory holds this very run with its budget consumed."""
    if run.summary is None or config.resume.overwrite or not run.holds_run:
        return False
    run.accepts(config)
    before = load_frozen(run.config_path)
    return all(getattr(before, key) == getattr(config, key) for key in BUDGETS)


def make_ready(config: Config, run: RunDir, world_size: int, per_node: int | None = None) -> Config:
    """Prepare the data, freeze the configuration, resolve the placement. Returns the configuration as frozen.

    per_node: processes of a node, if there are several nodes.
    Raises ConfigError before anything of an older run is touched.
    """
    config.strategy.fits(world_size, per_node or world_size)
    run.path.mkdir(parents=True, exist_ok=True)
    if not config.resume.overwrite:
        run.accepts(config)
    config.checkpoint.verify()
    config.tracking.verify()
    refuse_uncompilable(config)
    prepared = prepare(config)
    corpus = open_corpus(prepared.corpus, prepared.rows)
    config.task.baselines(corpus)
    config.model.verify(config.objective, corpus.vocabulary, config.sequence_length)
    refuse_other_ids(config, corpus)
    if config.resume.overwrite or not run.holds_run:
        refuse_unfitting(config, corpus)
    refuse_unadaptable(config, corpus)
    refuse_unmatched(config, corpus)
    refuse_unteachable(config, corpus)
    if config.resume.overwrite:
        run.clear()
        config.checkpoint.clear()
    config = dataclasses.replace(config, fingerprint=prepared.fingerprint, resume=dataclasses.replace(config.resume, overwrite=False))
    resumes = run.freeze(config)
    (run / "summary.json").unlink(missing_ok=True)
    (run / "stop").unlink(missing_ok=True)
    evals = {name: {"corpus": str(one.corpus), "rows": str(one.rows)} for name, one in prepared.evals.items()}
    run.write_placement(corpus=str(prepared.corpus), rows=str(prepared.rows), evals=evals, files=prepared.files)
    micro_batch = resolve(config, run, world_size)
    resolved = {"micro_batch": micro_batch, "world_size": world_size, "strategy": config.strategy.name}
    before = {key: run.placement.get(key) for key in resolved}
    if resumes and before != resolved:
        run.event("placement", changed={key: [before[key], value] for key, value in resolved.items() if before[key] != value})
    run.write_placement(**resolved, micro_batch_is_auto=config.micro_batch == "auto", device=config.device.kind)
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
        known = sorted(str(found) for found in run_folders(Path("runs")))
        raise ConfigError(f"run={path}: no run there; " + (f"runs here: {', '.join(known)}" if known else "there are no runs under runs/"))
    return run


def finished(path: str) -> RunDir:
    """A run directory with a model in it. Raises ConfigError where there is no such run, or no model yet."""
    run = existing(path)
    if not (run / "model" / "config.json").exists() and not is_adapter(run / "model"):
        raise ConfigError(f"run={path}: no model/ there yet; it is written when the budget is reached: the same `trainer train …` goes on")
    return run
