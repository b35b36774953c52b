"""The order and the deal: properties over sizes, ranks and micro-batches."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.deal import deal, describe
from trainer.data.order import Order, permute


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32), epoch=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_order_is_a_bijection(size, seed, epoch):
    rows = permute(seed, epoch, np.arange(size), size)
    assert np.array_equal(np.sort(rows), np.arange(size))


def test_c06_passes_have_orders_of_their_own():
    size = 1000
    first, second = (Order(0, size).at(epoch * size, (epoch + 1) * size)[0] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(size))
    assert (first == second).mean() < 0.02
    assert (permute(0, 0, np.arange(size), size) == first).all()
    assert (permute(1, 0, np.arange(size), size) == first).mean() < 0.02


def test_order_mixes_well():
    """Neighbours are torn apart, and no position keeps its place more often than by chance."""
    size = 100_000
    rows = permute(3, 0, np.arange(size), size)
    assert abs(np.corrcoef(np.arange(size), rows)[0, 1]) < 0.02
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02


@given(size=st.integers(1, 500), start=st.integers(0, 2000), length=st.integers(0, 300), cut=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_c07_seek_gives_what_reading_on_gives(size, start, length, cut):
    order = Order(7, size)
    rows, epochs = order.at(start, start + length)
    cut = min(cut, length)
    tail_rows, tail_epochs = order.at(start + cut, start + length)
    assert np.array_equal(rows[cut:], tail_rows) and np.array_equal(epochs[cut:], tail_epochs)


def test_c07_a_far_seek_needs_no_table():
    """10¹² rows: a batch deep inside is computed without anything of that size."""
    rows, epochs = Order(1, 10**12).at(3 * 10**12 + 5, 3 * 10**12 + 69)
    assert len(set(rows.tolist())) == 64 and rows.max() < 10**12 and set(epochs.tolist()) == {3}


@given(
    lengths=st.lists(st.integers(1, 512), min_size=0, max_size=80),
    ranks=st.integers(1, 9),
    micro_batch=st.integers(1, 12),
)
@settings(max_examples=300, deadline=None)
def test_deal_gives_every_row_once_and_evenly(lengths, ranks, micro_batch):
    dealt = deal(np.array(lengths, dtype=np.int64), ranks, micro_batch)
    rows = sorted(row for hand in dealt.hands for part in hand for row in part)
    assert rows == list(range(len(lengths)))
    counts = [sum(map(len, hand)) for hand in dealt.hands]
    assert max(counts) - min(counts) <= 1
    assert {len(hand) for hand in dealt.hands} == {max(1, math.ceil(math.ceil(len(lengths) / ranks) / micro_batch))}
    for hand in dealt.hands:
        sizes = [len(part) for part in hand]
        assert max(sizes) <= micro_batch and max(sizes) - min(sizes) <= 1


@given(lengths=st.lists(st.integers(1, 512), min_size=8, max_size=200), ranks=st.integers(2, 8))
@settings(max_examples=100, deadline=None)
def test_deal_balances_tokens(lengths, ranks):
    """No rank has more than one longest row above another."""
    dealt = deal(np.array(lengths), ranks, 1000)
    sums = [sum(lengths[row] for part in hand for row in part) for hand in dealt.hands]
    assert max(sums) - min(sums) <= 2 * max(lengths)


def test_b02_a_batch_that_does_not_divide_is_explained():
    text = describe(100, 3, 16)
    assert text is not None and "global_batch=100" in text and "96" in text and "144" in text
    assert describe(96, 3, 16) is None
    assert describe(8, 2, 64) is None
