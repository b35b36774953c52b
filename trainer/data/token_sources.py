"""Sources that hold tokens: choices of the config group `data` for corpora that another program has tokenized."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from trainer.choices import ConfigError, choice, identity
from trainer.data.sources import SPLITS, Files, Listing, Source, SourceFile

if TYPE_CHECKING:
    from trainer.data.segments import Format
    from trainer.data.tokenizers import Tokenizer
    from trainer.data.vocabularies import Special
    from trainer.tasks import Task


class Width(str, Enum):
    """How a token is stored."""

    uint16 = "uint16"
    uint32 = "uint32"


@dataclass
class TokenFiles(Files):
    """Token ids in files; the tokenizer that made them is given beside them."""

    eos: int | None = identity(None, help="id that ends a document; default: the tokenizer's own end of text")

    holds_tokens: ClassVar[bool] = True

    def check(self) -> None:
        super().check()
        # Ids of the tokenizer's vocabulary, once it is known.
        self._size = 0

    def suits(self, tokenizer: Tokenizer, task: Task) -> None:
        if tokenizer.name == "train":
            raise ConfigError(
                f"data={self.name} holds tokens, and no text to train a tokenizer on; give the one that it was made with: "
                "tokenizer=pretrained tokenizer.path=FOLDER or a hub id, such as openai-community/gpt2"
            )

    def told(self, special: Special) -> Source:
        eos = self.eos if self.eos is not None else special.sep if special.eos is None else special.eos
        if eos is None or not 0 <= eos < special.size:
            raise ConfigError(f"data.eos: {eos}; the tokenizer has ids from 0 to {special.size - 1}; give the one that ends a document")
        known = dataclasses.replace(self, eos=eos)
        known._size = special.size
        return known


@choice
class NanoGPT(TokenFiles):
    """nanoGPT's train.bin and val.bin, or llm.c's files with a header: one stream of ids, an end of text between documents."""

    name: str = "nanogpt"
    dtype: Width = identity(Width.uint16, help="uint16 | uint32: how a token is stored")

    kind: ClassVar[str] = "nanogpt"

    def suits(self, tokenizer: Tokenizer, task: Task) -> None:
        super().suits(tokenizer, task)
        if "nsp" in task.terms:
            raise ConfigError(f"task={task.name} needs sentences, and data={self.name} has none; use task=clm or task=mlm, or data of text")

    def listing(self) -> Listing:
        if isinstance(self.path, str):
            train, held_out = (os.path.join(os.path.expanduser(self.path), name) for name in ("train.bin", "val.bin"))
            if os.path.isfile(train) and os.path.isfile(held_out):
                return dataclasses.replace(self, path=None, train=train, eval=held_out).listing()
        return super().listing()

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.token_files import NanoGPTFormat

        assert self.eos is not None, "told"
        return NanoGPTFormat(self.eos, self._size, self.dtype.value)


@choice
class Megatron(TokenFiles):
    """Megatron-LM's indexed data sets: PREFIX.bin and PREFIX.idx, as its preprocess_data.py writes them."""

    name: str = "megatron"

    kind: ClassVar[str] = "megatron"

    def check(self) -> None:
        super().check()
        for key in ("path", *SPLITS):
            value = getattr(self, key)
            if value is not None:
                setattr(self, key, _bin(value) if isinstance(value, str) else [_bin(entry) for entry in value])

    def layout(self, files: list[SourceFile]) -> Format:
        from trainer.data.token_files import Index, MegatronFormat, index_of

        assert self.eos is not None, "told"
        for file in files:
            Index(file)
        digests = tuple(hashlib.sha256(index_of(file.path).read_bytes()).hexdigest()[:32] for file in files)
        return MegatronFormat(self.eos, self._size, digests)


def _bin(entry: str) -> str:
    """The .bin of a prefix; patterns, folders and names of files stay."""
    if entry.endswith((".bin", ".idx")):
        return entry[:-4] + ".bin"
    return entry if glob.has_magic(entry) or os.path.isdir(os.path.expanduser(entry)) else f"{entry}.bin"
