"""What training must know of a tokenizer: special tokens, the number of ids, which tokens begin a word."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError
from trainer.data.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SENTINEL = re.compile(r"<extra_id_(\d+)>")
# How byte fallback writes a byte.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# The first bytes in UTF-8 of U+4000 to U+9FFF; of ideographs, a rare few lie before.
_CHINESE = range(0xE4, 0xEA)


@dataclass(frozen=True)
class Special:
    """Ids of the special tokens, the number of ids, and which tokens begin a word: bool [size].

    unk: what text becomes that the vocabulary cannot write. sentinels: stand for hidden spans.
    """

    size: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    cls: int | None = None
    sep: int | None = None
    mask: int | None = None
    unk: int | None = None
    sentinels: tuple[int, ...] = ()
    starts_word: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def ids(self) -> dict[str, Any]:
        """The ids and the size, as plain values."""
        return {key: value for key, value in asdict(self).items() if key != "starts_word"}


def special_tokens(tokenizer: PreTrainedTokenizerFast, sentences: bool, lenient: bool = False) -> Special:
    """The ids that a task needs. lenient: it sets none itself, but takes those that the tokenizer sets.

    Raises ConfigError (B04) naming the one that a tokenizer lacks."""
    vocabulary = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    ids = {key: getattr(tokenizer, f"{key}_token_id") for key in ("bos", "eos", "pad", "cls", "sep", "mask", "unk")}
    if sentences:
        missing = [key for key in ("cls", "sep", "mask") if ids[key] is None]
    else:
        # A BERT tokenizer ends a text with [SEP].
        ids["eos"] = ids["sep"] if ids["eos"] is None else ids["eos"]
        ids["bos"] = ids["eos"] if ids["bos"] is None else ids["bos"]
        missing = [key for key in ("eos",) if ids[key] is None]
    if missing and not lenient:
        example = "tokenizer=bert_uncased" if sentences else "tokenizer=gpt2"
        raise ConfigError(
            f"tokenizer: it has no {' and no '.join(missing)} token, which the task needs; take one that has, such as {example} or "
            f'tokenizer=train, or name tokens of its vocabulary in its tokenizer_config.json ("{missing[0]}_token": "…")'
        )
    ids["pad"] = ids["eos"] if ids["pad"] is None else ids["pad"]
    starts = words_started(vocabulary, size, tokenizer.backend_tokenizer)
    # Of GPT-2 it is the end of a text, which no text becomes.
    ids["unk"] = None if ids["unk"] in (ids["eos"], ids["bos"]) else ids["unk"]
    return Special(size, **ids, sentinels=sentinels_of(vocabulary), starts_word=starts)


def sentinels_of(vocabulary: dict[str, int]) -> tuple[int, ...]:
    """The ids of <extra_id_0>, <extra_id_1> …, as T5 calls them, in this order."""
    numbered = {int(match[1]): number for token, number in vocabulary.items() if (match := SENTINEL.fullmatch(token))}
    return tuple(numbered[number] for number in sorted(numbered))


def add_sentinels(folder: Path, count: int) -> None:
    """Give the tokenizer of a folder sentinels at the top of its vocabulary, unless it has some."""
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(folder)
    if not sentinels_of(tokenizer.get_vocab()):
        added = [AddedToken(f"<extra_id_{number}>", special=True, normalized=False) for number in range(count)]
        tokenizer.add_tokens(added, special_tokens=True)
        tokenizer.save_pretrained(folder)


def words_started(vocabulary: dict[str, int], size: int, tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Which tokens begin a word: bool [size].

    WordPiece marks the others with ##; BPE and Unigram mark these, with the space before. A Chinese character is a word, as BERT has it.
    """
    begins = _begins_piece if type(tokenizer.model).__name__ == "WordPiece" else _begins_text
    if type(tokenizer.decoder).__name__ == "ByteLevel":
        begins = _begins_bytes
    starts = np.ones(size, np.bool_)
    for token, number in vocabulary.items():
        starts[number] = begins(token)
    return starts


def _begins_piece(token: str) -> bool:
    return not token.startswith("##")


def _begins_text(token: str) -> bool:
    if written := _BYTE.fullmatch(token):
        return _begins_word(int(written[1], 16))
    return not token[:1].isalnum() or "\u3400" <= token[0] <= "\u9fff"


def _begins_bytes(token: str) -> bool:
    """Of byte-level BPE: its alphabet writes bytes that print as themselves, and the others, 0 to 32 first, from character 256 on."""
    code = ord(token[:1] or " ")
    return 256 <= code <= 256 + 32 or _begins_word(code)


def _begins_word(byte: int) -> bool:
    """Whether a word begins with a byte: not with an ASCII letter or digit, nor with a byte of other letters, Chinese ones apart."""
    return byte in _CHINESE if byte >= 128 else not chr(byte).isalnum()


def backend(folder: Path) -> Tokenizer:
    """The bare tokenizer of a folder, for bulk work: special tokens written in a text are text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def save_special(folder: Path, special: Special) -> None:
    """Write the ids and the word starts beside the tokenizer."""
    np.save(folder / "starts_word.npy", special.starts_word)
    (folder / "special.json").write_text(json.dumps(special.ids()))


def load_special(folder: Path) -> Special:
    """What save_special wrote."""
    ids = json.loads((folder / "special.json").read_text())
    ids["sentinels"] = tuple(ids.get("sentinels", ()))
    return Special(**ids, starts_word=np.load(folder / "starts_word.npy", allow_pickle=False))
