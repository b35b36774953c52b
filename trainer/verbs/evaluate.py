"""`trainer evaluate run=runs/quickstart`: the held-out figures of a trained model, computed anew in one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError
from trainer.options import option, parse

if TYPE_CHECKING:
    from trainer.run import RunDir

SUMMARY = "compute a run's held-out figures anew, in one process"


@dataclass
class Options:
    """What `evaluate` takes."""

    run: str = option(help="run directory")
    device: str | None = option(None, help="cpu or cuda; default: as the run has it")

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu", "cuda"):
            raise ConfigError(f"device: {self.device!r}; allowed: cpu, cuda")


def run(words: list[str]) -> int:
    """Print the figures beside those that the run recorded. Raises ConfigError where there is no such run, or no model yet."""
    options = parse(words, Options, "evaluate")
    if options is None:
        return 0
    from trainer.front_door import finished

    found = finished(options.run)
    _print(held_out(found, options.device), found.summary or {})
    return 0


def held_out(run: RunDir, device: str | None = None) -> dict[str, Any]:
    """Figures of `model/` on the held-out split of the run's own data and on its named sets, by the code that the training loop uses."""
    import torch
    import transformers

    from trainer.adapters import NoAdapter
    from trainer.adapters.folder import Filed, base_of, is_adapter
    from trainer.data.corpus import open_corpus
    from trainer.distributed import alone
    from trainer.evaluation import held_outs
    from trainer.initial import start_of
    from trainer.models.pretrained import Pretrained
    from trainer.run import load_frozen
    from trainer.strategies.single import Single

    transformers.logging.disable_progress_bar()
    config = load_frozen(run.config_path)
    resolved = run.placement
    kind = device or config.device.kind
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: no GPU is visible here; use device=cpu, or show a GPU")
    world = alone("cuda" if kind != "cpu" and torch.cuda.is_available() else "cpu")
    corpus = open_corpus(resolved["corpus"], resolved["rows"], config)
    # What users load is what is evaluated.
    folder, values = run / "model", None
    path, revision = base_of(folder) if is_adapter(folder) else (str(folder), None)
    if is_adapter(folder):
        values = Filed(folder)
    else:
        config.adapter, config.optim.freeze = NoAdapter(), []
    config.model, config.init.run = Pretrained(path=path, revision=revision), None
    config.strategy = Single()
    begun = start_of(config.task.module(config, corpus), config, world, values)
    placement = config.strategy.place(begun.module, begun.weights, config.optim.build, config, world)
    found = held_outs(config, run, corpus, config.task, int(resolved["micro_batch"]), placement)
    return {key: value for held_out in found for key, value in held_out.figures(world.device).items()}


def _print(figures: dict[str, Any], recorded: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from trainer.tracking.figures import shown

    table = Table("held out", box=None, pad_edge=False, header_style="bold")
    table.add_column("now", justify="right")
    table.add_column("in summary.json", justify="right")
    for key, value in figures.items():
        table.add_row(key.replace("_", " "), shown(key, value), shown(key, recorded.get(key)))
    for key, value in recorded.items():
        if value is not None and key.endswith(("gzip_bits_per_byte", "xz_bits_per_byte", "_from_neighbour")):
            table.add_row(key.replace("_", " "), "", shown(key, value), style="dim")
    Console(highlight=False).print(table)
