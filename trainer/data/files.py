"""Finding the files of a source, and the allow-list of what is read."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.choices import ConfigError, nearest
from trainer.data.opening import bare_name, open_text

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
    """What a source reads. suffixes: of the files that are taken from a folder; none: whatever is text. magic: how a binary file begins."""

    name: str
    allowed: str
    suffixes: tuple[str, ...] = ()
    magic: tuple[bytes, ...] = ()


_COMPRESSED = "plain or compressed (.gz, .bz2, .xz, .zst)"
KINDS = {
    kind.name: kind
    for kind in (
        Kind("text", f"UTF-8 text, {_COMPRESSED}"),
        Kind("jsonl", f"JSON (.jsonl, .ndjson, .json), {_COMPRESSED}", (".jsonl", ".ndjson", ".json")),
        Kind("csv", f"CSV, {_COMPRESSED}", (".csv",)),
        Kind("tsv", f"TSV, {_COMPRESSED}", (".tsv", ".tab")),
        Kind("parquet", "Parquet", (".parquet", ".pq"), (b"PAR1",)),
        # An IPC file; the mark that begins each message of a stream.
        Kind("arrow", "Arrow IPC (.arrow, .feather, .ipc)", (".arrow", ".feather", ".ipc"), (b"ARROW1", b"\xff\xff\xff\xff")),
    )
}


def find_files(given: str | Sequence[str], key: str, kind: str) -> tuple[list[str], dict[str, int]]:
    """The files that paths, folders and patterns name, sorted, each once; and what was left out of folders, by reason.

    Raises ConfigError (B13) where an entry names nothing, (S09) where a named file is of a format that is not read.
    """
    wanted = KINDS[kind]
    found: set[str] = set()
    dropped: dict[str, int] = {}
    for entry in [given] if isinstance(given, str) else given:
        path = os.path.expanduser(entry)
        if os.path.isdir(path):
            inside = list(_walk(path))
            kept = [file for file in inside if _is_named(file, wanted) and refusal(file, wanted) is None]
            if not kept:
                raise ConfigError(f"{key}: no {kind} in folder {path} ({len(inside)} files looked at); allowed: {wanted.allowed}")
            if len(kept) < len(inside):
                reason = f"files that are not {kind}"
                dropped[reason] = dropped.get(reason, 0) + len(inside) - len(kept)
            found.update(kept)
            continue
        matches = [path] if os.path.lexists(path) else sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        if not matches:
            raise ConfigError(_not_found(path, entry, key))
        for file in matches:
            refused = refusal(file, wanted)
            if refused:
                raise ConfigError(f"{key}: {file}: {refused}; allowed: {wanted.allowed}")
        found.update(matches)
    return sorted(os.path.normpath(path) for path in found), dropped


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


def _is_named(path: str, wanted: Kind) -> bool:
    return not wanted.suffixes or bare_name(path).lower().endswith(wanted.suffixes)


def refusal(path: str, wanted: Kind) -> str | None:
    """Why a file cannot be read as what is wanted, from its name and its first bytes; None where it can."""
    if not os.path.isfile(path):
        return "not a regular file"
    if wanted.magic:
        with open(path, "rb") as stream:
            return None if stream.read(16).startswith(wanted.magic) else f"no {wanted.name} file, from its first bytes"
    suffix = os.path.splitext(bare_name(path))[1].lower()
    if suffix in NOT_TEXT:
        reader = next((kind.name for kind in KINDS.values() if suffix in kind.suffixes), None)
        return f"a {suffix} file is not text" + (f", data={reader} reads it" if reader else "")
    with open_text(path) as stream:
        head = stream.read(1 << 12)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"
    if b"\0" in head:
        return f"binary (a zero byte at offset {head.index(0)})"
    return None
