"""Bare vocabulary files: BERT's vocab.txt, and GPT-2's encoder.json with vocab.bpe, later called vocab.json and merges.txt.

They hold tokens and nothing else, so what BERT's and GPT-2's own code does around them is told here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The names before which anything may stand, as in gpt2-vocab.json and google_zh_vocab.txt.
_WORDPIECES = re.compile(r"(.*?)vocab\.txt")
_TOKENS = re.compile(r"(.*?)(?:encoder|vocab)\.json")
_MERGES = re.compile(r"(.*?)(?:vocab\.bpe|merges\.txt)")
_NAMES = "vocab.txt (BERT), or encoder.json with vocab.bpe, or vocab.json with merges.txt (GPT-2)"

_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
_END_OF_TEXT = "<|endoftext|>"
# Not words: [unused1], <S>.
_SPECIAL = re.compile(r"\[.*\]|<.*>")
# Fewer words with capitals than this among those with letters: neither a cased vocabulary nor an uncased one.
_CASED = 0.01


@dataclass(frozen=True)
class WordPieces:
    """BERT's vocab.txt: a token a line. lowercase: fold case and strip accents; None: what the tokens show."""

    path: Path
    lowercase: bool | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def options(self) -> dict[str, Any]:
        """What beside the files decides the tokens."""
        return {"lowercase": self._lowercase(self._tokens())}

    def load(self) -> PreTrainedTokenizerFast:
        """As transformers' BertTokenizer has it. Raises ConfigError where the file is no such vocabulary, or might be either."""
        from transformers import BertTokenizer

        tokens = self._tokens()
        loaded: PreTrainedTokenizerFast = BertTokenizer(
            vocab={token: number for number, token in enumerate(tokens)}, do_lower_case=self._lowercase(tokens)
        )
        return loaded

    def _tokens(self) -> list[str]:
        tokens = [line.rstrip() for line in _read(self.path).split("\n")]
        while tokens and not tokens[-1]:
            tokens.pop()
        missing = [token for token in _BERT if token not in tokens]
        if missing:
            raise ConfigError(
                f"tokenizer.path: {self.path} has no line {' and none '.join(missing)} among its {len(tokens):,}, as BERT's vocab.txt has; "
                "give another file, or put them in the place of lines [unused…]"
            )
        return tokens

    def _lowercase(self, tokens: list[str]) -> bool:
        if self.lowercase is not None:
            return self.lowercase
        words = [token for token in tokens if token.lower() != token.upper() and not _SPECIAL.fullmatch(token)]
        capitals = [token for token in words if token != token.lower()]
        if words and not capitals:
            return True
        if len(capitals) > _CASED * len(words):
            return False
        some = f"{len(capitals):,} of its {len(words):,} words have capitals ({', '.join(capitals[:3])})"
        raise ConfigError(
            f"tokenizer.lowercase: not given, and {self.path} does not show it: {some if words else 'no word has letters'}; "
            "give tokenizer.lowercase=true (case folded, accents stripped) or false, as its model was trained"
        )


@dataclass(frozen=True)
class BytePairs:
    """GPT-2's two files, or RoBERTa's: ids of tokens, and merges in order."""

    tokens: Path
    merges: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.tokens, self.merges)

    def options(self) -> dict[str, Any]:
        """What beside the files decides the tokens."""
        return {}

    def load(self) -> PreTrainedTokenizerFast:
        """As transformers' GPT2Tokenizer or, by its special tokens, RobertaTokenizer has it. Raises ConfigError where they do not fit."""
        from transformers import GPT2Tokenizer, RobertaTokenizer

        try:
            known = json.loads(_read(self.tokens))
        except ValueError as error:
            raise ConfigError(f"tokenizer.path: {self.tokens} is not JSON: {error}") from error
        if not isinstance(known, dict) or not all(type(number) is int for number in known.values()):
            raise ConfigError(f"tokenizer.path: {self.tokens} is no vocabulary: one object of tokens and their ids is expected")
        # Of a special token that is missing, transformers would make another row of the embedding.
        if known.keys() >= {*_ROBERTA}:
            cls: Any = RobertaTokenizer
        elif _END_OF_TEXT in known:
            cls = GPT2Tokenizer
        else:
            raise ConfigError(
                f"tokenizer.path: {self.tokens} has neither {_END_OF_TEXT}, as GPT-2's has, nor {' '.join(_ROBERTA)}, as RoBERTa's; "
                "save the tokenizer with its special tokens: transformers' save_pretrained writes a tokenizer.json"
            )
        try:
            loaded: PreTrainedTokenizerFast = cls(vocab=known, merges=_pairs(_read(self.merges)))
        except Exception as error:  # the tokenizers library has no class of errors
            raise ConfigError(f"tokenizer.path: {self.tokens} and {self.merges} do not fit together: {error}") from error
        return loaded


Bare = WordPieces | BytePairs


def _pairs(text: str) -> list[tuple[str, str]]:
    lines = [line.rstrip("\r") for line in text.split("\n")]
    return [(left, right) for left, _, right in (line.partition(" ") for line in lines if line and not line.startswith("#version"))]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"tokenizer.path: {path} is not UTF-8 at byte {error.start}: no vocabulary") from error


def bare_in(folder: Path, lowercase: bool | None) -> Bare | None:
    """The bare vocabulary of a folder; None where there is none. Raises ConfigError where there are several."""
    found = list(_vocabularies(sorted(entry for entry in folder.iterdir() if entry.is_file()), lowercase))
    if len(found) > 1:
        names = ", ".join(" with ".join(path.name for path in one.files) for one in found)
        raise ConfigError(
            f"tokenizer.path: {folder} holds {len(found)} vocabularies: {names}; name the file of one, "
            f"such as tokenizer.path={found[0].files[0]}"
        )
    return found[0] if found else None


def bare_at(path: Path, lowercase: bool | None) -> Bare:
    """The bare vocabulary of a file that was named. Raises ConfigError where it is none, or lacks the other of its two files."""
    beside = list(_vocabularies(sorted(entry for entry in path.parent.iterdir() if entry.is_file()), lowercase))
    for one in beside:
        if path.name in {file.name for file in one.files}:
            return one
    if _TOKENS.fullmatch(path.name) or _MERGES.fullmatch(path.name):
        raise ConfigError(
            f"tokenizer.path: {path} is one of two files, and the other is not beside it: tokens in encoder.json or vocab.json, "
            "merges in vocab.bpe or merges.txt, after the same beginning if there is one"
        )
    if path.suffix == ".txt":
        return WordPieces(path, lowercase)
    raise ConfigError(f"tokenizer.path: {path} is a file, but not {_NAMES}; give one of these, a folder, or a hub id")


def _vocabularies(files: Iterable[Path], lowercase: bool | None) -> Iterable[Bare]:
    """Those that the names of files make up, whole ones only."""
    tokens, merges = ({match[1]: path for path in files if (match := names.fullmatch(path.name))} for names in (_TOKENS, _MERGES))
    yield from (BytePairs(tokens[start], merges[start]) for start in tokens if start in merges)
    yield from (WordPieces(path, lowercase) for path in files if _WORDPIECES.fullmatch(path.name))
