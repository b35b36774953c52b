"""What cuts text into tokens: choices of the config group `tokenizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.choices import Choice, ConfigError, choice, identity

if TYPE_CHECKING:
    from trainer.data.tokenizer_files import Located


Sample = Callable[[int | None], Iterator[str]]


class Kind(str, Enum):
    """The algorithm of a trained tokenizer; `auto` is what the task wants."""

    auto = "auto"
    bpe = "bpe"
    wordpiece = "wordpiece"
    unigram = "unigram"


class Tokenizer(Choice, group="tokenizer"):
    """From text to token ids."""

    def decides(self, kind: str, text: str, sentences: bool) -> dict[str, Any]:
        """What decides the token ids, as plain values. kind: what the task wants; text: fingerprint of the corpus.

        Raises ConfigError (B13) where a tokenizer that was named is not found.
        """
        raise NotImplementedError

    def build(self, folder: Path, kind: str, sentences: bool, sample: Sample) -> None:
        """Write the tokenizer into a folder, in the form that transformers loads.

        sentences: whether the task needs [CLS], [SEP] and [MASK], else an end of text. sample: gives training text, about so many bytes of
        it, or all.
        """
        raise NotImplementedError


@choice
class Train(Tokenizer):
    """A tokenizer trained on the training split: byte-level BPE for GPT, WordPiece for BERT, or Unigram."""

    name: str = "train"
    kind: Kind = identity(Kind.auto, help="auto | bpe | wordpiece | unigram; auto: what the task wants")
    vocab_size: int = identity(8192, help="tokens, special ones included")
    lowercase: bool = identity(False, help="fold case and strip accents (wordpiece, unigram)")
    sample_bytes: int | None = identity(64 << 20, help="training text it is trained on, at most; null: all, which has to fit in memory")

    def check(self) -> None:
        # Byte-level BPE starts from its 256 bytes; Unigram also from the characters of an alphabet.
        least = 400 if self.kind is Kind.unigram else 300
        if self.vocab_size < least:
            raise ConfigError(f"tokenizer.vocab_size: {self.vocab_size}; at least {least} (256 bytes and something learned), e.g. 8192")
        if self.sample_bytes is not None and self.sample_bytes < 1:
            raise ConfigError(f"tokenizer.sample_bytes: {self.sample_bytes}; must be positive, e.g. {64 << 20}, or null for all")
        if self.lowercase and self.kind is Kind.bpe:
            raise ConfigError("tokenizer.lowercase: true with tokenizer.kind=bpe; byte-level BPE keeps case, use wordpiece or unigram")

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

    def build(self, folder: Path, kind: str, sentences: bool, sample: Sample) -> None:
        from trainer.data.subwords import train_tokenizer

        train_tokenizer(
            self.algorithm(kind), self.vocab_size, self.lowercase, sentences, lambda: sample(self.sample_bytes)
        ).save_pretrained(folder)


@choice
class Pretrained(Tokenizer):
    """A tokenizer from a folder, from bare vocabulary files or from the Hugging Face hub."""

    name: str = "pretrained"
    path: str = identity("", help="a folder, a vocab.txt, vocab.json or encoder.json, or a hub id such as openai-community/gpt2")
    revision: str | None = identity(None, help="branch, tag or commit of the hub repository")
    lowercase: bool | None = identity(None, help="of a bare vocab.txt: fold case and strip accents; default: what its tokens show")

    def check(self) -> None:
        if not self.path:
            raise ConfigError(
                "tokenizer.path: missing; tokenizer=pretrained needs tokenizer.path=, a folder, a vocabulary's file or a hub id"
            )

    def decides(self, kind: str, text: str, sentences: bool) -> dict[str, Any]:
        from trainer.data.tokenizer_files import digest_of

        located = self._located()
        return {"name": self.name, "files": digest_of(located.files), **located.options()}

    def build(self, folder: Path, kind: str, sentences: bool, sample: Sample) -> None:
        # Not all that a model's folder says of its tokenizer is about cutting text.
        self._located().load().save_pretrained(folder)

    def _located(self) -> Located:
        from trainer.data.tokenizer_files import locate

        return locate(self.path, self.revision, self.lowercase)
