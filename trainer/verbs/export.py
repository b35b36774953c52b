"""`trainer export run=runs/quickstart`: any checkpoint of a run as a folder that transformers loads, with a model card.

trainer export run=runs/quickstart step=500 dtype=bfloat16 output=exports/quickstart
trainer export run=runs/quickstart onnx=true
trainer export run=runs/quickstart push_to_hub=me/quickstart private=true
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.choices import ConfigError, nearest
from trainer.options import option, parse

if TYPE_CHECKING:
    from trainer.run import RunDir

SUMMARY = "write a checkpoint as a Hugging Face folder with a model card; send it to a hub"

DTYPES = ("float32", "bfloat16", "float16")
# In the metadata of every card of ours.
TAG = "shardloom"


@dataclass
class Options:
    """What `export` takes."""

    run: str = option(help="run directory, finished or not")
    step: int | None = option(None, help="step of a checkpoint; default: the newest")
    output: str | None = option(None, help="folder to write; default: exports/step-… of the run directory")
    dtype: str = option("float32", help="type of the weights: float32, bfloat16 or float16")
    merge: bool = option(False, help="of a run with an adapter: one plain model, instead of the adapter alone")
    onnx: bool = option(False, help="also as ONNX, compared with PyTorch on held-out examples; an adapter is merged")
    averages: bool | None = option(None, help="moving averages of the weights; default: what the run evaluates")
    license: str | None = option(None, help="for the card, as hubs name it: apache-2.0, mit, cc-by-4.0 …")
    push_to_hub: str | None = option(None, help="send it to this repository: OWNER/NAME")
    private: bool = option(False, help="a new repository is to be seen by its owner only")

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype: {self.dtype!r}; allowed: {', '.join(DTYPES)}{nearest(self.dtype, DTYPES)}")
        if self.onnx and self.dtype != "float32":
            raise ConfigError(f"onnx: true with dtype={self.dtype}; allowed: dtype=float32, in which the graph is compared with PyTorch")
        if self.private and self.push_to_hub is None:
            raise ConfigError("private: true without push_to_hub; name the repository too: push_to_hub=OWNER/NAME")


def run(words: list[str]) -> int:
    """Write the folder and print where it is. Raises ConfigError for what cannot be exported or sent, before any work is done."""
    options = parse(words, Options, "export")
    if options is None:
        return 0
    from trainer.front_door import existing
    from trainer.run import checkpoint_of

    found = existing(options.run)
    source = str(found.path) if options.step is None else f"{found.path}@{options.step}"
    checkpoint = checkpoint_of(source, "run" if options.step is None else "step")
    if options.onnx:
        from trainer.export.graph import require_packages

        require_packages()
    output = Path(options.output).expanduser() if options.output else found / "exports" / checkpoint.name
    refuse_other_folder(output)
    api = None
    if options.push_to_hub is not None:
        from trainer.export.hub import ready

        api = ready(options.push_to_hub, options.private)
    print(_written(found, checkpoint, output, options))
    if api is not None and options.push_to_hub is not None:
        from trainer.export.hub import push

        print(push(api, options.push_to_hub, output, options.private, f"{found.path.name}, {checkpoint.name}"))
    return 0


def refuse_other_folder(path: Path) -> None:
    """Raise ConfigError where something lies there that no export has written: it would be replaced."""
    if not path.exists() or path.is_dir() and not any(path.iterdir()):
        return
    from trainer.adapters.folder import is_adapter

    card = path / "README.md"
    head = card.read_text(errors="replace").partition("\n---\n")[0] + "\n" if card.is_file() else ""
    if not (head.startswith("---\n") and f"\n- {TAG}\n" in head and ((path / "config.json").is_file() or is_adapter(path))):
        raise ConfigError(f"output: {path} is there, and no export; name a folder that is empty or not there yet")


def _written(run: RunDir, checkpoint: Path, output: Path, options: Options) -> str:
    """Write the folder; what came of it, in a line, and in one for each graph."""
    from trainer.checkpoint.files import CheckpointError
    from trainer.checkpoint.opening import open_one
    from trainer.distributed import alone
    from trainer.export import Form, export
    from trainer.run import load_frozen
    from trainer.tracking.report import relative

    config = load_frozen(run.config_path)
    averages = config.optim.ema.shown if options.averages is None else options.averages
    merge = options.merge or (options.onnx and config.adapter.merges)
    try:
        opened = open_one(checkpoint, alone())
        form = Form(options.dtype, averages, merge, options.onnx, options.push_to_hub, options.license)
        done = export(run, opened, output, form)
    except CheckpointError as error:
        raise ConfigError(f"run={run.path}: {error}") from error
    said = f"{relative(output)}: {done.parameters:,} parameters of step {opened.step}, {options.dtype}{', averaged' if averages else ''}"
    graphs = (f"{relative(output / graph.file)}: {graph.found}" for graph in done.graphs)
    return "\n".join([said, *graphs])
