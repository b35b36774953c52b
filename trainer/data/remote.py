"""Files behind URLs (https, s3, hf …): found by fsspec, fetched once into the cache, known again by what their server says of them.

$TRAINER_CACHE/remote/HASH OF THE URL/HASH OF ITS STATE/NAME
$TRAINER_CACHE/remote/HASH OF WHAT WAS ASKED FOR.json     what it meant when the server was last reached
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.atomic import flush, write_json
from trainer.choices import ConfigError
from trainer.data.cache import cache_root
from trainer.data.claims import made_once

# What servers and file systems call the state of a file: http, S3, Google, Azure, the Hugging Face hub, SSH, memory.
_STATE = ("size", "ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime", "updated", "md5Hash", "blob_id", "created")
_AT_ONCE = 8
_CONNECT_SECONDS, _READ_SECONDS = 10, 120

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """A file behind a URL. path: where it lies in the cache, or will lie. size: bytes; 0 where the server does not tell."""

    url: str
    path: str
    size: int


def is_url(entry: str) -> bool:
    """Whether an entry names something that is not a local path."""
    return "://" in entry and not entry.startswith(("file://", "local://"))


def look_up(entry: str, key: str) -> list[Remote]:
    """The files that a URL names: itself, what matches its pattern, or all below it where it is a folder (on the web: ends in /).

    Raises ConfigError (B13) where there is none, or where nothing answers and the cache does not know the answer.
    """
    memory = cache_root() / "remote" / f"{_hash(entry)}.json"
    try:
        found = _ask(entry, key)
    except ConfigError:
        raise
    except Exception as error:  # fsspec lets its libraries' errors through, and each has its own
        cause = _cause(error)
        if isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) in (404, 410):
            raise ConfigError(f"{key}: {entry!r} is not there: {_said(cause)}; look for a misspelling, or a file that was moved") from error
        return _remembered(memory, entry, key, cause)
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_json(memory, [asdict(file) for file in found])
    return found


def _ask(entry: str, key: str) -> list[Remote]:
    filesystem, path = _file_system(entry, key)
    web = entry.startswith(("http://", "https://"))
    if "*" in path or "[" in path or ("?" in path and not web):
        paths = filesystem.glob(path)
    elif web and path.endswith("/"):
        # An index page also links to itself, sorted otherwise.
        paths = [about["name"] for about in filesystem.ls(path, detail=True) if about["type"] == "file" and "?" not in about["name"]]
    elif not web and filesystem.isdir(path):
        paths = filesystem.find(path)
    else:
        paths = [path]
    if not paths:
        raise ConfigError(f"{key}: {entry!r} names no file; put a pattern in quotes so that the shell leaves it alone")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda path: _remote(filesystem, path), sorted(paths)))


def _remote(filesystem: Any, path: str) -> Remote:
    url, about = filesystem.unstrip_protocol(path), filesystem.info(path)
    state = {name: str(about[name]) for name in _STATE if about.get(name) is not None}
    name = os.path.basename(urlsplit(url).path.rstrip("/")) or "data"
    return Remote(url, str(cache_root() / "remote" / _hash(url) / _hash(json.dumps(state)) / name), about.get("size") or 0)


def _file_system(entry: str, key: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if entry.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout

        # Its own default is five minutes for a host that does not answer. trust_env: proxies.
        waits = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
        options = {"client_kwargs": {"timeout": waits, "trust_env": True}}
    try:
        return url_to_fs(entry, **options)
    except ImportError as error:
        raise ConfigError(f"{key}: {entry!r}: {_said(error)}; `pip install` what it names") from error
    except ValueError as error:
        raise ConfigError(f"{key}: {entry!r}: {_said(error)}; allowed: https://, s3://, gs://, hf:// and what else fsspec knows") from error


def _remembered(memory: Path, entry: str, key: str, error: BaseException) -> list[Remote]:
    """What an entry meant before; what of it is not in the cache and is wanted, fetching will miss."""
    with contextlib.suppress(OSError, ValueError):
        known = [Remote(**file) for file in json.loads(memory.read_text())]
        log.warning("%s: %s does not answer (%s); going on with what was fetched before", key, entry, _said(error))
        return known
    raise ConfigError(
        f"{key}: {entry!r} cannot be reached: {_said(error)}. Without a network: fetch the files on a machine that has one, copy them "
        f"here, and give their local path; or copy that machine's {memory.parent} to this one's"
    ) from error


def _cause(error: BaseException) -> BaseException:
    """The error behind: fsspec calls a server that does not answer a file that is not found."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error


def _said(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def fetch(files: Sequence[Remote], key: str, advance: Callable[[int], Any]) -> None:
    """Bring files into the cache, several at a time. advance: called with the bytes that came. Raises ConfigError where one fails."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda file: _fetch(file, key, advance), files))


def _fetch(file: Remote, key: str, advance: Callable[[int], Any]) -> None:
    from fsspec.callbacks import Callback

    class Progress(Callback):
        def relative_update(self, inc: int = 1) -> None:
            advance(inc)

    try:
        with made_once(Path(file.path), lambda waiting: None) as claim:
            if claim:
                _download(file, key, claim.aside, Progress())
    except ConfigError:
        raise
    except Exception as error:
        reason = _said(_cause(error))
        raise ConfigError(
            f"{key}: {file.url} could not be fetched: {reason}. The same command goes on with what is still missing"
        ) from error


def _download(file: Remote, key: str, aside: Path, progress: Any) -> None:
    try:
        filesystem, path = _file_system(file.url, key)
        filesystem.get_file(path, str(aside), callback=progress)
        came = aside.stat().st_size
        if file.size and came != file.size:
            raise ConnectionError(f"{came} bytes of {file.size} came")
        flush(aside)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
