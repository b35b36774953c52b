"""What prepare makes, each once: a tokenizer, a tokenized corpus, row tables; and the folder that joins the sources of a mixture."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.atomic import write_json
from trainer.choices import ConfigError
from trainer.data.claims import made_once
from trainer.data.compressing import compressed_sizes
from trainer.data.corpus import Corpus, TokenStream
from trainer.data.formats import to_plain
from trainer.data.pipeline import encode_parts
from trainer.data.reporting import Reporter
from trainer.data.rows import META, RowWriter
from trainer.data.shards import SHARD_TOKENS, CorpusWriter
from trainer.data.sharing import remove_parts
from trainer.data.sources import EVAL, SPLITS, OnError
from trainer.data.splitting import Plan
from trainer.data.text import TextFormat
from trainer.data.tokenizer_files import load_tokenizer
from trainer.data.tokenizing import Job
from trainer.data.vocabularies import add_sentinels, load_special, save_special, special_tokens
from trainer.environment import cores

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.data.tokenizers import Sample


def make_tokenizer(config: Config, sample: Sample, folder: Path, report: Reporter) -> None:
    """sample: gives training text, about so many bytes of it, or all."""
    task = config.task
    with report.doing(f"tokenizer={config.tokenizer.name}"):
        config.tokenizer.build(folder, task.tokenizer_kind, task.sentences, sample)
        if task.sentinels:
            add_sentinels(folder, task.sentinels)
        save_special(folder, special_tokens(load_tokenizer(folder), task.sentences))


def make_corpus(
    config: Config, planned: Plan, on_error: OnError, splits: Sequence[str], tokenizer: Path, target: Path, key: str, report: Reporter
) -> None:
    """Tokenize a source, together with others that do. splits: those that must not come out empty."""
    special = load_special(tokenizer)
    end = None if config.task.sentences else special.eos
    dtype = "uint16" if special.size <= 1 << 16 else "uint32"
    job = Job(str(tokenizer), dtype, to_plain(planned.layout), planned.parting.threshold, end)
    parts = encode_parts(planned, job, target, config.data.processes or cores(), on_error, report)
    with made_once(target, report.line) as claim:
        if claim:
            folder = claim.emptied()
            writer = _joined(parts, folder, dtype, planned, target, report)
            text = writer.finish(end)
            dropped = _summed([planned.dropped, writer.dropped])
            _refuse_empty(planned, writer, splits, dropped)
            figures = {split: _figures(writer.splits[split].lengths, end) for split in SPLITS}
            with report.bar("compressing the held-out text, for comparison", 2 * text.stat().st_size) as advance:
                figures[EVAL] |= compressed_sizes(text, advance)
            held_out = TokenStream(folder / EVAL, figures[EVAL]["stream"], dtype, SHARD_TOKENS)
            figures[EVAL]["unknown"] = 0 if special.unk is None else held_out.count(special.unk)
            text.unlink()
            shutil.copytree(tokenizer, folder / "tokenizer")
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


def _joined(parts: Sequence[Path], folder: Path, dtype: str, planned: Plan, target: Path, report: Reporter) -> CorpusWriter:
    """One corpus of all parts, in order. Raises ConfigError where the files have not been read as they were planned."""
    writer = CorpusWriter(folder, dtype)
    with report.bar("joining the parts", planned.size) as advance:
        for part in parts:
            if not part.is_dir():
                raise ConfigError(f"{planned.where}: the files changed while they were read, another process found; start again")
            writer.add(part, advance)
    if writer.read != planned.size:
        remove_parts(target)
        change = f"{writer.read} bytes, {planned.size} before"
        raise ConfigError(f"{planned.where}: the files changed while they were read ({change}); start again")
    return writer


def _refuse_empty(planned: Plan, writer: CorpusWriter, splits: Sequence[str], dropped: dict[str, int]) -> None:
    documents = {split: writer.splits[split].lengths["documents"] for split in SPLITS}
    for split in splits:
        if not documents[split]:
            kept = " and ".join(f"{documents[other]} kept for {other}" for other in SPLITS)
            raise nothing_left(planned, f"{len(planned.files)} files read, documents: {kept}", dropped, split)


def _figures(lengths: dict[str, int], end: int | None) -> dict[str, Any]:
    """What a split holds. end: the separator, if there is one."""
    return {
        "documents": lengths["documents"],
        "sentences": lengths["sentences"],
        # The separators are no tokens of the text, though each is scored; `stream` counts them.
        "tokens": lengths["tokens"] - (0 if end is None else lengths["documents"] + 1),
        "stream": lengths["tokens"],
        # Of tokens only what is held out was turned back into text.
        "bytes": lengths["bytes"] or None,
    }


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
