"""Make the data of a run ready, once, outside any process group: find, part, tokenize, pack. `trainer prepare …`, and before each train.

Everything is kept under keys made of content and settings, so a second call finds it, and a killed one goes on where it was:

    $TRAINER_CACHE/tokenizers/KEY/   a trained tokenizer
    $TRAINER_CACHE/corpus/KEY/       tokens, documents, sentences of both splits of one source
    $TRAINER_CACHE/rows/KEY/         its row tables for one task, sequence length and seed
    $TRAINER_CACHE/mixtures/KEY/     which of those are mixed, in which shares

Several calls on one cache, here or on other machines, share the work (claims.py): a corpus is made in parts (sharing.py), all else by one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError
from trainer.data.cache import cache_root
from trainer.data.claims import made_once
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.defining import named
from trainer.data.evals import EvalSet
from trainer.data.files import KINDS, records_as_text, refuse
from trainer.data.fingerprints import fingerprints
from trainer.data.locating import place_of
from trainer.data.making import make_corpus, make_mixture, make_rows, make_tokenizer, nothing_left
from trainer.data.mixture import Mixture, leaves
from trainer.data.pipeline import sample_text, without_repeated
from trainer.data.remote import fetch
from trainer.data.reporting import Reporter
from trainer.data.rows import META
from trainer.data.sharing import remove_parts
from trainer.data.sources import EVAL, SPLITS, TRAIN, Data, Files, Listing, Source, SourceFile
from trainer.data.splitting import Plan, plan
from trainer.data.vocabularies import Special, load_special
from trainer.environment import cores
from trainer.tasks import BrokenExample

if TYPE_CHECKING:
    from trainer.config import Config

__all__ = ["Prepared", "open_corpus", "prepare"]

# Part of every key: raise it when the same settings would give other bytes.
FORMAT = 3
ROWS_FORMAT = 4
# So many files of a source are told by name.
_NAMED = 3


@dataclass(frozen=True)
class Prepared:
    """Where data lies. fingerprint: of all that decided it. evals: the same of each evaluation set, by name. files: that were read."""

    corpus: Path
    rows: Path
    fingerprint: str
    evals: dict[str, Prepared] = field(default_factory=dict)
    files: str = ""


@dataclass(frozen=True)
class Text:
    """A source whose files have been looked at. name: `web.en`, or "". key: where its options stand. share: of the samples of a run.
    files: which those are, in words; empty where nobody named any."""

    name: str
    key: str
    share: Fraction
    source: Source
    plan: Plan
    splits: tuple[str, ...] = SPLITS
    files: str = ""


def prepare(config: Config, progress: bool = True) -> Prepared:
    """Tokenize and pack the data of a run and of its evaluation sets, or find it done.

    Raises ConfigError: data or tokenizer not found (B13), nothing left (B06), bytes that are no text (B07), formats not read (S09).
    """
    return _Preparing(config, Reporter(progress)).all()


class _Preparing:
    """One call of prepare."""

    def __init__(self, config: Config, report: Reporter):
        self.config, self.report, self.cache = config, report, cache_root()

    def all(self) -> Prepared:
        config = self.config
        texts = [self.look(name, key, share, source) for name, key, share, source in leaves(config.data)]
        refuse_shared_files(texts)
        evals = [self.look_at_set(one) for one in config.eval_sets]
        for line in trained_on_too(texts, evals):
            self.report.line(f"[yellow]warning:[/] {line}")
        # What a tokenizer is trained on: the training text, in the shares of the mixture.
        (fingerprint, *more) = [text.plan.fingerprint for text in texts]
        trained_on = key_of([(str(text.share), text.plan.fingerprint) for text in texts]) if more else fingerprint
        task = config.task
        kind, marks = task.writing(config.model)
        self.decides = config.tokenizer.decides(kind, trained_on, marks)
        if task.sentinels:
            self.decides["sentinels"] = task.sentinels
        self.tokenizer = self.cache / "tokenizers" / key_of(FORMAT, self.decides, marks)
        self.texts = {text.name: text for text in texts}
        if more:
            self.report.mixture({text.name: text.share for text in texts}, trains=config.tokenizer.name == "train")
        done = self.data(config.data)
        sets = {one.name.removeprefix("evals."): self.source(one) for one in evals}
        files = [f"{text.key}: {text.files}" for text in (*texts, *evals) if text.files]
        return dataclasses.replace(done, evals=sets, files="; ".join(files))

    def look(self, name: str, key: str, share: Fraction, source: Source, only: str | None = None) -> Text:
        """Find the files of a source and part them. only: the split that all of it is, unless splits are given.

        Raises ConfigError where nothing is left."""
        with named(key):
            with self.report.doing("looking for files"):
                listing = source.listing_for(self.config.task)
            fetch_missing(listing, self.report)
            if listing.kind == "text" and (mistaken := records_as_text(listing.files)):
                self.report.line(f"[yellow]warning:[/] {key}: {mistaken}")
            if only and not any(file.split for file in listing.files):
                listing = dataclasses.replace(listing, files=[dataclasses.replace(file, split=only) for file in listing.files])
            if only:
                listing = dataclasses.replace(listing, files=[file for file in listing.files if file.split == only])
            total = sum(os.path.getsize(file.path) for file in listing.files)
            files = in_words(listing.files, total) if isinstance(source, Files) else ""
            if files:
                self.report.line(f"{key}: {files}")
            paths, binary = [file.path for file in listing.files], KINDS[listing.kind].binary
            with self.report.bar("reading", total) as advance:
                contents = fingerprints(paths, self.cache / "fingerprints", cores(), advance, binary)
            source = source.told(self.special()) if source.holds_tokens else source
            with self.report.doing("looking at documents"):
                planned = plan(source, listing, contents, self.config.task.fields)
            if source.deduplicate:
                planned = without_repeated(planned, self.cache / "repeated", self.report)
            if not planned.files:
                raise nothing_left(planned, f"{len(listing.files)} files read, 0 kept", planned.dropped)
        return Text(name, key, share, source, planned, (only,) if only else SPLITS, files)

    def special(self) -> Special:
        """What the tokenizer says of its ids, of one that is known before any text is."""
        config = self.config
        kind, marks = config.task.writing(config.model)
        decides = config.tokenizer.decides(kind, "", marks)
        target = self.cache / "tokenizers" / key_of(FORMAT, decides, marks)
        with made_once(target, self.report.line) as claim:
            if claim:
                make_tokenizer(config, lambda size: iter(()), claim.emptied(), self.report)
        return load_special(target)

    def look_at_set(self, one: EvalSet) -> Text:
        """The files of an evaluation set: all of them, or the held-out ones where splits are given."""
        return self.look(one.key, one.key, Fraction(0), one.source, only=EVAL)

    def data(self, data: Data, name: str = "") -> Prepared:
        """A source, or a mixture with all its sources."""
        if not isinstance(data, Mixture):
            return self.source(self.texts[name])
        members = {portion.name: self.data(portion.data, f"{name}.{portion.name}".removeprefix(".")) for portion in data.portions}
        shares = {portion.name: portion.share for portion in data.portions}
        key = key_of(FORMAT, [(source, shares[source], done.fingerprint) for source, done in members.items()])
        target = self.cache / "mixtures" / key
        with made_once(target, self.report.line) as claim:
            if claim:
                opened = {source: open_corpus(done.corpus, done.rows) for source, done in members.items()}
                make_mixture(self.config, shares, opened, claim.emptied(), target, key)
        return Prepared(target, target, key)

    def source(self, text: Text) -> Prepared:
        """One source: its corpus, its rows."""
        config, report, task = self.config, self.report, self.config.task
        corpus, anew = self.corpus(text)
        few = [config.data.shots, config.data.draw] if config.data.shots else []
        rows_key = key_of(ROWS_FORMAT, corpus.name, dataclasses.asdict(task), config.sequence_length, config.seed, self.learned, *few)
        rows = self.cache / "rows" / rows_key
        with named(text.key), made_once(rows, report.line) as claim:
            if claim:
                make_rows(config, text.plan, corpus, text.splits, self.learned, claim.emptied(), rows_key, report)
        corpus_meta, rows_meta = (json.loads((folder / META).read_text()) for folder in (corpus, rows))
        report.closing(text.name, text.splits, corpus_meta, rows_meta, corpus, anew=anew or claim is not None)
        return Prepared(corpus, rows, rows_key)

    def corpus(self, text: Text) -> tuple[Path, bool]:
        """The corpus of a source, and whether it was made now."""
        config, report = self.config, self.report
        key = key_of(FORMAT, text.plan.fingerprint, self.decides, config.task.sentences)
        corpus = self.cache / "corpus" / key
        anew = not corpus.is_dir()
        if anew:
            with made_once(self.tokenizer, report.line) as claim:
                if claim:
                    make_tokenizer(config, self.sample, claim.emptied(), report)
            with named(text.key):
                make_corpus(config, text.plan, text.source.on_error, text.splits, self.tokenizer, corpus, key, report)
        # Also what a process left that was killed here.
        remove_parts(corpus)
        return corpus, anew

    @functools.cached_property
    def learned(self) -> dict[str, Any]:
        """What the task learns of all training examples before any of them becomes a row, such as the labels; of text nothing."""
        if not self.config.task.fields:
            return {}
        records = {name: Corpus(self.corpus(text)[0]).records(TRAIN) for name, text in self.texts.items()}
        try:
            learned = self.config.task.learn(example for each in records.values() for example in each)
        except BrokenExample as error:
            number = error.number
            for name, each in records.items():
                if number < len(each):
                    raise error.at(place_of(self.texts[name].plan, TRAIN, number)) from error
                number -= len(each)
            raise
        # What an example becomes may differ with what reads it: an encoder and a decoder, or a decoder alone.
        return {"objective": self.config.objective, **learned}

    def sample(self, size: int | None) -> Iterator[str]:
        """Training text, about `size` bytes of it, of each source its share; None: as much as the shares allow."""
        if size is None:
            size = int(min(text.plan.size / text.share for text in self.texts.values()))
        for text in self.texts.values():
            with named(text.key):
                yield from sample_text(text.plan, math.ceil(size * text.share), text.source.on_error)


def in_words(files: list[SourceFile], total: int) -> str:
    """How many, how large together, and the first ones. total: bytes."""
    more = f" and {len(files) - _NAMED:,} more" if len(files) > _NAMED else ""
    count = f"{len(files):,} files" if len(files) != 1 else "1 file"
    return f"{count}, {total:,} bytes: {', '.join(file.shown for file in files[:_NAMED])}{more}"


def fetch_missing(listing: Listing, report: Reporter) -> None:
    """Bring what lies behind URLs into the cache, and look at it as at any other file."""
    missing = [file for file in listing.files if file.remote and not os.path.exists(file.path)]
    remotes = [file.remote for file in missing if file.remote]
    if missing:
        with report.bar(f"fetching {len(missing)} files", sum(remote.size for remote in remotes)) as advance:
            fetch(remotes, listing.where, advance)
    for file in missing:
        refuse(file, listing.kind, listing.where)


def refuse_shared_files(texts: list[Text]) -> None:
    """Raise ConfigError where two sources read the same file: one might hold out what the other trains on."""
    owners: dict[str, Text] = {}
    for text in texts:
        for file in text.plan.files:
            other = owners.setdefault(os.path.realpath(file.path), text)
            if other is not text:
                raise ConfigError(
                    f"{text.key}: {file.path} is in {other.key} too; a file belongs to one source of a mixture, "
                    "or one would train on what the other holds out"
                )


def trained_on_too(texts: list[Text], evals: list[Text]) -> Iterator[str]:
    """A line for each evaluation set with a file that the run is trained on: its figures tell nothing of text that was never seen."""
    owners = {os.path.realpath(file.path): text.key for text in texts for file in text.plan.files if file.split != EVAL}
    for one in evals:
        shared = [file.path for file in one.plan.files if os.path.realpath(file.path) in owners]
        if shared:
            owner = owners[os.path.realpath(shared[0])]
            yield f"{one.key}: {shared[0]} is in {owner} too: trained on, up to what is held out of it ({len(shared)} such files)"


def key_of(*parts: Any) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]
