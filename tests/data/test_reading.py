"""Units and documents: borders depend on content alone, and nothing is lost, repeated or told apart by where a block ended."""

from __future__ import annotations

import gzip
import itertools
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.corpora import whole
from trainer.data.duplicates import Repeated, compare_parts, digest_part
from trainer.data.fingerprints import fingerprint
from trainer.data.reading import Parting, splits, units
from trainer.data.segments import Segment
from trainer.data.sources import EVAL, TRAIN, Document, SourceFile
from trainer.data.text import TextFormat, documents

TEXTS = st.lists(st.sampled_from(["a", "é", "\n", "\n\n", " ", "\n \n", "x" * 50, "字" * 9, "\r\n"]), max_size=120).map("".join)


def read(path, document, parting=None, unit_bytes=64):
    """The segments of one file."""
    found = units(whole(path), TextFormat(document), parting or Parting(1 << 63), [5], unit_bytes)
    return [segment for unit in found for segment in unit.segments]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("reading") / "text.txt"


@pytest.mark.parametrize("document", Document)
@given(text=TEXTS, unit_bytes=st.sampled_from([64, 257, 100_000]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_documents_do_not_depend_on_where_units_end(scratch, document, text, unit_bytes):
    raw = text.encode()
    scratch.write_bytes(raw)
    segments = read(scratch, document, unit_bytes=unit_bytes)
    assert b"".join(segment.text for segment in segments) == raw
    found: list[bytes] = []
    for segment in segments:
        segment.text.decode()  # no character is torn
        assert segment.line == 1 + raw[: segment.offset].count(b"\n")
        parts = list(documents(segment, document))
        if not segment.opens:
            found[-1] += parts.pop(0)
        found += parts
    expected = [text for text in documents(Segment(0, 0, 1, raw), document) if text.strip()]
    assert [text for text in found if text.strip()] == expected


@pytest.mark.parametrize("document", [Document.line, Document.blank_line])
@given(text=TEXTS, places=st.sets(st.integers(1, 300), max_size=4), unit_bytes=st.sampled_from([64, 100_000]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_is_read_in_stretches_is_the_same(scratch, document, text, places, unit_bytes):
    raw = text.encode()
    scratch.write_bytes(raw)
    layout = TextFormat(document)
    borders = [0, *sorted(place for place in places if place < len(raw)), len(raw)]
    files = [SourceFile(str(scratch), start=start, stop=stop) for start, stop in itertools.pairwise(borders)]
    segments = [segment for file in files for segment in layout.segments(0, file, unit_bytes)]
    assert b"".join(segment.text for segment in segments) == raw
    assert sum(segment.size for segment in segments) == len(raw)
    for segment in segments:
        assert segment.line + raw[: segment.after].count(b"\n") == 1 + raw[: segment.offset].count(b"\n") or not segment.text
    if unit_bytes > len(raw):
        expected = [text for text in documents(Segment(0, 0, 1, raw), document) if text.strip()]
        assert [text for segment in segments for text in documents(segment, document) if text.strip()] == expected


@given(text=TEXTS, share=st.floats(0.01, 0.5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_tail_of_few_documents_starts_after_a_line_end(scratch, text, share):
    raw = text.encode()
    scratch.write_bytes(raw)
    if not raw:
        return
    place = TextFormat(Document.file).tail([SourceFile(str(scratch))], [len(raw)], share)
    sides = {TRAIN: b"", EVAL: b""}
    for segment in read(scratch, Document.file, Parting(place=place)):
        assert not sides[EVAL] or segment.split == EVAL
        sides[segment.split] += segment.text
    assert sides[TRAIN] + sides[EVAL] == raw
    held_out = len(sides[EVAL])
    assert held_out <= max(1, share * len(raw)) + 3
    wanted = len(raw) - int(share * len(raw))
    if b"\n" in raw[wanted:-1]:
        assert sides[TRAIN].endswith(b"\n") and b"\n" not in raw[wanted : len(sides[TRAIN]) - 1]


def test_gzip_equals_plain_down_to_the_units(tmp_path):
    text = b"\xef\xbb\xbf" + b"".join(b"line %d of the file\n" % number for number in range(5000))
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "b.txt").write_bytes(gzip.compress(text))  # told by content, not by name
    plain, packed = (read(tmp_path / name, Document.line, unit_bytes=10_000) for name in ("a.txt", "b.txt"))
    assert plain == packed
    assert plain[0].text.startswith(b"line 0")
    assert fingerprint(str(tmp_path / "a.txt")) == fingerprint(str(tmp_path / "b.txt"))


def test_equal_documents_lie_on_one_side(tmp_path):
    """Also where they are too long for a unit, so that only their first part decides."""
    long = [bytes([65 + number]) * 70_000 for number in range(12)]
    text = b"\n".join(long + [b"short %d" % (number % 7) for number in range(300)] + long)
    (tmp_path / "a.txt").write_bytes(text)
    sides: dict[bytes, set[str]] = {}
    parting = Parting(1 << 63)
    layout = TextFormat(Document.line)
    for segment in read(tmp_path / "a.txt", Document.line, parting, unit_bytes=66_000):
        for split, document in splits(layout.documents(segment), segment, parting):
            sides.setdefault(document[:10], set()).add(split)
    assert len(sides) == 19
    assert all(len(side) == 1 for side in sides.values())
    assert {side for found in sides.values() for side in found} == {TRAIN, EVAL}


@given(draw=st.data(), unit_bytes=st.sampled_from([30, 64, 1000]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_first_of_equal_documents_is_kept_also_where_they_are_long(scratch, draw, unit_bytes):
    texts = draw.draw(st.lists(st.sampled_from(["a", "b " * 30, "c" * 90, "d " * 100, "e"]), max_size=25))
    scratch.write_text("\n".join(texts))
    layout = TextFormat(Document.line)

    folders = [scratch.with_name(name) for name in ("part", "repeated")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    digest_part(whole(scratch), layout, Parting(1 << 63), [0], unit_bytes, folders[0], lambda size: None)
    compare_parts(folders[:1], folders[1])
    repeated = Repeated(folders[1])
    kept: list[str] = []
    for unit in units(whole(scratch), layout, Parting(1 << 63), [0], unit_bytes, repeated):
        for segment in unit.segments:
            for _, text in splits(layout.documents(segment), segment, Parting(1 << 63)):
                if segment.opens:
                    kept.append("")
                kept[-1] += text.decode()
    assert kept == list(dict.fromkeys(texts))
    assert repeated.count == len(texts) - len(kept)
