"""Finding the files of a source, and the allow-list of what is read."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.choices import ConfigError, nearest
from trainer.data.opening import bare_name, open_text
from trainer.data.remote import is_url, look_up
from trainer.data.sources import SourceFile

# Formats that hold no text, or text only after unpacking. A pickle of protocol 0 looks like text, hence names and not content alone.
NOT_TEXT = frozenset(
    f".{suffix}"
    for names in (
        "pkl pickle joblib pt pth ckpt bin safetensors npy npz h5 hdf5 parquet pq arrow feather ipc sqlite db",
        "zip tar tgz 7z rar so dll exe pyc pdf doc docx png jpg jpeg gif mp3 mp4",
    )
    for suffix in names.split(" ")
)


@dataclass(frozen=True)
class Kind:
    """What a source reads. suffixes: of the files that are taken from a folder; none: whatever is text. binary: no text; magic: how
    such a file begins, where it says so."""

    name: str
    allowed: str
    suffixes: tuple[str, ...] = ()
    binary: bool = False
    magic: tuple[bytes, ...] = (b"",)


_COMPRESSED = "plain or compressed (.gz, .bz2, .xz, .zst)"
KINDS = {
    kind.name: kind
    for kind in (
        Kind("text", f"UTF-8 text, {_COMPRESSED}"),
        Kind("jsonl", f"JSON (.jsonl, .ndjson, .json), {_COMPRESSED}", (".jsonl", ".ndjson", ".json")),
        Kind("csv", f"CSV, {_COMPRESSED}", (".csv",)),
        Kind("tsv", f"TSV, {_COMPRESSED}", (".tsv", ".tab")),
        Kind("conll", f"CoNLL columns (.conll, .iob, .bio), {_COMPRESSED}", (".conll", ".iob", ".bio")),
        Kind("conllu", f"CoNLL-U, {_COMPRESSED}", (".conllu",)),
        Kind("squad", f"SQuAD's JSON (.json), {_COMPRESSED}", (".json",)),
        Kind("parquet", "Parquet", (".parquet", ".pq"), True, (b"PAR1",)),
        # An IPC file; the mark that begins each message of a stream.
        Kind("arrow", "Arrow IPC (.arrow, .feather, .ipc)", (".arrow", ".feather", ".ipc"), True, (b"ARROW1", b"\xff\xff\xff\xff")),
        Kind("nanogpt", "files of token ids (.bin)", (".bin",), True),
        Kind("megatron", "PREFIX.bin with PREFIX.idx beside it", (".bin",), True),
    )
}


def find_files(given: str | Sequence[str], key: str, kind: str) -> tuple[list[SourceFile], dict[str, int]]:
    """The files that paths, folders, patterns and URLs name, sorted, each once; and what was left out of folders, by reason.

    Those behind URLs are not fetched yet. Raises ConfigError (B13) where an entry names nothing, (S09) where a named file is of a format
    that is not read.
    """
    found: set[SourceFile] = set()
    dropped = 0
    for entry in [given] if isinstance(given, str) else given:
        files, is_folder = _of_url(entry, key) if is_url(entry) else _of_path(entry, key)
        # A file in the cache has been looked at when it came.
        refused = {file: refusal(file, kind) for file in files}
        kept = [file for file in files if refused[file] is None and (not is_folder or _is_named(file, KINDS[kind]))]
        if not is_folder and len(kept) < len(files):
            raise _refused(*next((file, reason) for file, reason in refused.items() if reason), kind, key)
        if not kept:
            raise ConfigError(f"{key}: no {kind} in folder {entry} ({len(files)} files looked at); allowed: {KINDS[kind].allowed}")
        dropped += len(files) - len(kept)
        found.update(kept)
    return sorted(found, key=lambda file: file.shown), {f"files that are not {kind}": dropped} if dropped else {}


def _of_url(entry: str, key: str) -> tuple[list[SourceFile], bool]:
    """The files of a URL, and whether they were picked by nobody."""
    files = [SourceFile(file.path, remote=file) for file in look_up(entry, key)]
    return files, len(files) != 1 and not glob.has_magic(entry)


def _of_path(entry: str, key: str) -> tuple[list[SourceFile], bool]:
    path = os.path.expanduser(entry.removeprefix("file://").removeprefix("local://"))
    if os.path.isdir(path):
        return [SourceFile(os.path.normpath(file)) for file in sorted(_walk(path))], True
    matches = [path] if os.path.lexists(path) else sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not matches:
        raise ConfigError(_not_found(path, entry, key))
    return [SourceFile(os.path.normpath(file)) for file in matches], False


def _walk(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(root, name) for name in files if not name.startswith("."))


def _not_found(path: str, entry: str, key: str) -> str:
    folder = os.path.dirname(path) or "."
    if glob.has_magic(path):
        return f"{key}: {entry!r} matches no file, seen from {os.getcwd()}; put a pattern in quotes so that the shell leaves it alone"
    if not os.path.isdir(folder):
        return f"{key}: {entry!r} not found: there is no folder {folder}, seen from {os.getcwd()}; give an existing file, folder or pattern"
    hint = nearest(os.path.basename(path), sorted(os.listdir(folder)))
    return f"{key}: {entry!r} not found in {os.path.abspath(folder)}{hint or '; give an existing file, folder or pattern'}"


def _is_named(file: SourceFile, wanted: Kind) -> bool:
    return not wanted.suffixes or bare_name(file.path).lower().endswith(wanted.suffixes)


def records_as_text(files: Sequence[SourceFile]) -> str | None:
    """A line where files that data=text reads are named like records, whose marks and keys would be learned with the text."""
    for kind in KINDS.values():
        named = [file for file in files if kind.suffixes and not kind.binary and _is_named(file, kind)]
        if named:
            others = f" and {len(named) - 1} more" if len(named) > 1 else ""
            return f"{named[0].shown}{others}: read as plain text, marks and keys included; data={kind.name} takes the text out of records"
    return None


def refuse(file: SourceFile, kind: str, key: str) -> None:
    """Raise ConfigError (S09) for a file that is not of its kind."""
    reason = refusal(file, kind)
    if reason:
        raise _refused(file, reason, kind, key)


def _refused(file: SourceFile, reason: str, kind: str, key: str) -> ConfigError:
    return ConfigError(f"{key}: {file.shown}: {reason}; allowed: {KINDS[kind].allowed}")


def refusal(file: SourceFile, kind: str) -> str | None:
    """Why a file cannot be read as its kind, from its name and, where it is here, its first bytes; None where it can."""
    wanted = KINDS[kind]
    if not wanted.binary:
        suffix = os.path.splitext(bare_name(file.path))[1].lower()
        if suffix in NOT_TEXT:
            reader = next((other.name for other in KINDS.values() if suffix in other.suffixes), None)
            return f"a {suffix} file is not text" + (f", data={reader} reads it" if reader else "")
    if file.remote and not os.path.exists(file.path):
        return None
    if not os.path.isfile(file.path):
        return "not a regular file"
    if wanted.binary:
        with open(file.path, "rb") as binary:
            return None if binary.read(16).startswith(wanted.magic) else f"no {kind} file, from its first bytes"
    with open_text(file.path) as stream:
        head = stream.read(1 << 12)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"
    if b"\0" in head:
        return f"binary (a zero byte at offset {head.index(0)})"
    return None
