"""A finished run evaluated anew: any split or named set of its data, or other files, under any strategy, on any number of processes.

`python -m trainer.evaluating FOLDER` is one rank of several; alone, nothing is started.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.atomic import write_json
from trainer.choices import ConfigError, find, load_choices, nearest
from trainer.launch.local import Local

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.run import RunDir
    from trainer.survival.stop import Stop

# The held-out part of a run's own data, where sets are named.
HELD_OUT = "held_out"
# In the folder of the ranks: what they are asked, and what they have found.
_ASKED, _FOUND = "asked.json", "found.json"


@dataclass(frozen=True)
class Set:
    """What is evaluated on. name: in the names of its figures; "" for the run's own held-out part."""

    name: str
    corpus: str
    rows: str
    split: str = "eval"


@dataclass(frozen=True)
class Found:
    """figures: by their keys. tables: by set, figures by label and the like; of examples alone."""

    figures: dict[str, Any]
    tables: dict[str, Any]


class Evaluating(Local):
    """Ranks of `trainer evaluate`."""

    module: ClassVar[str] = "trainer.evaluating"


def own_sets(run: RunDir, split: str, name: str | None) -> list[Set]:
    """Those of the run's own data. name: of the only one. Raises ConfigError where there is none of that name."""
    placed = run.placement
    if split == "train":
        return [Set("train", placed["corpus"], placed["rows"], "train")]
    found = {HELD_OUT: Set("", placed["corpus"], placed["rows"])}
    found |= {each: Set(each, **paths) for each, paths in placed.get("evals", {}).items()}
    if name is not None and name not in found:
        raise ConfigError(f"set: {name!r}; this run has {', '.join(found)}{nearest(name, found)}")
    return [found[name]] if name is not None else [*found.values()]


def set_of_files(path: str, config: Config) -> Set:
    """Files that the run has not seen, prepared by its tokenizer and its task. Raises ConfigError where they cannot be."""
    from trainer.data.prepare import prepare
    from trainer.data.squad_files import is_squad
    from trainer.predicting import kinds_of

    load_choices()
    kinds = kinds_of(path, None if config.task.fields else "text")
    kind = "squad" if "squad" in kinds and Path(path).is_file() and is_squad(path) else kinds[0]
    options: dict[str, Any] = {"source": kind, "path": path}
    if "columns" in {field.name for field in dataclasses.fields(find("data", kind))}:  # type: ignore[arg-type]
        given = dataclasses.asdict(config.data.columns) if hasattr(config.data, "columns") else {}
        options["columns"] = {column: value for column, value in given.items() if value is not None}
    stem = re.sub(r"\W+", "_", Path(path).name.partition(".")[0]).strip("_")
    name = stem if stem[:1].isalpha() and stem.isascii() else f"set_{stem}" if stem.isascii() else "input"
    try:
        prepared = prepare(replace(config, evals={name: options}))
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"evals.{name}.path", "input", 1)) from error
    if prepared.fingerprint != config.fingerprint:
        raise ConfigError("input: the run's own data are no longer what it was trained on, and its tokenizer and labels come from them")
    made = prepared.evals[name]
    return Set(name, str(made.corpus), str(made.rows))


def evaluate(run: RunDir, config: Config, sets: Sequence[Set]) -> Found:
    """Figures of `model/` on some sets, by as many processes as the strategy and the launcher of the configuration say."""
    resolved = run.placement
    asked = {"model": str(run / "model"), "corpus": resolved["corpus"], "rows": resolved["rows"], "micro_batch": resolved["micro_batch"]}
    asked["sets"] = [dataclasses.asdict(each) for each in sets]
    if config.strategy.processes == 1:
        from trainer.distributed import alone, device_of

        kind = config.device.kind
        return _found(config, asked, alone(device_of(None if kind == "auto" else kind).type))
    with _folder(run) as folder:
        return _by_ranks(config, asked, folder)


@contextmanager
def _folder(run: RunDir) -> Iterator[Path]:
    """A place for ranks, gone afterwards."""
    folder = run / "evaluation" / f".ranks-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _by_ranks(config: Config, asked: dict[str, Any], folder: Path) -> Found:
    from trainer.config import dump

    launcher = Evaluating(processes=config.launcher.processes)  # type: ignore[attr-defined]
    config.strategy.fits(*(launcher.ready(config),) * 2)
    # What fails once, here, fails again.
    config = replace(config, survival=replace(config.survival, restarts=0))  # type: ignore[call-arg]
    (folder / "config.yaml").write_text(dump(config))
    write_json(folder / _ASKED, asked)
    code = launcher.submit(folder, config).wait()
    if code or not (folder / _FOUND).exists():
        raise ConfigError(f"the ranks ended with exit code {code}, and without figures; the lines above say why")
    return Found(**json.loads((folder / _FOUND).read_text()))


def _of_rank(config: Config, world: World, run: RunDir, stop: Stop) -> int:
    """A rank's part."""
    from trainer.survival import FINISHED

    found = _found(config, json.loads((run / _ASKED).read_text()), world)
    if world.leads:
        write_json(run / _FOUND, dataclasses.asdict(found))
    return FINISHED


def _found(config: Config, asked: dict[str, Any], world: World) -> Found:
    """What users load is what is evaluated, by the code that the training loop uses; entered by every rank."""
    import transformers

    from trainer.adapters import NoAdapter
    from trainer.adapters.folder import Filed, base_of, is_adapter
    from trainer.data.corpus import open_corpus
    from trainer.evaluation import HeldOut
    from trainer.initial import start_of
    from trainer.models.activations import fuse_activations
    from trainer.models.heads import chunk_head
    from trainer.models.pretrained import Pretrained
    from trainer.optim import AdamW

    transformers.logging.disable_progress_bar()
    corpus = open_corpus(asked["corpus"], asked["rows"], config)
    folder = Path(asked["model"])
    values, path, revision = None, str(folder), None
    if is_adapter(folder):
        values, (path, revision), config.adapter = Filed(folder), base_of(folder), config.adapter.stored()
        # Nothing is trained, but what has a state on this strategy decides how it is cut.
        config.optim = AdamW(freeze=config.optim.freeze)
    else:
        config.adapter, config.optim = NoAdapter(), AdamW()
    config.model, config.init.run = Pretrained(path=path, revision=revision), None
    module = config.task.module(config, corpus)
    if values is not None:
        # What of the model itself was trained, such as a head, is in the adapter's file, though its base has values for it.
        trained = [name for name, _ in module.named_parameters() if values.name_of(name) in values.names]
        config.adapter.beside = trained or None  # type: ignore[attr-defined]
    begun = start_of(module, config, world, values)
    fuse_activations(begun.module, config.compile)
    chunk_head(begun.module, config.head)
    config.precision.prepare(begun.module)
    placement = config.strategy.place(begun.module, begun.weights, config.optim.build, config, world)
    found = Found({}, {})
    for each in (Set(**given) for given in asked["sets"]):
        one = HeldOut(
            each.name, open_corpus(each.corpus, each.rows), None, config.task, config.seed, int(asked["micro_batch"]), placement,
            config.data.workers, each.split,
        )  # fmt: skip
        found.figures.update(one.figures(world.device))
        found.tables.update(one.tables)
    return found


if __name__ == "__main__":
    from trainer.rank import leave_process, main

    leave_process(main(sys.argv[1], _of_rank))
