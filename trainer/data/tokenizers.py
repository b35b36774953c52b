"""What cuts text into tokens: choices of the config group `tokenizer`."""

from __future__ import annotations

from enum import Enum

from trainer.choices import Choice, choice, identity


class Kind(str, Enum):
    """The algorithm of a trained tokenizer; `auto` is what the task wants."""

    auto = "auto"
    bpe = "bpe"
    wordpiece = "wordpiece"


class Tokenizer(Choice, group="tokenizer"):
    """From text to token ids."""


@choice
class Train(Tokenizer):
    """A tokenizer trained on the training split."""

    name: str = "train"
    kind: Kind = identity(Kind.auto, help="auto | bpe | wordpiece")
    vocab_size: int = identity(8192, help="entries, special ones included")
    lowercase: bool = identity(False, help="fold case (wordpiece)")
    sample_bytes: int = identity(64 << 20, help="bytes of the training split it is trained on, at most")


@choice
class Pretrained(Tokenizer):
    """A tokenizer from a directory or the hub."""

    name: str = "pretrained"
    path: str = identity("", help="a directory or a hub id")
    revision: str | None = identity(None, help="of the hub repository")
