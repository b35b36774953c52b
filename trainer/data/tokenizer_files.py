"""Finding pretrained tokenizers, in a folder, in bare vocabulary files or on the hub, and loading them."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError, nearest
from trainer.data.vocabulary_files import Bare, WordPieces, bare_at, bare_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What a tokenizer consists of, in the layouts of transformers; weights are none of it.
_MAIN_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_FILES = (*_MAIN_FILES, *_SETTINGS)
# Models that use BERT's vocab.txt, by transformers' model_type.
_LIKE_BERT = ("bert", "distilbert", "electra", "mobilebert")
_PATTERNS = [*_FILES, "*.model", "config.json"]


@dataclass(frozen=True)
class Folder:
    """A tokenizer in one of transformers' layouts."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in sorted({*self.path.glob("*.model"), *(self.path / name for name in _FILES)}) if path.is_file())

    def options(self) -> dict[str, Any]:
        """What beside the files decides the tokens."""
        return {}

    def load(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.path)


Located = Folder | Bare


def locate(path: str, revision: str | None = None, lowercase: bool | None = None) -> Located:
    """Where a tokenizer is: in a folder, in bare files, or fetched once from the hub.

    lowercase: of a bare vocab.txt. Raises ConfigError (B13): what was looked up where, and how to do without a network.
    """
    place = Path(path).expanduser()
    if place.exists() and revision is not None:
        raise ConfigError(f"tokenizer.revision: {revision}; {place} is here, and only a repository of the hub has revisions; leave it out")
    found = _in_folder(place, lowercase) if place.is_dir() else _at_file(place, lowercase) if place.exists() else None
    if found is None:
        if place.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
            there = sorted(entry.name for entry in place.parent.iterdir()) if place.parent.is_dir() else []
            mend = nearest(place.name, there) or "; give an existing folder or a hub id"
            raise ConfigError(f"tokenizer.path: no folder {path} and no file{mend}")
        found = _in_folder(_fetch(path, revision), lowercase)
    if lowercase is not None and not isinstance(found, WordPieces):
        raise ConfigError(
            f"tokenizer.lowercase: {str(lowercase).lower()}; that is for BERT's bare vocab.txt, and {path} says itself what becomes "
            "of case; leave it out"
        )
    return found


def _at_file(path: Path, lowercase: bool | None) -> Located:
    return _in_folder(path.parent, lowercase) if path.name in ("tokenizer.json", *_SETTINGS) else bare_at(path, lowercase)


def _in_folder(folder: Path, lowercase: bool | None) -> Located:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")) and not list(folder.glob("*.model")):
        # A model tells transformers which tokenizer it has, but of BERT's not what becomes of case.
        says = _model_type(folder) if any((folder / name).is_file() for name in _MAIN_FILES) else None
        bare = bare_in(folder, lowercase) if says in (None, *_LIKE_BERT) else None
        if bare is not None:
            return bare
        if says is None:
            holds = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise ConfigError(f"tokenizer.path: folder {folder} holds no tokenizer (one of {', '.join(_MAIN_FILES)}); it holds {holds}")
    return Folder(folder)


def _model_type(folder: Path) -> str | None:
    try:
        said = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return said if isinstance(said, str) else None


def _fetch(path: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_PATTERNS, etag_timeout=5))
    except Exception as error:  # The hub's client raises its own, its HTTP library's and the socket's errors.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        version = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"tokenizer.path: {path!r} is no folder and no file here, and was not found{version} on {constants.ENDPOINT} "
            f"or in its cache {constants.HF_HUB_CACHE}: {reason}. "
            f"Without a network: on a machine that has one, `hf download {path} --local-dir FOLDER`, copy the folder, "
            "and set tokenizer.path=FOLDER"
        ) from error


def digest_of(files: tuple[Path, ...]) -> str:
    """A hash of the files that make a tokenizer."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder. Raises ConfigError where it cannot be read, or has no fast implementation."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parsers raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"tokenizer.path: {folder}: transformers cannot load it: {reason[:400]}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"tokenizer.path: {folder}: {type(tokenizer).__name__} is not a fast tokenizer; save it with a tokenizer.json")
    return tokenizer
