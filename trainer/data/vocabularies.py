"""Making, finding and reading tokenizers; their special tokens."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.choices import ConfigError, nearest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
SENTINEL = re.compile(r"<extra_id_(\d+)>")
# What a tokenizer consists of, in the layouts of transformers; weights are none of it.
_MAIN_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
_FILES = (*_MAIN_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PATTERNS = [*_FILES, "*.model", "config.json"]


@dataclass(frozen=True)
class Special:
    """Ids of the special tokens, the number of ids, and which tokens begin a word: bool [size]. sentinels: stand for hidden spans."""

    size: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    cls: int | None = None
    sep: int | None = None
    mask: int | None = None
    sentinels: tuple[int, ...] = ()
    starts_word: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def ids(self) -> dict[str, Any]:
        """The ids and the size, as plain values."""
        return {key: value for key, value in asdict(self).items() if key != "starts_word"}


def train_tokenizer(kind: str, size: int, lowercase: bool, sentences: bool, text: Callable[[], Iterator[str]]) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `size` tokens: byte-level BPE (Sennrich 2016, Radford 2019) or WordPiece (Schuster 2012, Devlin 2018).

    The same text gives the same tokenizer. text: called once or twice for an iterator over it.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    if not sentences:
        names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
        names |= {"unk_token": "[UNK]"} if kind == "wordpiece" else {}
    special = list(dict.fromkeys(names.values()))
    tokenizer = _train_bpe(size, special, text()) if kind == "bpe" else _train_wordpiece(size, special, lowercase, text)
    if sentences:
        pair = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=pair
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def _train_bpe(size: int, special: list[str], text: Iterator[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def _train_wordpiece(size: int, special: list[str], lowercase: bool, text: Callable[[], Iterator[str]]) -> Tokenizer:
    from tokenizers import Tokenizer, models, trainers

    tokenizer = _bert(Tokenizer(models.WordPiece(unk_token="[UNK]")), lowercase)
    counts: Counter[str] = Counter()
    for piece in text():
        counts.update(tokenizer.normalizer.normalize_str(piece))
    # A quarter of the tokens is left for what is longer than a character, also in scripts of thousands of characters.
    common = sorted((char for char in counts if not char.isspace()), key=lambda char: (-counts[char], char))[: size * 3 // 4]
    inside = [char for char in sorted(common) if len(tokenizer.pre_tokenizer.pre_tokenize_str(f"a{char}")) == 1]
    # The library numbers the characters inside words in the order of a hash table that differs by call, and breaks ties by number.
    # Given as special tokens they are numbered as listed; the tokens learned are then put into a tokenizer that has no such specials.
    inside = [f"##{char}" for char in inside][: max(0, size - len(special) - len(common))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*special, *inside],
        initial_alphabet=sorted(common),
        limit_alphabet=len(common),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text(), trainer)
    learned = _bert(Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]")), lowercase)
    learned.add_special_tokens(special)
    return learned


def _bert(tokenizer: Tokenizer, lowercase: bool) -> Tokenizer:
    from tokenizers import decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def locate(path: str, revision: str | None = None) -> Path:
    """The local folder of a tokenizer: the folder itself, or the hub's files, fetched once.

    Raises ConfigError (B13): what was looked up where, and how to do without a network.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in _MAIN_FILES) and not list(folder.glob("*.model")):
            holds = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise ConfigError(f"tokenizer.path: folder {folder} holds no tokenizer (one of {', '.join(_MAIN_FILES)}); it holds {holds}")
        return folder
    if folder.exists():
        raise ConfigError(f"tokenizer.path: {path} is a file; give the folder that holds it, or a hub id")
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        there = sorted(entry.name for entry in folder.parent.iterdir()) if folder.parent.is_dir() else []
        raise ConfigError(f"tokenizer.path: no folder {path}{nearest(folder.name, there) or '; give an existing folder or a hub id'}")
    return _fetch(path, revision)


def _fetch(path: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_PATTERNS, etag_timeout=5))
    except Exception as error:  # The hub's client raises its own, its HTTP library's and the socket's errors.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        version = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"tokenizer.path: {path!r} is no folder here, and was not found{version} on {constants.ENDPOINT} "
            f"or in its cache {constants.HF_HUB_CACHE}: {reason}. "
            f"Without a network: on a machine that has one, `hf download {path} --local-dir FOLDER`, copy the folder, "
            "and set tokenizer.path=FOLDER"
        ) from error


def digest_of(folder: Path) -> str:
    """A hash of the files that make the tokenizer."""
    digest = hashlib.sha256()
    for path in sorted({*folder.glob("*.model"), *(folder / name for name in _FILES)}):
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder. Raises ConfigError where it cannot be read, or has no fast implementation."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise ConfigError(f"tokenizer.path: {folder}: transformers cannot load it: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"tokenizer.path: {folder}: {type(tokenizer).__name__} is not a fast tokenizer; save it with a tokenizer.json")
    return tokenizer


def special_tokens(tokenizer: PreTrainedTokenizerFast, sentences: bool) -> Special:
    """The ids that a task needs. Raises ConfigError naming the one that a tokenizer lacks."""
    vocabulary = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    ids = {key: getattr(tokenizer, f"{key}_token_id") for key in ("bos", "eos", "pad", "cls", "sep", "mask")}
    if sentences:
        missing = [key for key in ("cls", "sep", "mask") if ids[key] is None]
    else:
        # A BERT tokenizer ends a text with [SEP].
        ids["eos"] = ids["sep"] if ids["eos"] is None else ids["eos"]
        ids["bos"] = ids["eos"] if ids["bos"] is None else ids["bos"]
        missing = [key for key in ("eos",) if ids[key] is None]
    if missing:
        raise ConfigError(
            f"tokenizer: it has no {' and no '.join(missing)} token, which the task needs; "
            "choose another, or add it to the tokenizer's special_tokens_map.json"
        )
    ids["pad"] = ids["eos"] if ids["pad"] is None else ids["pad"]
    starts = words_started(vocabulary, size, tokenizer.backend_tokenizer)
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

    WordPiece marks the others with ##; BPE and SentencePiece mark these, with the space before.
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
    return not token[:1].isalnum()


def _begins_bytes(token: str) -> bool:
    """Of byte-level BPE: its alphabet writes bytes that print as themselves, and the others, 0 to 32 first, from character 256 on."""
    code = ord(token[:1] or " ")
    return 256 <= code <= 256 + 32 or code < 128 and not token[:1].isalnum()


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
