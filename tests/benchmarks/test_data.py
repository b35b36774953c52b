"""The data benchmark's own instruments: text without copies, memory of a whole tree, a table that no memory holds."""

from __future__ import annotations

import os
import sys

from benchmarks import data, memory, texts
from benchmarks.far_rows import read_all_over
from tests.data.corpora import prepared, text_source
from trainer import compose

HOLDS = "import subprocess, sys, time; held = b'x' * {size}; {more}; time.sleep(0.5)"


def test_text_of_any_size_repeats_no_document():
    sentences = [f"A sentence with a number, which is {number}." for number in range(2000)]
    found = list(texts.documents(sentences, 500_000, seed=3))
    assert len(set(found)) == len(found) > 50 and 500_000 <= sum(map(len, found)) < 600_000
    assert found == list(texts.documents(sentences, 500_000, seed=3)) != list(texts.documents(sentences, 500_000, seed=4))


def test_the_peak_is_that_of_a_program_and_of_what_it_starts():
    child = HOLDS.format(size=60_000_000, more="0")
    command = [sys.executable, "-c", HOLDS.format(size=40_000_000, more=f"subprocess.run([sys.executable, '-c', {child!r}])")]
    found = memory.peak(command, dict(os.environ))
    assert found["processes"] == 2 and 100e6 < found["Pss_Anon"] <= found["Pss"] < 160e6


def test_a_table_of_a_trillion_rows_is_read_all_over_and_never_held(tmp_path):
    (tmp_path / "a.txt").write_text("some words of a text, again and again\n" * 2000)
    config = compose("data=text", "data.path=x", "sequence_length=32", "steps=1")
    split = prepared(text_source(tmp_path / "a.txt"), sequence_length=32).split("train")
    found = read_all_over(config, split, tmp_path / "far", rows=10**12, steps=5)
    assert found["rows"] == 10**12 and found["bytes_apparent"] == 32 * 10**12 + 8 and found["bytes_on_disk"] < 50e6
    assert found["rows_read"] == 5 * 64 and found["tokens"] == 5 * 64 * 32
    before, after = found["memory"]["before"], found["memory"]["after"]
    assert after["Rss"] - before["Rss"] < 50e6 and after["Pss_Anon"] - before["Pss_Anon"] < 20e6


def test_verdicts_take_their_limits():
    def tokenizing(slow: float) -> bool:
        ways = {
            way: [{"wall": wall, "calls": wall, "cpu": wall, "tokens": 9}]
            for way, wall in zip(data.SHOWN, (1.0, 0.9, 2.0, slow), strict=True)
        }
        return data.tokenize_markdown({"bytes": 1e6, "text": "x", "cores": 2, "ways": ways})[1]

    def growth(large: float) -> bool:
        return data.memory_markdown(
            {size: {"Pss": peak, "Pss_Anon": 1, "processes": 3, "seconds": 1} for size, peak in (("1", 1e8), ("10", large))}
        )[1]

    def loading(cpu: float) -> bool:
        return data.load_markdown({name: [{"wall": 0.01, "cpu": cpu}] for name in data.TASKS})[1]

    assert tokenizing(4.0) and not tokenizing(3.9)
    assert growth(1.09e8) and not growth(1.11e8)
    assert loading(0.049) and not loading(0.051)
