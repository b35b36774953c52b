"""Prepare: the same from any number of processes and from gzip; errors say what, where and how to mend it. See test_sharing.py too."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.corpora import Settings, decoded, files_of, prepared, text_source
from trainer.choices import ConfigError
from trainer.data import pipeline
from trainer.data.baselines import best_neighbours, neighbour_accuracy
from trainer.data.cache import cache_root
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.prepare import prepare
from trainer.data.tokenizers import Train
from trainer.tasks.mlm_nsp import MaskedLMWithNextSentence

ROOT = Path(__file__).resolve().parents[2]


def write_text(path: Path, size: int, seed: int = 0) -> Path:
    """Pseudo-English of about `size` bytes: paragraphs of lines, parted by blank lines."""
    draw = np.random.default_rng(seed)
    words = np.array(["".join(draw.choice(list("etaoinshrdlucm"), draw.integers(2, 9))) for _ in range(3000)])
    with open(path, "w") as stream:
        while stream.tell() < size:
            lines = [" ".join(words[draw.zipf(1.3, draw.integers(4, 20)) % len(words)]) for _ in range(draw.integers(2, 30))]
            stream.write(".\n".join(lines) + ".\n\n")
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; units small enough that a small text has many."""
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pipeline, "UNIT_BYTES", 1 << 15)
    return tmp_path / "cache"


@pytest.mark.parametrize("task", ["clm", "mlm_nsp"])
def test_prepare_is_independent_of_processes_and_of_unit_borders(tmp_path, cache, monkeypatch, task):
    write_text(tmp_path / "a.txt", 400_000)
    found = []
    for name, processes, unit in (("one", 1, 1 << 15), ("three", 3, 1 << 15), ("whole", 1, 1 << 24)):
        monkeypatch.setenv("TRAINER_CACHE", str(cache / name))
        monkeypatch.setattr(pipeline, "UNIT_BYTES", unit)
        source = text_source(tmp_path / "a.txt", document="blank_line")
        source.processes = processes
        settings = {"task": MaskedLMWithNextSentence()} if task == "mlm_nsp" else {}
        prepared(source, tokenizer=Train(vocab_size=600), **settings)
        assert not list((cache / name).rglob("*.partial"))
        found.append({**files_of(cache / name / "corpus"), **files_of(cache / name / "rows")})
    assert found[0] == found[1] == found[2]


def test_gzip_equals_plain(tmp_path, cache):
    path = write_text(tmp_path / "a.txt", 100_000)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    plain, packed = prepared(text_source(path)), prepared(text_source(tmp_path / "b.txt.gz"))
    assert plain.fingerprint == packed.fingerprint and plain.path == packed.path


MEASURE = """
import json, resource, sys
from tests.data.corpora import prepared, text_source
from trainer.data import pipeline
pipeline.UNIT_BYTES = 1 << 18
source = text_source(sys.argv[1])
source.processes = 2
from trainer.data.tokenizers import Train
prepared(source, tokenizer=Train(vocab_size=600, sample_bytes=1 << 18))
kilobytes = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps(kilobytes))
"""


def test_memory_is_flat_in_the_size_of_the_corpus(tmp_path):
    """Peak of prepare itself and of its largest process at 2 and at 10 MB, all of it one document."""
    peaks = []
    block = write_text(tmp_path / "block.txt", 1_000_000).read_bytes()
    held_out = write_text(tmp_path / "held_out.txt", 100_000, seed=1)
    program = MEASURE.replace("text_source(sys.argv[1])",
                              f"Text(train=sys.argv[1], eval={str(held_out)!r})")  # fmt: skip
    program = "from trainer.data.sources import Document, Text\n" + program
    for copies in (2, 10):
        path = tmp_path / f"{copies}.txt"
        path.write_bytes(block * copies)
        environment = os.environ | {"TRAINER_CACHE": str(tmp_path / f"cache{copies}"), "PYTHONPATH": str(ROOT)}
        output = subprocess.run([sys.executable, "-c", program, str(path)], env=environment, cwd=ROOT, check=True, capture_output=True)
        peaks.append(json.loads(output.stdout.splitlines()[-1]))
    growth = [(large - small) / 1024 for small, large in zip(*peaks, strict=True)]
    # The text alone grew by 8 MB, its tokens as Python numbers by a hundred.
    assert max(growth) < 6, f"MB more at five times the size: {growth}"


def test_the_files_of_a_folder_are_told(tmp_path, capsys):
    """By a line, and to the run that is trained on them."""
    for number in range(5):
        write_text(tmp_path / f"{number}.txt", 20_000)
    (tmp_path / "weights.bin").write_bytes(bytes(10))
    done = prepare(Settings(text_source(tmp_path)))  # type: ignore[arg-type]
    size = sum(path.stat().st_size for path in tmp_path.glob("*.txt"))
    wanted = f"data: 5 files, {size:,} bytes: {tmp_path}/0.txt, {tmp_path}/1.txt, {tmp_path}/2.txt and 2 more"
    assert wanted in capsys.readouterr().out.splitlines() and done.files == wanted
    one = prepare(Settings(text_source(tmp_path / "3.txt")))  # type: ignore[arg-type]
    assert one.files == f"data: 1 file, {(tmp_path / '3.txt').stat().st_size:,} bytes: {tmp_path}/3.txt"


def test_a_second_prepare_reads_nothing_again(tmp_path, cache, capsys):
    path = write_text(tmp_path / "a.txt", 50_000)
    os.utime(path, (1, 1))
    config = Settings(text_source(path))
    first = prepare(config)  # type: ignore[arg-type]
    table = capsys.readouterr().out
    assert all(word in table for word in ("training", "held out", "documents", "bytes per token", "dropped: nothing"))
    before = {name: os.stat(cache / name).st_mtime_ns for name in files_of(cache) if not name.startswith("fingerprints")}
    again = prepare(config)  # type: ignore[arg-type]
    assert again == first
    assert "prepared before" in capsys.readouterr().out
    after = {name: os.stat(cache / name).st_mtime_ns for name in files_of(cache) if not name.startswith("fingerprints")}
    assert after == before


def test_changed_settings_are_another_corpus(tmp_path, cache):
    path = write_text(tmp_path / "a.txt", 50_000)
    first = prepared(text_source(path))
    assert prepared(text_source(path), seed=1).path == first.path
    fingerprints = {
        first.fingerprint,
        prepared(text_source(path), seed=1).fingerprint,
        prepared(text_source(path), sequence_length=16).fingerprint,
        prepared(text_source(path), tokenizer=Train(vocab_size=500)).fingerprint,
        prepared(text_source(path, document="blank_line")).fingerprint,
        prepared(text_source(path, held_out=0.2)).fingerprint,
    }
    path.write_text(path.read_text() + "one more line\n")
    fingerprints.add(prepared(text_source(path)).fingerprint)
    assert len(fingerprints) == 7


def test_b06_nothing_left_tells_the_path_and_what_was_dropped_and_why(tmp_path, cache):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(" \n\n" * (1 + (name == "b")))
    with pytest.raises(ConfigError, match=rf"data\.path={folder}: no text; 2 files read, 0 kept; dropped: 2 empty files\. Give"):
        prepared(text_source(folder))
    (folder / "c.txt").write_bytes(b"\xff\n" * 10)
    with pytest.raises(
        ConfigError, match=r"nothing to train on; 1 files read, .*0 kept for train.*dropped: 2 empty files, 10 lines that are not UTF-8"
    ):
        prepared(text_source(folder, on_error="skip"))


def test_b07_bad_bytes_name_file_line_and_byte(tmp_path, cache):
    good = "".join(f"a good line {number}\n" for number in range(4000)).encode()
    path = tmp_path / "a.txt"
    path.write_bytes(good + "grün\n".encode("latin-1") + good + b"and \xe5\xad\n")
    with pytest.raises(ConfigError, match=rf"{path}:4001:3: byte 0xfc is not UTF-8, at offset {len(good) + 2}.*data\.on_error=skip"):
        prepared(text_source(path))
    corpus = prepared(text_source(path, on_error="skip"))
    assert corpus.meta["dropped"] == {"lines that are not UTF-8": 2}
    assert "".join(decoded(corpus, "train") + decoded(corpus, "eval")) == (good + good).decode()


def test_held_out_text_is_measured_as_gzip_and_xz_would(tmp_path, cache):
    (tmp_path / "t.txt").write_text("text to train on\n" * 50)
    path = write_text(tmp_path / "e.txt", 300_000)
    from trainer.data.sources import Text

    found = prepared(Text(train=str(tmp_path / "t.txt"), eval=str(path), processes=1)).meta["splits"]["eval"]
    assert found["bytes"] == path.stat().st_size
    for tool, key in (("gzip", "gzip_bytes"), ("xz", "xz_bytes")):
        size = len(subprocess.run([tool, "-9c", str(path)], check=True, capture_output=True).stdout)
        assert abs(found[key] - size) < 0.002 * size, tool


@pytest.mark.parametrize("document", ["file", "line", "blank_line"])
def test_wikitext2_and_books_come_back_from_their_tokens(data_folder, cache, document):
    names = ["wikitext2/valid.txt", "books/moby_dick.md"]
    corpus = prepared(text_source([str(data_folder / name) for name in names], document=document), tokenizer=Train(vocab_size=2000))
    text = "".join(decoded(corpus, "train") + decoded(corpus, "eval"))
    source = "".join((data_folder / name).read_bytes().decode() for name in sorted(names, key=lambda name: name.split("/")[0]))
    squeezed = lambda text: sorted(text.split()) if document != "file" else text  # noqa: E731 (splits change the order)
    assert (
        squeezed(text.replace("\n", " ")) == squeezed(source.replace("\n", " "))
        or document != "file"
        and len(text) > 0.97 * len(source.strip())
    )
    held_out = corpus.meta["splits"]["eval"]
    assert 0.02 < held_out["bytes"] / (held_out["bytes"] + corpus.meta["splits"]["train"]["bytes"]) < 0.09


def test_chinese_poetry_as_pairs(data_folder, tmp_path, cache):
    poems = json.loads((data_folder / "zh_poetry" / "poet.tang.0.json").read_text())[:300]
    (tmp_path / "tang.txt").write_text("\n\n".join("\n".join(poem["paragraphs"]) for poem in poems))
    source = text_source(tmp_path / "tang.txt", document="blank_line")
    corpus = prepared(source, tokenizer=Train(vocab_size=3000), task=MaskedLMWithNextSentence(), sequence_length=64)
    assert corpus.meta["splits"]["train"]["documents"] + corpus.meta["splits"]["eval"]["documents"] > 250
    train = corpus.split("train")
    assert train.sentences is not None and len(train.sentences) > 500
    unknown = 1  # [UNK]: WordPiece was trained on this very text
    assert (train.tokens.read(0, len(train.tokens)) == unknown).mean() < 0.05
    batch = MaskedLMWithNextSentence().collate(train, [__import__("trainer.tasks").tasks.Pick(0, 0)])
    assert batch.targets["mlm"] == train.rows.targets["mlm"][0]


def test_neighbour_accuracy_is_what_counting_gives(tmp_path, cache):
    text = write_text(tmp_path / "a.txt", 60_000)
    corpus = prepared(text_source(text, document="blank_line"), task=MaskedLMWithNextSentence(), sequence_length=64)
    found = neighbour_accuracy(corpus)
    after: dict[int, dict[int, int]] = {}
    before: dict[int, dict[int, int]] = {}

    def pairs(split):
        stream, documents = corpus.tokens(split), corpus.documents(split).tolist()
        for start, stop in itertools.pairwise(documents):
            tokens = stream.read(start, stop - start).tolist()
            yield from itertools.pairwise(tokens)

    for left, right in pairs("train"):
        for table, key, value in ((after, left, right), (before, right, left)):
            table.setdefault(key, {}).setdefault(value, 0)
            table[key][value] += 1
    best = [{key: min(seen, key=lambda value: (-seen[value], value)) for key, seen in table.items()} for table in (after, before)]
    total = len(corpus.tokens("eval"))
    counted = list(pairs("eval"))
    expected = max(
        sum(best[0].get(left) == right for left, right in counted) / total,
        sum(best[1].get(right) == left for left, right in counted) / total,
    )
    assert found == pytest.approx(expected) and 0.01 < found < 1
    assert neighbour_accuracy(corpus) == found  # from its file
    size = corpus.special.size
    for one, other in zip(best_neighbours(corpus, size), best_neighbours(corpus, size, table=7 * size), strict=True):
        assert np.array_equal(one, other), "memory bounds the table, not the result"


def test_prepared_data_that_is_gone_is_told(tmp_path, cache):
    done = prepare(Settings(text_source(write_text(tmp_path / "a.txt", 20_000))), progress=False)  # type: ignore[arg-type]
    assert isinstance(open_corpus(done.corpus, done.rows), Corpus)
    assert cache_root() == cache
    with pytest.raises(ConfigError, match="fingerprint: other was frozen"):
        open_corpus(done.corpus, done.rows, Settings(text_source("x"), fingerprint="other"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="TRAINER_CACHE"):
        open_corpus(tmp_path / "nowhere", done.rows)
