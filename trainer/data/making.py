"""What prepare makes, each once: a tokenizer, a tokenized corpus, row tables; and the folder that joins the sources of a mixture."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.atomic import write_json
from trainer.choices import ConfigError
from trainer.data.claims import made_once
from trainer.data.compressing import compressed_sizes
from trainer.data.corpus import Corpus, TokenStream
from trainer.data.formats import to_plain
from trainer.data.locating import placing
from trainer.data.pipeline import encode_parts
from trainer.data.reporting import Reporter
from trainer.data.rows import META, RowWriter
from trainer.data.shards import SHARD_TOKENS, CorpusWriter
from trainer.data.sharing import remove_parts
from trainer.data.sources import EVAL, SPLITS, TRAIN, OnError
from trainer.data.splitting import Plan
from trainer.data.text import TextFormat
from trainer.data.tokenizer_files import load_tokenizer
from trainer.data.tokenizing import Job
from trainer.data.vocabularies import add_sentinels, load_special, save_special, special_tokens
from trainer.environment import cores
from trainer.tasks.few_shot import drawn

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.data.tokenizers import Sample


def make_tokenizer(config: Config, sample: Sample, folder: Path, report: Reporter) -> None:
    """sample: gives training text, about so many bytes of it, or all."""
    task = config.task
    kind, marks = task.writing(config.model)
    with report.doing(f"tokenizer={config.tokenizer.name}"):
        config.tokenizer.build(folder, kind, marks, sample)
        if task.sentinels:
            add_sentinels(folder, task.sentinels)
        save_special(folder, special_tokens(load_tokenizer(folder), marks, lenient=bool(task.fields)))


def make_corpus(
    config: Config, planned: Plan, on_error: OnError, splits: Sequence[str], tokenizer: Path, target: Path, key: str, report: Reporter
) -> None:
    """Tokenize a source, together with others that do. splits: those that must not come out empty."""
    special = load_special(tokenizer)
    examples = planned.layout.examples
    end = None if config.task.sentences or examples else special.eos
    dtype = "uint8" if examples else "uint16" if special.size <= 1 << 16 else "uint32"
    parting = planned.parting
    job = Job(str(tokenizer), dtype, to_plain(planned.layout), parting.threshold, end, parting.together)
    parts = encode_parts(planned, job, target, config.data.processes or cores(), on_error, report)
    with made_once(target, report.line) as claim:
        if claim:
            folder = claim.emptied()
            writer = _joined(parts, folder, dtype, planned, target, report)
            text = writer.finish(end)
            dropped = _summed([planned.dropped, writer.dropped])
            _refuse_empty(planned, writer, splits, dropped)
            figures = {split: _figures(writer.splits[split].lengths, end) for split in SPLITS}
            if not examples:
                figures[EVAL] |= _of_text(folder, figures[EVAL]["stream"], dtype, special.unk, text, report)
            text.unlink(missing_ok=True)
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
                "examples": examples,
                "tokenizer": {"name": config.tokenizer.name, **special.ids()},
                "dropped": dropped,
                "splits": figures,
            }
            write_json(folder / META, meta)


def _of_text(folder: Path, stream: int, dtype: str, unk: int | None, text: Path, report: Reporter) -> dict[str, int]:
    """Figures of the held-out text: how small it can be made without training, and how much of it the tokenizer cannot write."""
    with report.bar("compressing the held-out text, for comparison", 2 * text.stat().st_size) as advance:
        sizes = compressed_sizes(text, advance)
    held_out = TokenStream(folder / EVAL, stream, dtype, SHARD_TOKENS)
    return sizes | {"unknown": 0 if unk is None else held_out.count(unk)}


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


def make_rows(
    config: Config, planned: Plan, corpus: Path, splits: Sequence[str], learned: dict[str, Any], folder: Path, key: str, report: Reporter
) -> None:
    """Write the row tables of these splits into a folder. learned: what the task has of the training examples."""
    opened, figures = Corpus(corpus), {}
    opened.learned = learned
    if config.data.shots and TRAIN in splits:
        opened.drawn = drawn(config.task, opened.records(TRAIN), config.data.shots, config.data.draw, learned)  # type: ignore[arg-type]
    with report.doing("packing"):
        for split in splits:
            writer = RowWriter(folder / split)
            with placing(planned, split):
                config.task.rows(opened, split, config.sequence_length, config.seed, writer)
            writer.close()
            if not len(writer):
                documents = opened.meta["splits"][split]["documents"]
                what = "examples" if config.task.fields else "documents"
                raise ConfigError(f"task={config.task.name}: no rows for {split}: its {documents} {what} are too short")
            figures[split] = json.loads((folder / split / META).read_text())
    meta = {"fingerprint": key, "seed": config.seed, "sequence_length": config.sequence_length, "task": config.task.name}
    leaked = leaks(opened, config.task.predicted) if opened.examples and set(splits) == set(SPLITS) else 0
    write_json(
        folder / META, {**meta, "learned": learned, "leaked": leaked, "drawn": opened.drawn and len(opened.drawn), "splits": figures}
    )


def leaks(corpus: Corpus, targets: Sequence[str]) -> int:
    """How many held-out examples are among those to train on, their targets apart. targets: the fields that are to be predicted."""

    def digests(split: str, drawn: list[int] | None = None) -> Iterator[bytes]:
        records = corpus.records(split)
        for example in records if drawn is None else (records[number] for number in drawn):
            read = {field: value for field, value in example.items() if field not in targets}
            yield hashlib.blake2b(json.dumps(read, sort_keys=True).encode(), digest_size=16).digest()

    seen = set(digests(TRAIN, corpus.drawn))
    return sum(digest in seen for digest in digests(EVAL))


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
        "examples": first.meta["examples"],
        "learned": first.learned,
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
