"""Rows: every token where it belongs, once; nothing across a document; in memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.choices import ConfigError
from trainer.data import packing
from trainer.data.corpus import TokenStream, shard_name
from trainer.data.packing import best_fit, pack_causal, pack_documents, pack_pairs, split_long
from trainer.data.rows import Rows, RowWriter


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


def packed(folder, pack, *arguments) -> Rows:
    writer = RowWriter(folder)
    pack(*arguments, writer)
    writer.close()
    return Rows(folder)


@given(
    sizes=st.lists(st.integers(2, 90), min_size=1, max_size=60),
    length=st.integers(1, 40),
    rows_at_once=st.sampled_from([1, 3, 1 << 15]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_causal_rows_hold_every_target_once_and_stop_at_documents(scratch, sizes, length, rows_at_once):
    documents = np.concatenate([[0], np.cumsum(sizes)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_ROWS", rows_at_once)
        rows = packed(scratch, pack_causal, documents, length)
    end, position = int(documents[-1]), 0
    for row in range(len(rows)):
        pieces = rows.pieces(row)
        assert pieces[:, 1].sum() == rows.lengths[row] == rows.targets["clm"][row]
        assert rows.lengths[row] == min(length, end - position), "only the last row is short"
        for start, size in pieces.tolist():
            assert start == position and size > 0
            # All of a piece lies in one document: between two neighbouring starts.
            assert np.searchsorted(documents, start, "right") == np.searchsorted(documents, start + size, "left")
            position += size
    assert position == end == rows.tokens_total == rows.targets_total["clm"]


def corpus_of(draw: np.random.Generator, count: int, longest: int = 30):
    """documents, sentences: offsets of a corpus of random documents."""
    sentences, documents = [0], [0]
    for _ in range(count):
        for _ in range(int(draw.integers(1, 12))):
            sentences.append(sentences[-1] + int(draw.integers(1, longest)))
        documents.append(sentences[-1])
    return np.array(documents), np.array(sentences)


@given(seed=st.integers(0, 10_000), count=st.integers(2, 40), length=st.integers(8, 80), block=st.sampled_from([5, 64, 1 << 18]))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pairs_cover_every_token_and_follow_or_come_from_elsewhere(scratch, seed, count, length, block):
    documents, sentences = corpus_of(np.random.default_rng(seed), count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_SENTENCES", block)
        rows = packed(scratch, pack_pairs, documents, sentences, length, 0.15, seed)
    seen = np.zeros(documents[-1], int)
    for row in range(len(rows)):
        pieces = rows.pieces(row)
        assert rows.lengths[row] == (pieces[:, 1] + pieces[:, 3] + 3).sum() <= length
        assert rows.targets["nsp"][row] == len(pieces)
        assert rows.targets["mlm"][row] == max(1, round(0.15 * int((pieces[:, 1] + pieces[:, 3]).sum())))
        for a, a_length, b, b_length, follows in pieces.tolist():
            assert a_length > 0 and b_length > 0
            homes = [np.searchsorted(documents, place, "right") - 1 for place in (a, a + a_length - 1, b, b + b_length - 1)]
            assert homes[0] == homes[1] and homes[2] == homes[3], "a part crosses a document"
            seen[a : a + a_length] += 1
            if follows:
                assert b == a + a_length and homes[0] == homes[2]
                seen[b : b + b_length] += 1
            else:
                assert homes[0] != homes[2]
                assert b in sentences
    assert (seen == 1).all(), "each token is once in an A or in the B that follows it"


def test_pairs_do_not_depend_on_blocks_and_half_of_them_follow(tmp_path, monkeypatch):
    documents, sentences = corpus_of(np.random.default_rng(1), 3000)
    whole = packed(tmp_path / "whole", pack_pairs, documents, sentences, 128, 0.15, 7)
    monkeypatch.setattr(packing, "_SENTENCES", 1000)
    parts = packed(tmp_path / "parts", pack_pairs, documents, sentences, 128, 0.15, 7)
    packed(tmp_path / "other", pack_pairs, documents, sentences, 128, 0.15, 8)
    read = lambda folder: (tmp_path / folder / "pieces.bin").read_bytes()  # noqa: E731
    assert read("whole") == read("parts") != read("other")
    pieces = np.concatenate([whole.pieces(row) for row in range(len(whole))])
    assert 0.45 < pieces[:, 4].mean() <= 0.52
    # A random second part comes from all over the corpus, not from one place.
    random = pieces[pieces[:, 4] == 0]
    assert np.histogram(random[:, 2], bins=10)[0].min() > 0.7 * len(random) / 10
    assert whole.tokens_total / (len(whole) * 128) > 0.9, "rows are filled"
    assert len(parts) == len(whole)


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=120), capacity=st.integers(3, 40), block=st.integers(1, 130))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_documents_fill_rows_and_every_token_is_in_one(scratch, lengths, capacity, block):
    """Each part lies within one document, with [CLS] and [SEP] around it; how documents are read in blocks changes nothing."""
    documents = np.concatenate([[0], np.cumsum(lengths)])
    whole = packed(scratch / "whole", pack_documents, documents, capacity, 0.15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "DOCUMENTS", block)
        rows = packed(scratch / "parts", pack_documents, documents, capacity, 0.15)
    assert (scratch / "whole/pieces.bin").read_bytes() == (scratch / "parts/pieces.bin").read_bytes()
    pieces = np.concatenate([rows.pieces(row) for row in range(len(rows))])
    covered = np.concatenate([np.arange(start, start + length) for start, length in pieces])
    assert sorted(covered) == list(range(documents[-1]))
    assert (np.searchsorted(documents, pieces[:, 0], "right") == np.searchsorted(documents, pieces.sum(axis=1), "left")).all()
    for row in range(len(rows)):
        text = int(rows.pieces(row)[:, 1].sum())
        assert rows.lengths[row] == text + 2 * len(rows.pieces(row)) <= capacity
        assert rows.targets["mlm"][row] == max(1, round(0.15 * text))
    assert len(whole) == len(rows)


def test_one_document_warns_and_takes_the_other_half_from_elsewhere_in_it(tmp_path, caplog):
    sentences = np.arange(0, 2001, 10)
    rows = packed(tmp_path, pack_pairs, np.array([0, 2000]), sentences, 64, 0.15, 0)
    pieces = np.concatenate([rows.pieces(row) for row in range(len(rows))])
    random = pieces[pieces[:, 4] == 0]
    assert "only one document" in caplog.text
    assert len(random) and (random[:, 2] != random[:, 0] + random[:, 1]).all(), "a second part that follows is not called random"


def test_a_length_that_holds_no_pair_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="sequence_length: 7"):
        packed(tmp_path, pack_pairs, np.array([0, 9]), np.array([0, 9]), 7, 0.15, 0)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=300), capacity=st.integers(50, 80))
def test_best_fit_places_every_item_once_and_wastes_little(sizes, capacity):
    order, counts = best_fit(np.array(sizes), capacity)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    ends = np.cumsum(counts)
    filled = [sum(sizes[item] for item in order[end - count : end]) for end, count in zip(ends, counts, strict=True)]
    assert max(filled) <= capacity
    assert len(filled) <= 11 / 9 * -(-sum(sizes) // capacity) * 1.5 + 1
    # No two rows could have been one: that is what best fit promises.
    assert len(filled) < 2 or sum(sorted(filled)[:2]) > capacity


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 40))
def test_long_sentences_are_split(sizes, longest):
    borders = np.concatenate([[0], np.cumsum(sizes)])
    finer = split_long(borders, longest)
    assert set(borders) <= set(finer) and np.diff(finer).max() <= longest and np.diff(finer).min() > 0
    assert len(finer) == 1 + sum(-(-size // longest) for size in sizes)


@given(st.integers(1, 200), st.integers(1, 50), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stream_reads_across_shards(scratch, length, shard, data):
    values = np.arange(length, dtype=np.uint16)
    for number, start in enumerate(range(0, length, shard)):
        values[start : start + shard].tofile(scratch / shard_name(number))
    stream = TokenStream(scratch, length, "uint16", shard)
    start = data.draw(st.integers(0, length))
    count = data.draw(st.integers(0, length - start))
    assert stream.read(start, count).tolist() == list(range(start, start + count))
    with pytest.raises(IndexError):
        stream.read(start, length - start + 1)
