"""Data sets of the Hugging Face hub, or of a folder that `datasets` can load: found, fetched and kept as Arrow files by `datasets`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.choices import ConfigError, nearest

# The builders that read the formats we allow (S09); `cache` is what was prepared before. Others unpack archives, or unpickle.
_BUILDERS = ("parquet", "json", "csv", "text", "arrow", "cache")


@dataclass(frozen=True)
class Found:
    """A data set as Arrow files by split. revision: commit of the hub's repository; None for a folder."""

    splits: dict[str, list[str]]
    revision: str | None


def find_dataset(path: str, config: str | None, revision: str | None, splits: list[str]) -> Found:
    """The Arrow files of some splits of a data set, fetched and prepared where they are not yet.

    Raises ConfigError (B13): what was looked up where, and how to do without a network; (S09) for a format that is not read.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    folder = Path(path).expanduser()
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        loaded = _attempt(lambda: datasets.load_from_disk(str(folder)), path, config)
        if not isinstance(loaded, Mapping):
            # Saved as one split, which has a name of its own, or none.
            loaded = {splits[0] if loaded.split is None else str(loaded.split): loaded}
        return Found({name: _files(loaded[name]) for name in _known(splits, list(loaded), path)}, None)
    if folder.is_dir():
        return _built(str(folder), config, None, splits, path)
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        there = sorted(entry.name for entry in folder.parent.iterdir()) if folder.parent.is_dir() else []
        raise ConfigError(f"data.path: no folder {path}{nearest(folder.name, there) or '; give an existing folder or a hub id'}")
    return _built(path, config, _commit(path, revision), splits, path)


def _commit(path: str, revision: str | None) -> str | None:
    """The commit that a revision stands for now; the revision as it is where the hub does not answer and the cache may know it."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(path, revision=revision, timeout=10).sha
    except Exception:  # told of by whoever finds nothing in the cache either
        return revision


def _built(place: str, config: str | None, revision: str | None, splits: list[str], path: str) -> Found:
    import datasets

    builder = _attempt(lambda: datasets.load_dataset_builder(place, config, revision=revision), path, config)
    kind = type(builder).__module__.rsplit(".", 1)[-1]
    if kind not in _BUILDERS:
        raise ConfigError(f"data.path: {path!r} is read by the builder {kind!r}; allowed: text, JSON, CSV, Parquet and Arrow")
    _attempt(builder.download_and_prepare, path, config)
    names = _known(splits, list(builder.info.splits or {}), path)
    # For what was prepared before, the name of its folder tells the commit.
    return Found({name: _files(builder.as_dataset(name)) for name in names}, None if Path(place).is_dir() else revision or builder.hash)


def _known(splits: list[str], there: list[str], path: str) -> list[str]:
    for split in splits:
        if split not in there:
            raise ConfigError(
                f"data.train|data.eval: {split!r} is no split of {path}; its splits: {', '.join(there)}{nearest(split, there)}"
            )
    return splits


def _files(split: Any) -> list[str]:
    return [file["filename"] for file in split.cache_files]


def _attempt(load: Any, path: str, config: str | None) -> Any:
    """Call a loader of `datasets`, turning whatever it raises into one sentence."""
    from huggingface_hub import constants

    try:
        return load()
    except Exception as error:  # its own, the hub client's, the HTTP library's, Arrow's
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        if isinstance(error, ValueError) and "config" in lines[0].lower():
            raise ConfigError(f"data.config: {config}: {' '.join(lines[:2])}") from error
        if Path(path).expanduser().exists():
            raise ConfigError(f"data.path: {path}: datasets cannot load this folder: {lines[0]}") from error
        where = f"{constants.ENDPOINT} or in the caches {constants.HF_HUB_CACHE} and {_cache()}"
        raise ConfigError(
            f"data.path: {path!r} is no folder here, and was not found on {where}: {lines[0]}. Without a network: on a machine that has "
            f"one, `hf download --repo-type dataset {path} --local-dir FOLDER`, copy the folder, and set data.path=FOLDER; or take another "
            "data=… on files of your own"
        ) from error


def _cache() -> str:
    import datasets

    return str(datasets.config.HF_DATASETS_CACHE)
