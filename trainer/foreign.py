"""A run whose ranks another launcher started: rank 0 is its front door and tells the others over the store."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainer.choices import ConfigError
from trainer.distributed import leave
from trainer.environment import RankEnv

if TYPE_CHECKING:
    from torch.distributed import Store

    from trainer.config import Config

_KEY = "run"
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Opened:
    """What rank 0 made ready. config: None where there is nothing to train, and exit_code says why."""

    path: Path = Path()
    config: Config | None = None
    attempt: int = 0
    exit_code: int = 0


@contextlib.contextmanager
def opened(words: list[str], place: RankEnv, store: Store) -> Iterator[Opened]:
    """The run that the words describe, the same on every rank; rank 0 holds its lock meanwhile.

    Raises on rank 0 whatever is wrong with the words; the other ranks end with exit code 1 and leave the explaining to it.
    """
    from trainer.config import dump, from_dict

    if place.rank != 0:
        posted = _await(store)
        text = posted.pop("config", None)
        config = from_dict(yaml.safe_load(text)) if text else None
        if config is None:
            leave(store, place.rank, place.size)
        yield Opened(Path(posted["path"]), config, posted["attempt"], posted["exit_code"])
        return
    with contextlib.ExitStack() as stack:
        try:
            run = _open(words, place, stack)
        except BaseException:
            _post(store, Opened(exit_code=1), None)
            leave(store, place.rank, place.size)
            raise
        _post(store, run, dump(run.config) if run.config is not None else None)
        if run.config is None:
            leave(store, place.rank, place.size)
        yield run


def _open(words: list[str], place: RankEnv, stack: contextlib.ExitStack) -> Opened:
    from trainer.front_door import is_finished, make_ready
    from trainer.run import RunDir
    from trainer.survival.attempts import next_attempt
    from trainer.words import composed

    configs = composed(words, "train")
    if configs is None:
        return Opened()
    if len(configs) > 1:
        raise ConfigError(
            f"--multirun: {len(configs)} jobs, but {place.launcher} started the ranks of one run; start `trainer train -m` by itself"
        )
    (config,) = configs
    only = config.strategy.processes
    if only is not None and only != place.size:
        raise ConfigError(
            f"strategy={config.strategy.name} is {only} process, but {place.launcher} started {place.size}; start one, or use strategy=ddp"
        )
    run = RunDir(config.output_dir)
    stack.enter_context(run.locked())
    if is_finished(run, config):
        print(f"{config.name} is finished: {run.path}; start anew with resume.overwrite=true")
        return Opened(run.path)
    config = make_ready(config, run, place.size, place.local_size)
    return Opened(run.path, config, next_attempt(run))


def _post(store: Store, run: Opened, config: str | None) -> None:
    fields = {"path": str(run.path), "config": config, "attempt": run.attempt, "exit_code": run.exit_code}
    store.set(_KEY, json.dumps(fields))


def _await(store: Store) -> dict[str, Any]:
    """What rank 0 posts; without a time limit, because tokenizing has none. A rank 0 that dies takes the connection with it."""
    while not store.check([_KEY]):
        time.sleep(_POLL_SECONDS)
    posted: dict[str, Any] = json.loads(store.get(_KEY))
    return posted
