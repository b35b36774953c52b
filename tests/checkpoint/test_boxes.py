"""Boxes and flat ranges, against NumPy."""

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.boxes import Box, boxes_of_range, inside, intersection, rows_of, untiled, whole

SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


@st.composite
def boxes(draw, shape):
    ends = [sorted((draw(st.integers(0, size - 1)), draw(st.integers(1, size)))) for size in shape]
    return Box(tuple(a for a, _ in ends), tuple(max(1, b - a) for a, b in ends))


@st.composite
def ranges(draw):
    shape = draw(SHAPES)
    size = math.prod(shape)
    start = draw(st.integers(0, size - 1))
    return shape, start, draw(st.integers(0, size - start))


@given(ranges())
def test_boxes_of_a_range_are_the_range_in_order(case):
    shape, start, length = case
    tensor = np.arange(math.prod(shape)).reshape(shape)
    found = list(boxes_of_range(shape, start, length))
    values = [value for box in found for value in tensor[box.slices()].reshape(-1)]
    assert values == list(range(start, start + length))
    assert all(inside(box, shape) for box in found)
    assert len(found) <= max(1, 2 * len(shape) - 1)


@given(SHAPES, st.integers(1, 5), st.data())
def test_cuts_of_a_flat_tensor_tile_it(shape, ranks, data):
    size = math.prod(shape)
    borders = sorted([0, size, *(data.draw(st.integers(0, size)) for _ in range(ranks - 1))])
    found = [box for a, b in itertools.pairwise(borders) for box in boxes_of_range(shape, a, b - a)]
    assert untiled(shape, found) is None
    dropped = data.draw(st.integers(0, len(found) - 1))
    assert "missing" in untiled(shape, found[:dropped] + found[dropped + 1 :])
    assert "overlap" in untiled(shape, [*found, found[dropped]])


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), boxes(shape), boxes(shape))))
def test_intersection_is_that_of_the_elements(case):
    shape, first, second = case
    marks = [np.zeros(shape, bool) for _ in range(3)]
    marks[0][first.slices()] = marks[1][second.slices()] = True
    common = intersection(first, second)
    if common is not None:
        assert common.size > 0
        marks[2][common.slices()] = True
    assert (marks[2] == (marks[0] & marks[1])).all()
    if common is not None:
        tensor = np.arange(math.prod(shape)).reshape(shape)
        assert (tensor[first.slices()][common.slices(first.offset)] == tensor[common.slices()]).all()


@given(SHAPES, st.integers(1, 8))
def test_rows_of_all_ranks_tile_evenly(shape, ranks):
    shares = [rows_of(shape, rank, ranks) for rank in range(ranks)]
    assert untiled(shape, [box for box in shares if box is not None]) is None
    rows = [box.lengths[0] if box and shape else 0 for box in shares]
    assert max(rows) - min(rows) <= 1


def test_what_lies_outside_is_named():
    assert "outside" in untiled((2, 3), [Box((0, 0), (2, 4))])
    assert "outside" in untiled((2, 3), [Box((0,), (2,))])
    assert untiled((2, 3), [whole((2, 3))]) is None
