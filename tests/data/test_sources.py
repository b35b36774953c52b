"""Sources: what is found, what is refused, and what is held out."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import sysconfig
from pathlib import Path

import pytest

from tests.data.corpora import decoded, prepared, text_source
from trainer.choices import ConfigError
from trainer.data.files import records_as_text
from trainer.data.fingerprints import fingerprints
from trainer.data.record_sources import Arrow, Csv, Jsonl, Parquet, Tsv
from trainer.data.sources import EVAL, TRAIN, Stdlib, Text
from trainer.data.stdlib import near_copies, top_level
from trainer.data.token_sources import Megatron, NanoGPT


def test_stdlib_holds_out_whole_packages_and_leaves_tests_and_copies_out():
    root = Path(sysconfig.get_paths()["stdlib"])
    listing = Stdlib().listing()
    paths = [Path(file.path).relative_to(root) for file in listing.files]
    assert not any({"test", "tests", "site-packages"} & set(path.parts) for path in paths)
    assert not any(path.match("encodings/cp*.py") for path in paths)
    assert listing.dropped["near-copies"] > 50
    packages: dict[str, set] = {}
    sizes = {TRAIN: 0, EVAL: 0}
    for file in listing.files:
        packages.setdefault(top_level(Path(file.path), root), set()).add(file.split)
        sizes[file.split] += os.path.getsize(file.path)
    assert all(len(splits) == 1 for splits in packages.values()), "a package on both sides"
    assert 0.05 < sizes[EVAL] / sum(sizes.values()) <= 0.1
    assert listing == Stdlib().listing()
    assert not near_copies(root / path for path in paths), "what is kept holds no further near-copies"


def test_document_splits_are_free_of_leaks(tmp_path):
    """Whole documents by hash: no held-out document, nor a copy of one, is trained on; and the share is met."""
    lines = [f"sentence number {number % 150} about things" for number in range(400)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    corpus = prepared(text_source(tmp_path / "a.txt", document="line", held_out=0.1), sequence_length=16)
    train, held_out = decoded(corpus, TRAIN), decoded(corpus, EVAL)
    assert sorted(train + held_out) == sorted(lines)
    assert not set(train) & set(held_out)
    assert 0.05 <= len(held_out) / len(lines) <= 0.2


def test_few_documents_hold_out_the_tail(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} line {number}\n" for number in range(500)))
    (tmp_path / "c.txt").write_text((tmp_path / "b.txt").read_text())  # else the tail of b would be trained on as c
    corpus = prepared(text_source(tmp_path))
    train, held_out = "".join(decoded(corpus, TRAIN)), "".join(decoded(corpus, EVAL))
    assert train + held_out == (tmp_path / "a.txt").read_text() + (tmp_path / "b.txt").read_text()
    assert train.endswith("\n") and 0.03 < len(held_out) / len(train + held_out) <= 0.05
    assert corpus.meta["dropped"] == {"files that repeat another": 1}


def test_given_splits_are_kept(tmp_path):
    (tmp_path / "t.txt").write_text("to train on\n" * 20)
    (tmp_path / "e.txt").write_text("to hold out\n" * 5)
    corpus = prepared(Text(train=str(tmp_path / "t.txt"), eval=str(tmp_path / "e.txt")))
    assert decoded(corpus, TRAIN) == ["to train on\n" * 20]
    assert decoded(corpus, EVAL) == ["to hold out\n" * 5]
    with pytest.raises(ConfigError, match=r"data\.eval: .*t\.txt is in data\.train too"):
        Text(train=str(tmp_path), eval=str(tmp_path / "t.txt")).listing()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"data\.path: missing"),
        ({"train": "a"}, r"data\.eval: missing beside data\.train"),
        ({"path": "a", "eval": "b"}, "both given"),
        ({"path": []}, r"data\.path: \[\]"),
        ({"path": "a", "held_out": 1.0}, r"data\.held_out: 1\.0"),
        ({"path": "a", "processes": 0}, r"data\.processes: 0"),
    ],
)
def test_source_fields_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Text(**given)


def test_b13_data_not_found_tells_where_it_was_looked_for(tmp_path):
    (tmp_path / "corpus.txt").write_text("text")
    with pytest.raises(ConfigError, match=rf"data\.path: .*corpsu\.txt' not found in {tmp_path}; did you mean 'corpus\.txt'\?"):
        text_source(tmp_path / "corpsu.txt").listing()
    with pytest.raises(ConfigError, match=r"data\.path: '.*\*\.md' matches no file, seen from "):
        text_source(tmp_path / "*.md").listing()
    with pytest.raises(ConfigError, match="there is no folder"):
        text_source(tmp_path / "none" / "a.txt").listing()


@pytest.mark.parametrize("source", [Jsonl, Csv, Tsv, Parquet, Arrow, NanoGPT, Megatron])
def test_b13_every_source_of_files_tells_what_is_not_there(tmp_path, source):
    (tmp_path / "readme.md").write_text("text")
    with pytest.raises(ConfigError, match=rf"data\.path: '.*/corpus.*' not found in {tmp_path}; give an existing file"):
        source(path=str(tmp_path / "corpus")).listing()
    with pytest.raises(ConfigError, match=rf"data\.path: no {source.kind} in folder {tmp_path} \(1 files looked at\); allowed: "):
        source(path=str(tmp_path)).listing()


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".npy", ".zip", ".tar.gz", ".parquet", ".txt"])
def test_s09_only_text_is_read_and_nothing_is_unpickled(tmp_path, suffix):
    witness = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (witness,))

    path = tmp_path / f"data{suffix}"
    # Of protocol 0 for .pkl, which looks like text; binary for the others, whatever the name says.
    path.write_bytes(pickle.dumps(Payload(), protocol=0 if suffix == ".pkl" else 4) + b"\0")
    with pytest.raises(ConfigError, match=rf"data\.path: {path}: .*allowed: UTF-8 text, plain or compressed"):
        prepared(text_source(path))
    folder = tmp_path / "folder"
    folder.mkdir()
    path.rename(folder / path.name)
    (folder / "good.txt").write_text("some text\n" * 30)
    corpus = prepared(text_source(folder))
    assert corpus.meta["dropped"] == {"files that are not text": 1}
    assert not witness.exists()


def test_records_that_are_read_as_text_are_told(tmp_path):
    for name in ("a.txt", "poems.json", "more.json.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"[]") if name.endswith("gz") else b"some text\n")
    found = records_as_text(text_source(tmp_path).listing().files)
    assert found and re.match(rf"{tmp_path}/more\.json\.gz and 1 more: read as plain text, .*data=jsonl takes", found)
    assert records_as_text(text_source(tmp_path / "a.txt").listing().files) is None


def test_a_damaged_gzip_stream_names_the_file(tmp_path):
    whole = gzip.compress(os.urandom(3000).hex().encode())
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"a\.txt\.gz: damaged \.gz stream"):
        prepared(text_source(tmp_path / "a.txt.gz"))


def test_fingerprints_follow_the_content_and_not_the_clock(tmp_path):
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("first")
    os.utime(path, (1, 1))
    [first] = fingerprints([str(path)], cache, 1)
    path.write_text("other")  # of equal length, and then of equal time
    os.utime(path, (1, 1))
    path.with_suffix(".new").write_text("other")
    os.replace(path.with_suffix(".new"), path)
    assert fingerprints([str(path)], cache, 1) != [first]
    path.write_text("first")
    assert fingerprints([str(path)], cache, 1) == [first]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_equal_plain_ones_and_damage_is_named(tmp_path, suffix):
    import bz2
    import lzma

    import zstandard

    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    lines = [f"line number {number} of the text" for number in range(200)]
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt"  # told by content, not by name
    plain.write_text("\n".join(lines))
    whole = compress("\n".join(lines[:90]).encode() + b"\n") + compress("\n".join(lines[90:]).encode())  # as appending makes them
    if suffix == ".zst":
        whole = b"\x5a\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip" + whole
    packed.write_bytes(whole)
    cut = tmp_path / f"c.txt{suffix}"
    cut.write_bytes(whole[:-30])
    assert prepared(text_source(packed, document="line")).fingerprint == prepared(text_source(plain, document="line")).fingerprint
    # The tail of few documents begins somewhere inside.
    assert decoded(prepared(text_source(packed)), EVAL) == decoded(prepared(text_source(plain)), EVAL) != []
    with pytest.raises(ConfigError, match=rf"c\.txt\{suffix}: damaged \{suffix} stream"):
        prepared(text_source(cut))
