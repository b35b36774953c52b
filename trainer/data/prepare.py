"""Make the data of a run ready, once, outside any process group: find, part, tokenize, pack. `trainer prepare …`, and before each train.

Everything is kept under keys made of content and settings, so a second call finds it, and a killed one goes on where it was:

    $TRAINER_CACHE/tokenizers/KEY/   a trained tokenizer
    $TRAINER_CACHE/corpus/KEY/       tokens, documents, sentences of both splits
    $TRAINER_CACHE/rows/KEY/         the row tables for one task, sequence length and seed
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.atomic import write_json
from trainer.choices import ConfigError
from trainer.data.cache import cache_root
from trainer.data.compressing import compressed_sizes
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.files import refuse
from trainer.data.fingerprints import fingerprints
from trainer.data.formats import to_plain
from trainer.data.pipeline import encoded_units, sample_text
from trainer.data.remote import fetch
from trainer.data.reporting import Reporter
from trainer.data.rows import META, RowWriter
from trainer.data.shards import SHARD_TOKENS, CorpusWriter
from trainer.data.sources import EVAL, SPLITS, Listing
from trainer.data.splitting import Plan, plan
from trainer.data.text import TextFormat
from trainer.data.tokenizing import Job
from trainer.data.vocabularies import load_special, load_tokenizer, save_special, special_tokens
from trainer.environment import cores

if TYPE_CHECKING:
    from trainer.config import Config

__all__ = ["Prepared", "cache_root", "open_corpus", "prepare"]

# Part of every key: raise it when the same settings would give other bytes.
FORMAT = 1


@dataclass(frozen=True)
class Prepared:
    """Where the data of a run lies. fingerprint: of all that decided it."""

    corpus: Path
    rows: Path
    fingerprint: str


def prepare(config: Config, progress: bool = True) -> Prepared:
    """Tokenize and pack the data of a run, or find it done.

    Raises ConfigError: data or tokenizer not found (B13), nothing left (B06), bytes that are no text (B07), formats not read (S09).
    """
    source, task, cache, report = config.data, config.task, cache_root(), Reporter(progress)
    with report.doing("looking for files"):
        listing = source.listing()
    _fetch(listing, report)
    total = sum(os.path.getsize(file.path) for file in listing.files)
    with report.bar("reading", total) as advance:
        contents = fingerprints([file.path for file in listing.files], cache / "fingerprints", cores(), advance)
    with report.doing("looking at documents"):
        planned = plan(source, listing, contents)
    if not planned.files:
        raise _nothing_left(planned, f"{len(listing.files)} files read, 0 kept", planned.dropped)
    decides = config.tokenizer.decides(task.tokenizer_kind, planned.fingerprint, task.sentences)
    tokenizer_key = _key(FORMAT, decides, task.sentences)
    corpus_key = _key(FORMAT, planned.fingerprint, decides, task.sentences)
    rows_key = _key(FORMAT, corpus_key, dataclasses.asdict(task), config.sequence_length, config.seed)
    tokenizer, corpus, rows = cache / "tokenizers" / tokenizer_key, cache / "corpus" / corpus_key, cache / "rows" / rows_key

    with _made_once(corpus, report, keep=True) as aside:
        if aside:
            with _made_once(tokenizer, report) as folder:
                if folder:
                    _make_tokenizer(config, planned, folder, report)
            _make_corpus(config, planned, tokenizer, aside, corpus_key, report)
    with _made_once(rows, report) as aside_rows:
        if aside_rows:
            _make_rows(config, corpus, aside_rows, rows_key, report)
    report.closing(json.loads((corpus / META).read_text()), json.loads((rows / META).read_text()), corpus, anew=bool(aside or aside_rows))
    return Prepared(corpus, rows, rows_key)


def _fetch(listing: Listing, report: Reporter) -> None:
    """Bring what lies behind URLs into the cache, and look at it as at any other file."""
    missing = [file for file in listing.files if file.remote and not os.path.exists(file.path)]
    remotes = [file.remote for file in missing if file.remote]
    if missing:
        with report.bar(f"fetching {len(missing)} files", sum(remote.size for remote in remotes)) as advance:
            fetch(remotes, listing.where, advance)
    for file in missing:
        refuse(file, listing.kind, listing.where)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


@contextmanager
def _made_once(target: Path, report: Reporter, keep: bool = False) -> Iterator[Path | None]:
    """A folder to fill, renamed to `target` at the end; None where the target exists. One process fills it, others wait for it.

    keep: what an earlier process left in the folder is of use.
    """
    if target.is_dir():
        yield None
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f"{target.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.line("another process is preparing the same data; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            yield None
            return
        aside = target.with_name(f"{target.name}.partial")
        if aside.exists() and not keep:
            shutil.rmtree(aside)
        aside.mkdir(exist_ok=True)
        yield aside
        os.replace(aside, target)


def _make_tokenizer(config: Config, planned: Plan, folder: Path, report: Reporter) -> None:
    task = config.task
    with report.doing(f"tokenizer={config.tokenizer.name}"):
        config.tokenizer.build(folder, task.tokenizer_kind, task.sentences, lambda size: sample_text(planned, size, config.data.on_error))
        save_special(folder, special_tokens(load_tokenizer(folder), task.sentences))


def _make_corpus(config: Config, planned: Plan, tokenizer: Path, folder: Path, key: str, report: Reporter) -> None:
    special = load_special(tokenizer)
    end = None if config.task.sentences else special.eos
    dtype = "uint16" if special.size <= 1 << 16 else "uint32"
    job = Job(str(tokenizer), dtype, to_plain(planned.layout), planned.parting.threshold, end)
    writer = CorpusWriter(folder, dtype)
    if writer.units:
        report.line(f"going on after {writer.units} units that an earlier process finished")
    with report.bar("tokenizing", planned.size) as advance:
        encoded_units(planned, job, writer, config.data.processes or cores(), config.data.on_error, advance)
    if writer.read != planned.size:
        shutil.rmtree(folder)
        change = f"{writer.read} bytes, {planned.size} before"
        raise ConfigError(f"{planned.where}: the files changed while they were read ({change}); start again")
    text = writer.finish(end)
    dropped = dict(planned.dropped)
    for reason, count in writer.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    lengths = {split: writer.splits[split].lengths for split in SPLITS}
    for split in SPLITS:
        if not lengths[split]["documents"]:
            kept = " and ".join(f"{lengths[other]['documents']} kept for {other}" for other in SPLITS)
            raise _nothing_left(planned, f"{len(planned.files)} files read, documents: {kept}", dropped, split)
    splits: dict[str, dict[str, Any]] = {
        split: {
            "documents": found["documents"],
            "sentences": found["sentences"],
            # The separators are no tokens of the text, though each is scored; `stream` counts them.
            "tokens": found["tokens"] - (0 if end is None else found["documents"] + 1),
            "stream": found["tokens"],
            "bytes": found["bytes"],
        }
        for split, found in lengths.items()
    }
    with report.bar("compressing the held-out text, for comparison", 2 * text.stat().st_size) as advance:
        splits[EVAL] |= compressed_sizes(text, advance)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    for name in ("special.json", "starts_word.npy"):
        os.replace(folder / "tokenizer" / name, folder / name)
    meta = {
        "fingerprint": key,
        "text": planned.fingerprint,
        "dtype": dtype,
        "shard_tokens": SHARD_TOKENS,
        "sentences": config.task.sentences,
        "tokenizer": {"name": config.tokenizer.name, **special.ids()},
        "dropped": dropped,
        "splits": splits,
    }
    write_json(folder / META, meta)
    # Without its journal the folder is complete or nothing: a kill from here on only costs time.
    writer.journal.unlink()
    text.unlink()


def _make_rows(config: Config, corpus: Path, folder: Path, key: str, report: Reporter) -> None:
    opened, figures = Corpus(corpus), {}
    with report.doing("packing"):
        for split in SPLITS:
            writer = RowWriter(folder / split)
            config.task.rows(opened, split, config.sequence_length, config.seed, writer)
            writer.close()
            if not len(writer):
                documents = opened.meta["splits"][split]["documents"]
                raise ConfigError(f"task={config.task.name}: no rows for {split}: its {documents} documents are too short")
            figures[split] = json.loads((folder / split / META).read_text())
    meta = {"fingerprint": key, "seed": config.seed, "sequence_length": config.sequence_length, "task": config.task.name, "splits": figures}
    write_json(folder / META, meta)


def _nothing_left(planned: Plan, counts: str, dropped: dict[str, int], split: str | None = None) -> ConfigError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count) or "none"
    what = {None: "no text", "train": "nothing to train on", "eval": "nothing held out"}[split]
    other = f"another data.document (now {planned.layout.document.value}), " if isinstance(planned.layout, TextFormat) else ""
    return ConfigError(
        f"{planned.where}: {what}; {counts}; dropped: {reasons}. Give files with text, {other}or given splits data.train and data.eval"
    )
