"""What prepare makes, each once: a tokenizer, a tokenized corpus, row tables; and the folder that joins the sources of a mixture."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.atomic import write_json
from trainer.choices import ConfigError
from trainer.data.compressing import compressed_sizes
from trainer.data.corpus import Corpus
from trainer.data.formats import to_plain
from trainer.data.pipeline import encoded_units
from trainer.data.reporting import Reporter
from trainer.data.rows import META, RowWriter
from trainer.data.shards import SHARD_TOKENS, CorpusWriter
from trainer.data.sources import EVAL, SPLITS, OnError
from trainer.data.splitting import Plan
from trainer.data.text import TextFormat
from trainer.data.tokenizing import Job
from trainer.data.vocabularies import add_sentinels, load_special, load_tokenizer, save_special, special_tokens
from trainer.environment import cores

if TYPE_CHECKING:
    from trainer.config import Config


@contextmanager
def made_once(target: Path, report: Reporter, keep: bool = False) -> Iterator[Path | None]:
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


def make_tokenizer(config: Config, sample: Callable[[int], Iterator[str]], folder: Path, report: Reporter) -> None:
    """sample: gives training text, about so many bytes of it."""
    task = config.task
    with report.doing(f"tokenizer={config.tokenizer.name}"):
        config.tokenizer.build(folder, task.tokenizer_kind, task.sentences, sample)
        if task.sentinels:
            add_sentinels(folder, task.sentinels)
        save_special(folder, special_tokens(load_tokenizer(folder), task.sentences))


def make_corpus(
    config: Config, planned: Plan, on_error: OnError, splits: Sequence[str], tokenizer: Path, folder: Path, key: str, report: Reporter
) -> None:
    """Tokenize a source into a folder. splits: those that must not come out empty."""
    special = load_special(tokenizer)
    end = None if config.task.sentences else special.eos
    dtype = "uint16" if special.size <= 1 << 16 else "uint32"
    job = Job(str(tokenizer), dtype, to_plain(planned.layout), planned.parting.threshold, end)
    writer = CorpusWriter(folder, dtype)
    if writer.units:
        report.line(f"going on after {writer.units} units that an earlier process finished")
    with report.bar("tokenizing", planned.size) as advance:
        encoded_units(planned, job, writer, config.data.processes or cores(), on_error, advance)
    if writer.read != planned.size:
        shutil.rmtree(folder)
        change = f"{writer.read} bytes, {planned.size} before"
        raise ConfigError(f"{planned.where}: the files changed while they were read ({change}); start again")
    text = writer.finish(end)
    dropped = dict(planned.dropped)
    for reason, count in writer.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    lengths = {split: writer.splits[split].lengths for split in SPLITS}
    for split in splits:
        if not lengths[split]["documents"]:
            kept = " and ".join(f"{lengths[other]['documents']} kept for {other}" for other in SPLITS)
            raise nothing_left(planned, f"{len(planned.files)} files read, documents: {kept}", dropped, split)
    figures: dict[str, dict[str, Any]] = {
        split: {
            "documents": found["documents"],
            "sentences": found["sentences"],
            # The separators are no tokens of the text, though each is scored; `stream` counts them.
            "tokens": found["tokens"] - (0 if end is None else found["documents"] + 1),
            "stream": found["tokens"],
            # Of tokens only what is held out was turned back into text.
            "bytes": found["bytes"] or None,
        }
        for split, found in lengths.items()
    }
    with report.bar("compressing the held-out text, for comparison", 2 * text.stat().st_size) as advance:
        figures[EVAL] |= compressed_sizes(text, advance)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    for name in ("special.json", "starts_word.npy"):
        os.replace(folder / "tokenizer" / name, folder / name)
    meta = {
        "fingerprint": key,
        "text": planned.fingerprint,
        "source": planned.about,
        "dtype": dtype,
        "shard_tokens": SHARD_TOKENS,
        "sentences": config.task.sentences,
        "tokenizer": {"name": config.tokenizer.name, **special.ids()},
        "dropped": dropped,
        "splits": figures,
    }
    write_json(folder / META, meta)
    # Without its journal the folder is complete or nothing: a kill from here on only costs time.
    writer.journal.unlink()
    text.unlink()


def make_rows(config: Config, corpus: Path, splits: Sequence[str], folder: Path, key: str, report: Reporter) -> None:
    """Write the row tables of these splits into a folder."""
    opened, figures = Corpus(corpus), {}
    with report.doing("packing"):
        for split in splits:
            writer = RowWriter(folder / split)
            config.task.rows(opened, split, config.sequence_length, config.seed, writer)
            writer.close()
            if not len(writer):
                documents = opened.meta["splits"][split]["documents"]
                raise ConfigError(f"task={config.task.name}: no rows for {split}: its {documents} documents are too short")
            figures[split] = json.loads((folder / split / META).read_text())
    meta = {"fingerprint": key, "seed": config.seed, "sequence_length": config.sequence_length, "task": config.task.name, "splits": figures}
    write_json(folder / META, meta)


def make_mixture(config: Config, shares: dict[str, int], members: dict[str, Corpus], folder: Path, target: Path, key: str) -> None:
    """Write what joins the sources of a mixture into a folder. target: what it will be called; the others are told relative to it."""
    for name, member in members.items():
        if not member.members and any(table["offsets"] is None for table in member.rows_meta["splits"].values()):
            raise ConfigError(
                f"task={config.task.name}: its rows do not say which columns of a piece are offsets into the tokens, which a mixture "
                f"(here: {name}) needs to tell sources apart; set `writer.offsets` in its rows()"
            )
    first, *_ = members.values()
    shutil.copytree(first.tokenizer_path, folder / "tokenizer")
    save_special(folder, first.special)
    metas, sources = [member.meta for member in members.values()], []
    for name, member in members.items():
        assert member.rows_path is not None
        paths = {"corpus": os.path.relpath(member.path, target), "rows": os.path.relpath(member.rows_path, target)}
        sources.append({"name": name, "share": shares[name], **paths})
    meta = {
        "fingerprint": key,
        "sources": sources,
        "sentences": first.meta["sentences"],
        "tokenizer": first.meta["tokenizer"],
        "dropped": _summed([meta["dropped"] for meta in metas]),
        "splits": {split: _summed([meta["splits"][split] for meta in metas]) for split in SPLITS},
        "seed": config.seed,
        "sequence_length": config.sequence_length,
        "task": config.task.name,
    }
    write_json(folder / META, meta)


def _summed(counts: list[dict[str, int]]) -> dict[str, int]:
    return {key: sum(count.get(key, 0) for count in counts) for key in dict.fromkeys(key for count in counts for key in count)}


def nothing_left(planned: Plan, counts: str, dropped: dict[str, int], split: str | None = None) -> ConfigError:
    """The error (B06) for a source of which nothing is left, for a split or at all."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count) or "none"
    what = {None: "no text", "train": "nothing to train on", "eval": "nothing held out"}[split]
    other = f"another data.document (now {planned.layout.document.value}), " if isinstance(planned.layout, TextFormat) else ""
    return ConfigError(
        f"{planned.where}: {what}; {counts}; dropped: {reasons}. Give files with text, {other}or given splits data.train and data.eval"
    )
