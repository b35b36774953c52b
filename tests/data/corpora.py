"""Configurations and opened corpora for the tests of the data half."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.corpus import Corpus
from trainer.data.evals import EvalSet
from trainer.data.parts import Stretch
from trainer.data.prepare import open_corpus, prepare
from trainer.data.sources import Document, OnError, Source, SourceFile, Text
from trainer.data.tokenizers import Tokenizer, Train
from trainer.models import Model
from trainer.models.gpt2 import GPT2
from trainer.tasks import Task
from trainer.tasks.clm import CausalLM


@dataclass
class Settings:
    """The part of a configuration that prepare reads."""

    data: Source
    tokenizer: Tokenizer = field(default_factory=lambda: Train(vocab_size=400))
    task: Task = field(default_factory=CausalLM)
    model: Model = field(default_factory=GPT2)
    sequence_length: int = 32
    seed: int = 0
    fingerprint: str | None = None
    eval_sets: list[EvalSet] = field(default_factory=list)

    @property
    def objective(self) -> str:
        return self.task.objective_on(self.model)


def prepared(data: Source, **settings: Any) -> Corpus:
    """Prepare and open."""
    config: Any = Settings(data, **settings)
    done = prepare(config, progress=False)
    return open_corpus(done.corpus, done.rows)


def text_source(path: Path | str | list[str], **settings: Any) -> Text:
    """Files as a source, with one process; enumerations by name."""
    for key, kind in (("document", Document), ("on_error", OnError)):
        if key in settings:
            settings[key] = kind(settings[key])
    return Text(path=[str(entry) for entry in path] if isinstance(path, list) else str(path), processes=1, **settings)


def whole(path: Path | str) -> list[Stretch]:
    """One file, read in one go."""
    return [Stretch(0, 0, SourceFile(str(path)), 0, 0)]


def decoded(corpus: Corpus, split: str) -> list[str]:
    """The text of every document of a split, from its tokens."""
    from trainer.data.vocabularies import backend

    tokenizer = backend(corpus.tokenizer_path)
    stream, documents = corpus.tokens(split), corpus.documents(split)
    skip = 0 if corpus.meta["sentences"] else 1
    texts = []
    for start, stop in itertools.pairwise(documents):
        ids = stream.read(int(start) + skip, int(stop - start) - skip).tolist()
        texts.append(tokenizer.decode(ids, skip_special_tokens=False))
    return texts


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
