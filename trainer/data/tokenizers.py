"""What cuts text into tokens: choices of the config group `tokenizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from trainer.choices import Choice, ConfigError, choice, identity


class Kind(str, Enum):
    """The algorithm of a trained tokenizer; `auto` is what the task wants."""

    auto = "auto"
    bpe = "bpe"
    wordpiece = "wordpiece"


class Tokenizer(Choice, group="tokenizer"):
    """From text to token ids."""

    def decides(self, kind: str, text: str, sentences: bool) -> dict[str, Any]:
        """What decides the token ids, as plain values. kind: what the task wants; text: fingerprint of the corpus.

        Raises ConfigError (B13) where a tokenizer that was named is not found.
        """
        raise NotImplementedError

    def build(self, folder: Path, kind: str, sentences: bool, sample: Callable[[int], Iterator[str]]) -> None:
        """Write the tokenizer into a folder, in the form that transformers loads.

        sentences: whether the task needs [CLS], [SEP] and [MASK], else an end of text. sample: gives training text, about so many bytes.
        """
        raise NotImplementedError


@choice
class Train(Tokenizer):
    """A tokenizer trained on the training split: byte-level BPE for GPT, WordPiece for BERT."""

    name: str = "train"
    kind: Kind = identity(Kind.auto, help="auto | bpe | wordpiece; auto: what the task wants")
    vocab_size: int = identity(8192, help="tokens, special ones included")
    lowercase: bool = identity(False, help="fold case and strip accents (wordpiece)")
    sample_bytes: int = identity(64 << 20, help="training text it is trained on, at most")

    def check(self) -> None:
        # Byte-level BPE starts from its 256 bytes.
        if self.vocab_size < 300:
            raise ConfigError(f"tokenizer.vocab_size: {self.vocab_size}; at least 300 (256 bytes and something learned), e.g. 8192")
        if self.sample_bytes < 1:
            raise ConfigError(f"tokenizer.sample_bytes: {self.sample_bytes}; must be positive, e.g. {64 << 20}")
        if self.lowercase and self.kind is Kind.bpe:
            raise ConfigError("tokenizer.lowercase: true with tokenizer.kind=bpe; byte-level BPE keeps case, use wordpiece")

    def algorithm(self, kind: str) -> str:
        return kind if self.kind is Kind.auto else self.kind.value

    def decides(self, kind: str, text: str, sentences: bool) -> dict[str, Any]:
        return {
            "name": self.name,
            "text": text,
            "kind": self.algorithm(kind),
            "vocab_size": self.vocab_size,
            "lowercase": self.lowercase,
            "sample_bytes": self.sample_bytes,
            "sentences": sentences,
        }

    def build(self, folder: Path, kind: str, sentences: bool, sample: Callable[[int], Iterator[str]]) -> None:
        from trainer.data.vocabularies import train_tokenizer

        train_tokenizer(
            self.algorithm(kind), self.vocab_size, self.lowercase, sentences, lambda: sample(self.sample_bytes)
        ).save_pretrained(folder)


@choice
class Pretrained(Tokenizer):
    """A tokenizer from a folder or the Hugging Face hub."""

    name: str = "pretrained"
    path: str = identity("", help="a folder that save_pretrained wrote, or a hub id such as openai-community/gpt2")
    revision: str | None = identity(None, help="branch, tag or commit of the hub repository")

    def check(self) -> None:
        if not self.path:
            raise ConfigError("tokenizer.path: missing; tokenizer=pretrained needs tokenizer.path=FOLDER or a hub id")

    def decides(self, kind: str, text: str, sentences: bool) -> dict[str, Any]:
        from trainer.data.vocabularies import digest_of, locate

        return {"name": self.name, "files": digest_of(locate(self.path, self.revision))}

    def build(self, folder: Path, kind: str, sentences: bool, sample: Callable[[int], Iterator[str]]) -> None:
        from trainer.data.vocabularies import load_tokenizer, locate

        tokenizer = load_tokenizer(locate(self.path, self.revision))
        # Not all that a model's folder says of its tokenizer is about cutting text.
        tokenizer.save_pretrained(folder)
